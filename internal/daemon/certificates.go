package daemon

import (
	"crypto/x509"
	"encoding/pem"
	"os"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/pemfile"
)

// certificates describes the certificates that the configuration names, read anew: they are exchanged under a
// running relay. A file that cannot be read is the broker connection's trouble and is told there.
func certificates(c *config.Config) []admin.Certificate {
	var all []admin.Certificate
	for _, f := range []struct{ key, path string }{{"cert", c.Broker.Cert}, {"cacert", c.Broker.CACert}} {
		text, err := os.ReadFile(f.path)
		if err != nil {
			continue
		}
		text = pemfile.Plain(text)
		for {
			var block *pem.Block
			if block, text = pem.Decode(text); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				continue
			}
			if parsed, err := x509.ParseCertificate(block.Bytes); err == nil {
				all = append(all, admin.Certificate{Name: f.key, Subject: parsed.Subject.String(),
					Expires: parsed.NotAfter})
			}
		}
	}
	return all
}
