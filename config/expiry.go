package config

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"time"
)

// Expired lists the certificates of the configuration that no broker, or no relay, will take at that moment.
// serve starts with them all the same, since it can queue until they are renewed.
func (c *Config) Expired(now time.Time) []Problem {
	var all []Problem
	complain := func(key, text string, at time.Time) {
		all = append(all, c.at("broker", key, text+at.UTC().Format(time.DateOnly)+"; renew it"))
	}
	if cert := firstCertificate(c.Broker.Cert); cert != nil {
		switch {
		case now.After(cert.NotAfter):
			complain("cert", "holds a certificate that expired on ", cert.NotAfter)
		case now.Before(cert.NotBefore):
			complain("cert", "holds a certificate that is not valid before ", cert.NotBefore)
		}
	}
	if ca := firstCertificate(c.Broker.CACert); ca != nil && now.After(ca.NotAfter) {
		complain("cacert", "begins with an authority's certificate that expired on ", ca.NotAfter)
	}
	return all
}

// firstCertificate reads a PEM file's first certificate, which of a chain is the owner's; nil where there is
// none, for that is Verify's to say.
func firstCertificate(path string) *x509.Certificate {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil
			}
			return cert
		}
	}
	return nil
}
