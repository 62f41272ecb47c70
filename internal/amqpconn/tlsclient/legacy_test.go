package tlsclient

import (
	"crypto/tls"
	"strings"
	"testing"

	"koji-relay/internal/certtest"
)

func TestLegacyServersAreRefusedWithTheRemedyOrTaken(t *testing.T) {
	t.Parallel()
	a, other := certtest.New(t), certtest.New(t)
	ca, otherCA := a.Write("ca.pem", a.Cert), other.Write("ca.pem", other.Cert)
	rsaOnly := []uint16{tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_CBC_SHA}
	for name, row := range map[string]struct {
		cert   tls.Certificate
		suites []uint16
		ca     string
		strict string // in the error without legacy_tls; empty = connects
		legacy string // with it
	}{
		"a common name only": {a.Old("localhost"), nil, ca, "in the common name only (localhost)", ""},
		"a common name with a wildcard": {a.Old("*.example.com"), nil, ca, "set legacy_tls = on",
			"common name only"},
		"the common name of another": {a.Old("broker.example.com"), nil, ca, "set legacy_tls = on",
			"common name only"},
		"other names beside it": {a.Old("localhost", "broker.example.com"), nil, ca,
			"is for broker.example.com and not for localhost", "not for localhost"},
		"of another authority": {a.Old("localhost"), nil, otherCA, "common name only", "unknown authority"},
		"RSA key exchange only": {a.Old("x", "localhost"), rsaOnly, ca,
			"set legacy_tls = on if it offers RSA key exchange only", ""},
		"both":        {a.Old("localhost"), rsaOnly, ca, "legacy_tls = on", ""},
		"nothing old": {a.Old("x", "localhost"), nil, ca, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := &tls.Config{Certificates: []tls.Certificate{row.cert}, CipherSuites: row.suites}
			if row.suites != nil {
				cfg.MaxVersion = tls.VersionTLS12
			}
			for _, legacy := range []bool{false, true} {
				err := handshake(t, cfg, "localhost", Options{CACert: row.ca, Legacy: legacy})
				want := row.strict
				if legacy {
					want = row.legacy
				}
				switch {
				case want == "" && err != nil:
					t.Errorf("legacy_tls %v: %v", legacy, err)
				case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
					t.Errorf("legacy_tls %v: %v does not say %q", legacy, err, want)
				}
			}
		})
	}
}
