package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/daemon"
)

// checkFile runs the command on a configuration with this text.
func checkFile(t *testing.T, text string, flags ...string) (code int, stdout, stderr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code = run(t.Context(), append([]string{"check", "--config", path}, flags...), nil, &out, &errOut)
	strip := func(b *bytes.Buffer) string { return strings.ReplaceAll(b.String(), path, "protonmsg.conf") }
	return code, strip(&out), strip(&errOut)
}

const cleanConfig = `[broker]
urls = amqps://relay:sesame@broker1.example.com
  amqp://broker2.example.com:5673
topic_prefix = topic://koji
[queue]
store = file
path = /tmp/queue.db
`

func TestCheckPrintsTheEffectiveConfigurationMasked(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := checkFile(t, cleanConfig)
	if code != exitOK || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{
		"line 2   urls = amqps://***@broker1.example.com:5671 amqp://broker2.example.com:5673\n",
		"line 6   store = file\n",
		"default  send_timeout = 60\n",
		"default  cert =\n",
		"[relay]\n",
		"Nothing to complain about.\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("missing: %q", want)
		}
	}
	if strings.Contains(stdout, "sesame") {
		t.Error("the password is printed")
	}
	if t.Failed() {
		t.Log(stdout)
	}
}

func TestCheckFailsOnProblemsAndWarnings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text     string
		stdout, stderr string
	}{
		{"problems in the file", "[broker]\nurls = http://relay:sesame@x\nurls = amqp://y\n", "",
			"problem: protonmsg.conf:1: [broker] topic_prefix: missing; add a line such as: topic_prefix = " +
				"topic://koji\nproblem: protonmsg.conf:3: [broker] urls: set twice, first on line 2; keep one of the " +
				"two\n"},
		{"an unknown key", cleanConfig + "max_aeg = 5\n", "Effective configuration of protonmsg.conf\n",
			"warning: protonmsg.conf:8: [queue] max_aeg: unknown key, not read; did you mean max_age?\n"},
		{"a pattern that matches no callback",
			strings.Replace(cleanConfig, "[queue]", "[message]\nevents = posttag\n[queue]", 1),
			"Effective configuration of protonmsg.conf\n", "warning: protonmsg.conf:6: [message] events = posttag: " +
				"matches none of Koji's callbacks, so that it publishes nothing; did you mean postTag?\n"},
		{"a file that is named and missing", strings.Replace(cleanConfig, "topic_",
			"cacert = /nonexistent/ca.pem\ntopic_", 1), "Effective configuration of protonmsg.conf\n",
			"problem: protonmsg.conf:4: [broker] cacert = /nonexistent/ca.pem: no such file or directory; give the " +
				"path of a file that is there\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := checkFile(t, tt.text)
			if code != exitFailure || stderr != tt.stderr || !strings.HasPrefix(stdout, tt.stdout) ||
				tt.stdout == "" && stdout != "" {
				t.Errorf("exit %d\nstdout %s\nstderr %s", code, stdout, stderr)
			}
			if strings.Contains(stdout, "Nothing to complain") {
				t.Error("it complains and says that it does not")
			}
		})
	}
}

func TestCheckWithoutAFileIsAUsageError(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"check", "--config", filepath.Join(t.TempDir(), "none")}, nil, &out,
		&errOut)
	if code != exitUsage || !strings.Contains(errOut.String(), "no such file") {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
}

func TestCheckAsJSONHasTheSameFindings(t *testing.T) {
	t.Parallel()
	for _, text := range []string{cleanConfig, cleanConfig + "x = 1\n", "[broker]\n"} {
		code, stdout, stderr := checkFile(t, text, "--json")
		var report daemon.CheckReport
		if err := json.Unmarshal([]byte(stdout), &report); err != nil || stderr != "" {
			t.Fatalf("%v %s", err, stderr)
		}
		if report.Clean() != (code == exitOK) || len(report.Problems) == 0 && len(report.Settings) == 0 {
			t.Errorf("exit %d: %s", code, stdout)
		}
		if strings.Contains(stdout, "sesame") || strings.Contains(stdout, "null") {
			t.Errorf("a secret or a null: %s", stdout)
		}
	}
}

// certificateFile writes a certificate with its key, valid between the two times.
func certificateFile(t *testing.T, from, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	path := filepath.Join(t.TempDir(), "client.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckFailsOnACertificateOutOfItsTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		key, path string
		complaint string
	}{
		"expired": {"cert", certificateFile(t, now.Add(-9*day), now.Add(-day)),
			"holds a certificate that expired on "},
		"not yet": {"cert", certificateFile(t, now.Add(day), now.Add(9*day)),
			"holds a certificate that is not valid before "},
		"authority": {"cacert", certificateFile(t, now.Add(-9*day), now.Add(-day)),
			"begins with an authority's certificate that expired on "},
		"good":           {"cert", certificateFile(t, now.Add(-day), now.Add(9*day)), ""},
		"good authority": {"cacert", certificateFile(t, now.Add(-day), now.Add(9*day)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(cleanConfig, "topic_", c.key+" = "+c.path+"\ntopic_", 1)
			want := exitOK
			if c.complaint != "" {
				want = exitFailure
			}
			code, _, stderr := checkFile(t, text)
			if code != want || !strings.Contains(stderr, c.complaint) || c.complaint == "" && stderr != "" {
				t.Errorf("exit %d: %s", code, stderr)
			}
			code, stdout, _ := checkFile(t, text, "--json")
			if code != want || !strings.Contains(stdout, c.complaint) {
				t.Errorf("with --json exit %d: %s", code, stdout)
			}
		})
	}
}

func TestCheckChangedShowsOnlyWhatDiffers(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := checkFile(t, cleanConfig+"enabled = yes\nbatch_size = 100\nmax_age = 48\n",
		"--changed")
	want := `Effective configuration of protonmsg.conf

        [broker]
line 2  urls = amqps://***@broker1.example.com:5671 amqp://broker2.example.com:5673
line 4  topic_prefix = topic://koji

         [queue]
line 6   store = file
line 7   path = /tmp/queue.db
line 10  max_age = 48

Nothing to complain about.
`
	if code != exitOK || stderr != "" || stdout != want {
		t.Errorf("exit %d, %s\n%s", code, stderr, stdout)
	}
}

// TestCheckShowsWhatIsInForceWhereTheFileDiffers: the file was changed under a running relay, then read
// again.
func TestCheckShowsWhatIsInForceWhereTheFileDiffers(t *testing.T) {
	t.Parallel()
	s := newRelaySite(t)
	if out := s.command(t, exitOK, "check"); strings.Contains(out, "In force") {
		t.Errorf("without a relay:\n%s", out)
	}
	defer s.start(t)()
	if out := s.command(t, exitOK, "check"); strings.Contains(out, "In force") {
		t.Errorf("with the same values:\n%s", out)
	}
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "[history]\nkeep = 3\n"...)
	text = bytes.Replace(text, []byte("store = file\n"), []byte("store = file\nbatch_size = 7\n"), 1)
	if err := os.WriteFile(s.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out := strings.Join(strings.Fields(s.command(t, exitOK, "check")), " ")
	for _, want := range []string{"[queue] batch_size = 100 the file waits for a reload",
		"[history] keep = 7 the file waits for a restart"} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
	s.command(t, exitOK, "reload")
	out = strings.Join(strings.Fields(s.command(t, exitOK, "check", "--changed")), " ")
	if !strings.Contains(out, "[history] keep = 7 the file waits for a restart") ||
		strings.Contains(out, "batch_size = 100 ") {
		t.Errorf("after a reload:\n%s", out)
	}
}
