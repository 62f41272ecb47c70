package tlsclient

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

// legacy makes cfg take what OpenSSL takes and Go does not: a server certificate that names its host in the
// common name only (CA/Browser Forum: deprecated since 2000), and servers that offer no key exchange but
// RSA's, which gives no forward secrecy. All else is checked as before: the chain, the dates, and the name.
func legacy(cfg *tls.Config) {
	for _, suite := range tls.CipherSuites() {
		cfg.CipherSuites = append(cfg.CipherSuites, suite.ID)
	}
	cfg.CipherSuites = append(cfg.CipherSuites, tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA)
	roots, host := cfg.RootCAs, cfg.ServerName
	cfg.InsecureSkipVerify = true // VerifyConnection does it
	cfg.VerifyConnection = func(state tls.ConnectionState) error { return verifyLegacy(state, roots, host) }
}

func verifyLegacy(state tls.ConnectionState, roots *x509.CertPool, host string) error {
	leaf := state.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	failed := func(err error) error {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between,
		CurrentTime: time.Now()}); err != nil {
		return failed(err)
	}
	if commonNameOnly(leaf) {
		// The rules for names are x509's.
		if (&x509.Certificate{DNSNames: []string{leaf.Subject.CommonName}}).VerifyHostname(host) == nil {
			return nil
		}
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return failed(err)
	}
	return nil
}

// commonNameOnly reports whether the certificate has no names but its subject's.
func commonNameOnly(c *x509.Certificate) bool {
	return c.Subject.CommonName != "" && len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+
		len(c.URIs) == 0
}

// noSharedSuite are the alerts by which servers say so.
var noSharedSuite = []string{"tls: handshake failure", "tls: insufficient security level"}

// explainLegacy adds to an error of the handshake what to do about it. protonmsg compared no host names and
// took RSA key exchange, so that sites come with such servers.
func explainLegacy(err error, host string) error {
	var name x509.HostnameError
	if errors.As(err, &name) {
		c := name.Certificate
		if commonNameOnly(c) {
			return fmt.Errorf("the broker's certificate names its host in the common name only (%s), which is not "+
				"enough any more; have it issued with subject alternative names, or set legacy_tls = on",
				inspect.Line(c.Subject.CommonName, 100))
		}
		names := slices.Clone(c.DNSNames)
		for _, ip := range c.IPAddresses {
			names = append(names, ip.String())
		}
		return fmt.Errorf("the broker's certificate is for %s and not for %s; write one of its names into urls, "+
			"or have it issued for %s", inspect.Line(strings.Join(names, ", "), 200), host, host)
	}
	if slices.Contains(noSharedSuite, alertOf(err)) {
		return fmt.Errorf("%w: the broker shares no cipher suite with us, or wants another client certificate; "+
			"have it offer ECDHE key exchange, or set legacy_tls = on if it offers RSA key exchange only", err)
	}
	return err
}
