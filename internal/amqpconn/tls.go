package amqpconn

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"koji-relay/internal/pemfile"
)

// tlsConfig reads the certificate files anew, so that a renewed certificate is used from the next connection
// on. The server must have a certificate for the URL's host name.
func (o *Options) tlsConfig(serverName string) (cfg *tls.Config, client *tls.Certificate, err error) {
	cfg = &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS12}
	if o.CACert != "" {
		if cfg.RootCAs, err = pemfile.Pool(o.CACert); errors.Is(err, pemfile.ErrNoCertificate) {
			return nil, nil, fmt.Errorf("read cacert: %s holds no PEM certificate", o.CACert)
		} else if err != nil {
			return nil, nil, fmt.Errorf("read cacert: %w", err)
		}
	}
	if o.LegacyTLS {
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
