package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keyPair is a self-signed certificate and its key, as PEM.
func keyPair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"},
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func TestVerifyLooksAtTheFilesThatAreNamed(t *testing.T) {
	t.Parallel()
	cert, key := keyPair(t)
	_, otherKey := keyPair(t)
	encrypted := string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))
	const file = "[queue]\nstore = file\npath = DIR/queue.db\n"
	tests := []struct {
		name  string
		conf  string            // follows [broker], urls and topic_prefix
		files map[string]string // beside the configuration
		want  string            // in the error; empty = none
	}{
		{"combined certificate and key", "cert = DIR/cert\ncacert = DIR/ca\n" + file,
			map[string]string{"cert": cert + key, "ca": cert}, ""},
		{"key before the certificate", "cert = DIR/cert\n" + file, map[string]string{"cert": key + cert}, ""},
		{"separate key", "cert = DIR/cert\nkey = DIR/key\n" + file, map[string]string{"cert": cert, "key": key},
			""},
		{"missing file", "cert = DIR/cert\n" + file, nil,
			"protonmsg.conf:4: [broker] cert = DIR/cert: no such file or directory; give the path"},
		{"a directory of authorities", "cacert = DIR\n" + file, map[string]string{"ca.pem": cert}, ""},
		{"a directory without any", "cacert = DIR\n" + file, nil, "[broker] cacert = DIR: holds no certificate; "},
		{"a directory", "cert = DIR\n" + file, nil, "[broker] cert = DIR: is a directory; "},
		{"not PEM", "cert = DIR/cert\n" + file, map[string]string{"cert": "PKCS12"},
			"[broker] cert = DIR/cert: is not a PEM file; "},
		{"no key in it", "cert = DIR/cert\n" + file, map[string]string{"cert": cert},
			"[broker] cert = DIR/cert: holds no private key; append"},
		{"no key in the key file", "cert = DIR/cert\nkey = DIR/key\n" + file,
			map[string]string{"cert": cert, "key": cert}, "[broker] key = DIR/key: holds no private key; give"},
		{"no certificate in it", "cert = DIR/cert\n" + file, map[string]string{"cert": key},
			"[broker] cert = DIR/cert: holds no certificate; "},
		{"key of another certificate", "cert = DIR/cert\nkey = DIR/key\n" + file,
			map[string]string{"cert": cert, "key": otherKey},
			"[broker] key = DIR/key: does not go with the certificate: "},
		{"key with a passphrase", "cert = DIR/cert\nkey = DIR/key\n" + file,
			map[string]string{"cert": cert, "key": encrypted}, "a passphrase, which a daemon cannot type; "},
		{"authority without certificate", "cacert = DIR/ca\n" + file, map[string]string{"ca": key},
			"[broker] cacert = DIR/ca: holds no certificate; "},
		{"credentials", "user_file = DIR/user\npassword_file = DIR/password\n" + file,
			map[string]string{"user": "relay\n", "password": "x"}, ""},
		{"empty credential", "user_file = DIR/user\npassword_file = DIR/password\n" + file,
			map[string]string{"user": "\n", "password": "x"}, "[broker] user_file = DIR/user: is an empty file; "},
		{"credential of a service", "user_file = user\npassword_file = password\n" + file, nil,
			"[broker] user_file = user: names a systemd credential, but this process has none; "},
		{"directory of the queue", "[queue]\nstore = file\npath = DIR/none/queue.db\n", nil,
			"[queue] path = DIR/none/queue.db: its directory: no such file or directory; create DIR/none"},
		{"directories that the unit of a named relay makes", "[queue]\ndatabase = dbname=koji\n" +
			"[relay]\nname = never-started-bus\n", nil, ""},
		{"directory of a named relay's queue", "[queue]\ndatabase = dbname=koji\n" +
			"path = DIR/none/queue.db\n[relay]\nname = other-bus\n", nil,
			"[queue] path = DIR/none/queue.db: its directory: no such file or directory; create DIR/none"},
		{"queue in the place of a file", "[queue]\nstore = file\npath = DIR/file/queue.db\n",
			map[string]string{"file": ""}, "DIR/file is not a directory; "},
		{"no store needed", "[queue]\nenabled = off\n", nil, ""},
		{"time of the hub", file + "store_timeout = 1.5\n", nil, "protonmsg.conf:7: [queue] store_timeout = " +
			"1.5: plus [relay] handoff_timeout = 1 is not less than the hub plugin's timeout of 2 s; lower"},
		{"time that the plugin grants", file + "store_timeout = 1.5\n",
			map[string]string{"koji_relay.conf": "[koji_relay]\ntimeout = 3\n"}, ""},
		{"less time that the plugin grants", file + "[relay]\nhandoff_timeout = 0.5\n",
			map[string]string{"koji_relay.conf": "[koji_relay]\ntimeout = 1.2\n"}, "[relay] handoff_timeout = 0.5: " +
				"plus [queue] store_timeout = 0.8 is not less than the hub plugin's timeout of 1.2 s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, text := range tt.files {
				writeFile(t, filepath.Join(dir, name), text)
			}
			path := filepath.Join(dir, "protonmsg.conf")
			writeFile(t, path, minimal+strings.ReplaceAll(tt.conf, "DIR", dir))
			c, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Verify()
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			var found *Error
			if !errors.As(err, &found) {
				t.Fatalf("got %v", err)
			}
			if got := strings.ReplaceAll(err.Error(), dir, "DIR"); !strings.Contains(got, tt.want) {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestVerifyNamesWhatIsWrongWithTheHubsConfiguration(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"usable": {"[hub]\nDBName = koji\n", ""},
		"broken": {"[hub]\nDBName = koji\nDBPort = x\n", "hub.conf:3: [hub] DBPort = x: not a whole number; " +
			"write digits only\nprotonmsg.conf: [queue] database = hub: DIR/hub.conf cannot be used; correct it, " +
			"or set database to"},
		"missing": {"", "protonmsg.conf: [queue] database = hub: DIR/hub.conf: no such file or directory; let " +
			"the relay's user read it, set database to"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if tt.text != "" {
				writeFile(t, filepath.Join(dir, "hub.conf"), tt.text)
			}
			v := verification{config: mustParse(t, minimal), hubConfig: filepath.Join(dir, "hub.conf")}
			v.store()
			got := strings.ReplaceAll((&Error{Problems: v.problems}).Error(), dir, "DIR")
			if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Not parallel: the environment is the process's.
func TestCredentialOfTheServiceIsFound(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	writeFile(t, filepath.Join(dir, "password"), "example")
	c := mustParse(t, minimal+"user_file = "+dir+"/password\npassword_file = password\n[queue]\nenabled = off\n")
	if want := filepath.Join(dir, "password"); c.Broker.PasswordFile != want {
		t.Errorf("password_file is %s, want %s", c.Broker.PasswordFile, want)
	}
	if err := c.Verify(); err != nil {
		t.Error(err)
	}
}
