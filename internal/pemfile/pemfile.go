// Package pemfile reads certificates in the forms that OpenSSL reads, since protonmsg's sites have them: a
// directory of authorities, and BEGIN TRUSTED CERTIFICATE. It reads files and nothing else.
package pemfile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// ErrNoCertificate is a file or directory without a certificate that may sign a server's.
var ErrNoCertificate = errors.New("holds no certificate")

// Pool gives the authorities in a PEM file, or in all PEM files of a directory. OpenSSL looks there for names
// made of hashes only (c_rehash); here every file counts, and what is no PEM file is passed over.
func Pool(path string) (*x509.CertPool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		files = nil
		for _, e := range entries {
			file := filepath.Join(path, e.Name())
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() { // hashes are symbolic links
				files = append(files, file)
			}
		}
	}
	pool, found := x509.NewCertPool(), false
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		found = pool.AppendCertsFromPEM(Plain(text)) || found
	}
	if !found {
		return nil, ErrNoCertificate
	}
	return pool, nil
}

// KeyPair is tls.X509KeyPair for a certificate in any of OpenSSL's forms.
func KeyPair(cert, key []byte) (tls.Certificate, error) { return tls.X509KeyPair(Plain(cert), key) }

// Plain is text with certificates in OpenSSL's older forms as plain ones. A trusted certificate has rules
// behind it for what it is trusted with; one that is not trusted with servers is left out.
func Plain(text []byte) []byte {
	if !bytes.Contains(text, []byte("BEGIN TRUSTED CERTIFICATE")) &&
		!bytes.Contains(text, []byte("BEGIN X509 CERTIFICATE")) {
		return text
	}
	var out []byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "X509 CERTIFICATE":
			block.Type = "CERTIFICATE"
		case "TRUSTED CERTIFICATE":
			der, err := trusted(block.Bytes)
			if err != nil {
				continue
			}
			block = &pem.Block{Type: "CERTIFICATE", Bytes: der}
		}
		out = append(out, pem.EncodeToMemory(block)...)
	}
	return out
}

// trust is what OpenSSL writes behind a certificate (X509_CERT_AUX); the rest of it says nothing about trust.
type trust struct {
	Trusted  []asn1.ObjectIdentifier `asn1:"optional"`
	Rejected []asn1.ObjectIdentifier `asn1:"optional,tag:0"`
	Alias    asn1.RawValue           `asn1:"optional"`
	KeyID    asn1.RawValue           `asn1:"optional"`
	Other    asn1.RawValue           `asn1:"optional"`
}

var (
	serverAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	anyUse     = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
)

// trusted gives the certificate in a TRUSTED CERTIFICATE block.
func trusted(data []byte) ([]byte, error) {
	var cert asn1.RawValue
	rest, err := asn1.Unmarshal(data, &cert)
	if err != nil {
		return nil, fmt.Errorf("read a trusted certificate: %w", err)
	}
	if len(rest) == 0 {
		return cert.FullBytes, nil
	}
	var rules trust
	if _, err := asn1.Unmarshal(rest, &rules); err != nil {
		return nil, fmt.Errorf("read what a certificate is trusted with: %w", err)
	}
	servers := func(id asn1.ObjectIdentifier) bool { return id.Equal(serverAuth) || id.Equal(anyUse) }
	names := func(list []asn1.ObjectIdentifier) bool { return slices.ContainsFunc(list, servers) }
	if names(rules.Rejected) || len(rules.Trusted) > 0 && !names(rules.Trusted) {
		return nil, errors.New("a certificate that is not trusted with servers")
	}
	return cert.FullBytes, nil
}
