package pemfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a self-signed certificate and its key, as PEM.
func authority(t *testing.T, name string) (cert *x509.Certificate, text, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true,
		BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func put(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// openssl x509 with these arguments.
func openssl(t *testing.T, text []byte, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
			t.Fatalf("openssl is needed: %v", err)
		}
		t.Skipf("openssl is needed: %v", err)
	}
	cmd := exec.Command(path, append([]string{"x509"}, args...)...)
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	return out
}

func holds(t *testing.T, path string, want ...*x509.Certificate) {
	t.Helper()
	pool, err := Pool(path)
	if err != nil {
		t.Fatal(err)
	}
	expected := x509.NewCertPool()
	for _, c := range want {
		expected.AddCert(c)
	}
	if !pool.Equal(expected) {
		t.Errorf("%s does not hold the %d certificates", path, len(want))
	}
}

func TestPoolOfADirectory(t *testing.T) {
	t.Parallel()
	a, textA, key := authority(t, "a")
	b, textB, _ := authority(t, "b")
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.pem"), textA)
	put(t, filepath.Join(dir, "b.crt"), append(key, textB...))
	put(t, filepath.Join(dir, "README"), []byte("no certificate"))
	if err := os.Symlink("a.pem", filepath.Join(dir, "0a1b2c3d.0")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "private"), 0o700); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, a, b)
	holds(t, filepath.Join(dir, "a.pem"), a)
	if _, err := Pool(filepath.Join(dir, "private")); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Pool(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestTrustedCertificateOfOpenSSL(t *testing.T) {
	t.Parallel()
	cert, text, key := authority(t, "a")
	path := filepath.Join(t.TempDir(), "ca.pem")
	for name, tt := range map[string]struct {
		args []string
		want bool
	}{
		"without rules":            {[]string{"-trustout"}, true},
		"trusted with servers":     {[]string{"-trustout", "-addtrust", "serverAuth"}, true},
		"trusted with anything":    {[]string{"-trustout", "-addtrust", "anyExtendedKeyUsage"}, true},
		"with an alias":            {[]string{"-trustout", "-addtrust", "serverAuth", "-setalias", "ours"}, true},
		"with an alias alone":      {[]string{"-trustout", "-setalias", "ours"}, true},
		"trusted with mail only":   {[]string{"-trustout", "-addtrust", "emailProtection"}, false},
		"not trusted with servers": {[]string{"-trustout", "-addreject", "serverAuth"}, false},
		"rejected for mail":        {[]string{"-trustout", "-addreject", "emailProtection"}, true},
	} {
		trusted := openssl(t, text, tt.args...)
		if !strings.Contains(string(trusted), "BEGIN TRUSTED CERTIFICATE") {
			t.Fatalf("%s: %s", name, trusted)
		}
		put(t, path, trusted)
		if tt.want {
			holds(t, path, cert)
			if _, err := KeyPair(trusted, key); err != nil {
				t.Errorf("%s, as a client's: %v", name, err)
			}
		} else if _, err := Pool(path); !errors.Is(err, ErrNoCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	put(t, path, bytes.ReplaceAll(text, []byte(" CERTIFICATE"), []byte(" X509 CERTIFICATE")))
	holds(t, path, cert)
}
