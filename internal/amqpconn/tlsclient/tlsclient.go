// Package tlsclient sets up TLS to a broker: by certificate files that are read anew for each connection,
// with errors that say what to do, and with what OpenSSL takes and Go does not where that is asked for. It
// promises that the server has a certificate for the host's name. It never shows a key.
package tlsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"

	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/pemfile"
)

// Options says by what both sides are known.
type Options struct {
	// Cert, Key and CACert are PEM files. Cert may hold the key as well; CACert may be a directory.
	Cert, Key, CACert string
	// Legacy takes server certificates with a common name only, and RSA key exchange.
	Legacy bool
}

// Session is a TLS layer, or what is known of one that could not be set up.
type Session struct {
	net.Conn
	state  *tls.ConnectionState // nil when it could not be set up
	client *tls.Certificate     // ours, nil without
}

// Handshake puts TLS around nc, to the host of that name. ctx bounds it. After an error nc is as good as
// closed, and the Session still tells about our certificate if that could be read.
func Handshake(ctx context.Context, nc net.Conn, host string, o Options) (*Session, error) {
	cfg, client, err := o.config(host)
	s := &Session{client: client}
	if err != nil {
		return s, err
	}
	secured := tls.Client(nc, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		return s, explain(explainLegacy(err, host))
	}
	state := secured.ConnectionState()
	s.Conn, s.state = secured, &state
	return s, nil
}

// HasClient reports whether we have a certificate.
func (s *Session) HasClient() bool { return s.client != nil }

// config reads the certificate files, so that a renewed certificate is used from the next connection on.
func (o Options) config(serverName string) (cfg *tls.Config, client *tls.Certificate, err error) {
	cfg = &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12}
	if o.CACert != "" {
		if cfg.RootCAs, err = pemfile.Pool(o.CACert); errors.Is(err, pemfile.ErrNoCertificate) {
			return nil, nil, fmt.Errorf("read cacert: %s holds no PEM certificate", o.CACert)
		} else if err != nil {
			return nil, nil, fmt.Errorf("read cacert: %w", err)
		}
	}
	if o.Legacy {
		legacy(cfg)
	}
	if o.Cert == "" {
		return cfg, nil, nil
	}
	if client, err = loadCertificate(o.Cert, o.Key); err != nil {
		return nil, nil, err
	}
	// Given outright and not only for matching acceptable CAs: several brokers announce no CA names, or wrong
	// ones, and a certificate that is not sent makes an error that names anything but that.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return client, nil }
	return cfg, client, nil
}

// loadCertificate reads a client certificate, its chain, and its key from cert or from a file of its own.
func loadCertificate(cert, key string) (*tls.Certificate, error) {
	chain, err := os.ReadFile(cert)
	if err != nil {
		return nil, fmt.Errorf("read cert: %w", err)
	}
	keyText, keyName := chain, cert
	if key != "" {
		keyName = key
		if keyText, err = os.ReadFile(key); err != nil {
			return nil, fmt.Errorf("read key: %w", err)
		}
	}
	pair, err := pemfile.KeyPair(chain, keyText)
	if err != nil {
		if encrypted(keyText) {
			return nil, fmt.Errorf("read key: the key in %s is encrypted: store it without a passphrase, "+
				"readable by the relay only", keyName)
		}
		return nil, fmt.Errorf("read client certificate %s with key %s: %w", cert, keyName, err)
	}
	return &pair, nil
}

// encrypted reports whether text holds a private key under a passphrase.
func encrypted(text []byte) bool {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return true
		}
	}
	return false
}

// explain says what to do about a failed handshake.
func explain(err error) error {
	var (
		plain   tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
		chain   *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &plain) && failure.Stranger(plain.RecordHeader[:]) != "":
		return fmt.Errorf("set up TLS: %s answers, which is no broker; give the broker's AMQP port in urls",
			failure.Stranger(plain.RecordHeader[:]))
	case errors.As(err, &plain):
		return errors.New("set up TLS: the port does not speak TLS; write amqp:// in urls, or give the port " +
			"that does")
	case errors.As(err, &unknown):
		issuer := "an authority"
		if errors.As(err, &chain) && len(chain.UnverifiedCertificates) > 0 {
			issuer = chain.UnverifiedCertificates[len(chain.UnverifiedCertificates)-1].Issuer.String()
		}
		return fmt.Errorf("set up TLS: the broker's certificate was issued by %s, an unknown authority; "+
			"name the file with its certificate in cacert", failure.Line(issuer))
	case failure.HungUp(err):
		return errors.New("set up TLS: the peer hung up without an answer; check that the port in urls speaks " +
			"TLS, and whether the broker asks for a client certificate (cert)")
	}
	return explainAlert("set up TLS", err)
}

// ExplainLate is for the first read after the handshake. With TLS 1.3 a server judges the client's
// certificate when we have done our part. Other errors stay as they are.
func ExplainLate(err error) error {
	if _, known := refusals[alertOf(err)]; known {
		return explainAlert("set up TLS", err)
	}
	return err
}

// refusals are the alerts by which a server refuses our certificate, and what to do about each. An alert of
// the peer has no type of its own outside of QUIC.
var refusals = map[string]string{
	"tls: certificate required": "the broker asks for a client certificate; name its file in cert",
	"tls: expired certificate":  "the client certificate (cert) has expired; renew it",
	"tls: revoked certificate":  "the client certificate (cert) was revoked; have a new one issued",
	"tls: bad certificate":      notTaken, "tls: unknown certificate": notTaken,
	"tls: unknown certificate authority": notTaken, "tls: access denied": notTaken,
}

const notTaken = "the broker refuses our client certificate (cert), or misses one; check its dates, and " +
	"that the broker knows its authority"

func alertOf(err error) string {
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		return alert.Err.Error()
	}
	return ""
}

func explainAlert(doing string, err error) error {
	alert := alertOf(err)
	if remedy, known := refusals[alert]; known {
		return fmt.Errorf("%s: %s (%s)", doing, remedy, alert)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
