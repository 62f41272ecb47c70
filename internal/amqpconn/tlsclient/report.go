package tlsclient

import (
	"crypto/tls"
	"time"

	"koji-relay/internal/amqpconn/failure"
)

// Report describes a TLS layer.
type Report struct {
	Version string
	Cipher  string
	Server  Certificate
}

// Certificate describes a certificate.
type Certificate struct {
	Subject string
	Names   []string // what it is for: DNS names and IP addresses
	Issuer  string
	Expires time.Time
}

// Report describes the layer and the broker's certificate; nil where there is none.
func (s *Session) Report() *Report {
	if s == nil || s.state == nil || len(s.state.PeerCertificates) == 0 {
		return nil
	}
	leaf := s.state.PeerCertificates[0]
	var names []string
	for _, name := range leaf.DNSNames[:min(len(leaf.DNSNames), 20)] {
		names = append(names, failure.Name(name))
	}
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return &Report{
		Version: tls.VersionName(s.state.Version), Cipher: tls.CipherSuiteName(s.state.CipherSuite),
		Server: Certificate{failure.Line(leaf.Subject.String()), names, failure.Line(leaf.Issuer.String()),
			leaf.NotAfter},
	}
}

// Client describes our certificate; nil without one.
func (s *Session) Client() *Certificate {
	if s == nil || s.client == nil || s.client.Leaf == nil {
		return nil
	}
	leaf := s.client.Leaf
	return &Certificate{Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Expires: leaf.NotAfter}
}

// Expires tells when the certificates in use end; zero without.
func (s *Session) Expires() (server, client time.Time) {
	if r := s.Report(); r != nil {
		server = r.Server.Expires
	}
	if c := s.Client(); c != nil {
		client = c.Expires
	}
	return server, client
}
