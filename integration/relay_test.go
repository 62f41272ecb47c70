package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// relay is one `koji-relay serve` process, with its configuration, socket and file queue in a directory of
// its own. It can be started again after it ended.
type relay struct {
	dir    string
	conf   string
	socket string
	client *http.Client

	process *exec.Cmd
	ended   chan struct{} // closed when process has ended and log is complete
	log     *journal

	systemd  *net.UnixConn // what systemd would be told
	headline atomic.Value  // its last STATUS, a string
}

// settings are configuration keys as "section.key". "plugin.timeout" is of koji_relay.conf beside the relay's
// file.
type settings map[string]string

// with is s with other settings on top; an empty value takes a key away.
func (s settings) with(others ...settings) settings {
	all := maps.Clone(s)
	for _, o := range others {
		maps.Copy(all, o)
	}
	return all
}

// brokerURL is the URL of s with credentials, as an administrator may write it.
func brokerURL(s *server) string { return "amqp://" + user + ":" + password + "@" + s.addr() }

// forBroker is the configuration for one broker and one test's part of the topics.
func forBroker(b brokerKind, part string, servers ...*server) settings {
	var urls []string
	for _, s := range servers {
		urls = append(urls, brokerURL(s))
	}
	return settings{
		"broker.urls":         strings.Join(urls, " "),
		"broker.topic_prefix": fmt.Sprintf(b.prefix, part),
	}.with(b.settings)
}

// newRelay writes the configuration; nothing is started. Unless s says otherwise the queue is a file.
func newRelay(t testing.TB, s settings) *relay {
	t.Helper()
	// Not t.TempDir, whose path can be too long for a Unix socket. In memory, where it can be: a disk that
	// other tests keep busy may take a second for an fsync, and no commit waits that long.
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "kr")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{dir: dir, conf: filepath.Join(dir, "protonmsg.conf"), socket: filepath.Join(dir, "hub.sock")}
	r.client = &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 16,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", r.socket)
			},
		},
	}
	r.configure(t, s)
	r.listenAsSystemd(t)
	t.Cleanup(func() {
		r.client.CloseIdleConnections()
		r.systemd.Close()
		if r.process != nil {
			r.kill(t)
			if t.Failed() {
				t.Logf("the relay's log:\n%s", r.log.tail(40))
			}
		}
		os.RemoveAll(dir)
	})
	return r
}

// listenAsSystemd takes what the relay says by sd_notify.
func (r *relay) listenAsSystemd(t testing.TB) {
	t.Helper()
	var err error
	r.systemd, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.notifySocket(), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := r.systemd.Read(buffer)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buffer[:n])) {
				if status, ok := strings.CutPrefix(line, "STATUS="); ok {
					r.headline.Store(strings.TrimSpace(status))
				}
			}
		}
	}()
}

func (r *relay) notifySocket() string { return filepath.Join(r.dir, "notify.sock") }

// pokeSocket is where the hub plugin says that something is in the outbox; "" where this relay has none.
func (r *relay) pokeSocket() string {
	path := filepath.Join(r.dir, "poke.sock")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// configure writes the configuration file.
func (r *relay) configure(t testing.TB, s settings) {
	t.Helper()
	all := settings{
		"queue.store":      "file",
		"queue.path":       filepath.Join(r.dir, "queue.db"),
		"relay.socket":     r.socket,
		"relay.control":    filepath.Join(r.dir, "control.sock"),
		"relay.admin":      "",
		"relay.log_format": "json",
	}.with(s)
	var text bytes.Buffer
	for _, section := range []string{"broker", "message", "queue", "history", "relay"} {
		fmt.Fprintf(&text, "[%s]\n", section)
		for _, key := range slices.Sorted(maps.Keys(all)) {
			if name, ok := strings.CutPrefix(key, section+"."); ok {
				fmt.Fprintf(&text, "%s = %s\n", name, strings.ReplaceAll(all[key], "%", "%%"))
			}
		}
	}
	if err := os.WriteFile(r.conf, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if timeout := all["plugin.timeout"]; timeout != "" {
		text := "[koji_relay]\ntimeout = " + timeout + "\n"
		if err := os.WriteFile(filepath.Join(r.dir, "koji_relay.conf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startRelay starts a relay and waits until it takes commits and each server given is connected.
func startRelay(t testing.TB, s settings, connected ...*server) *relay {
	t.Helper()
	r := newRelay(t, s)
	r.start(t)
	for _, s := range connected {
		r.awaitConnected(t, s)
	}
	return r
}

// start runs `koji-relay serve` and waits until it is ready.
func (r *relay) start(t testing.TB) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	r.startCommand(t, exec.Command(path, "serve", "--config", r.conf))
}

// startCommand is start for a command that becomes `koji-relay serve`.
func (r *relay) startCommand(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	r.launch(t, cmd)
	r.await(t, "ready", nil)
}

// launch starts the process and does not wait until it is ready.
func (r *relay) launch(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	// No test may leave a relay behind, not even one that panics.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+r.notifySocket())
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	log, ended := newJournal(), make(chan struct{})
	if err := startOnOwnThread(cmd, ended, func() { log.read(stderr) }); err != nil {
		t.Fatalf("start the relay: %v", err)
	}
	r.process, r.log, r.ended = cmd, log, ended
}

// signal sends sig to the process.
func (r *relay) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := r.process.Process.Signal(sig); err != nil {
		t.Fatalf("send %v to the relay: %v", sig, err)
	}
}

// stop ends the relay as systemd does and gives its exit code.
func (r *relay) stop(t testing.TB) int {
	t.Helper()
	r.signal(t, syscall.SIGTERM)
	return r.awaitEnd(t, 45*time.Second)
}

// awaitEnd waits until the process has ended and gives its exit code.
func (r *relay) awaitEnd(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(limit):
		t.Fatalf("the relay has not ended within %v", limit)
	}
	if strings.Contains(r.log.text(), "DATA RACE") {
		t.Errorf("the race detector found:\n%s", r.log.text())
	}
	return r.process.ProcessState.ExitCode()
}

// kill ends the relay as a power cut does.
func (r *relay) kill(t testing.TB) {
	t.Helper()
	r.process.Process.Kill() // it may have ended by itself
	r.awaitEnd(t, 10*time.Second)
}

// await waits for a log record with this message and these attributes.
func (r *relay) await(t testing.TB, msg string, attributes map[string]string) record {
	t.Helper()
	var found record
	err := poll(40*time.Second, func() error {
		for _, rec := range r.log.all() {
			if rec.matches(msg, attributes) {
				found = rec
				return nil
			}
		}
		select {
		case <-r.ended:
			return fmt.Errorf("it ended with %v", r.process.ProcessState)
		default:
			return fmt.Errorf("it logged:\n%s", r.log.tail(20))
		}
	})
	if err != nil {
		t.Fatalf("the relay does not log %q %v: %v", msg, attributes, err)
	}
	return found
}

func (r *relay) awaitConnected(t testing.TB, s *server) {
	t.Helper()
	r.await(t, "broker connected", map[string]string{"broker": s.addr()})
}

// answer is what the hub is told.
type answer struct {
	Code     int           `json:"-"` // HTTP status; 0: no answer
	Took     time.Duration `json:"-"`
	Sent     int           `json:"sent"`
	Queued   int           `json:"queued"`
	Skipped  int           `json:"skipped"`
	Dead     int           `json:"dead"`
	NotTaken []int         `json:"not_taken"`
	Error    string        `json:"error"`
}

// post hands over one commit. It may be called concurrently.
func (r *relay) post(ctx context.Context, body []byte) (a answer, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://koji-relay/v1/commits",
		bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	request.Header.Set("Content-Type", "application/json")
	began := time.Now()
	response, err := r.client.Do(request)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	a.Took = time.Since(began)
	if err != nil {
		return a, err
	}
	a.Code = response.StatusCode
	if err := json.Unmarshal(text, &a); err != nil {
		return a, fmt.Errorf("answer %d %q: %w", a.Code, text, err)
	}
	return a, nil
}

// mustPost hands over one commit, which must be answered 200.
func (r *relay) mustPost(t testing.TB, body []byte) answer {
	t.Helper()
	a, err := r.post(within(t, 30*time.Second), body)
	if err != nil {
		t.Fatalf("post a commit: %v", err)
	}
	if a.Code != http.StatusOK {
		t.Fatalf("post a commit: %d %s", a.Code, a.Error)
	}
	return a
}

// postGolden hands over a whole golden run in its order.
func (r *relay) postGolden(t testing.TB, g golden) (total answer) {
	t.Helper()
	for _, c := range g.commits {
		a := r.mustPost(t, c.Line)
		total.Sent += a.Sent
		total.Queued += a.Queued
		total.Skipped += a.Skipped
		total.Dead += a.Dead
	}
	return total
}

// journal is what a relay logged.
type journal struct {
	mu      sync.Mutex // guards the fields below
	lines   []string
	records []record
}

// record is one line of a JSON log.
type record map[string]any

func (r record) text(key string) string {
	v, ok := r[key]
	if !ok {
		return ""
	}
	return fmt.Sprint(v)
}

// matches reports whether the message is msg and each attribute contains its text.
func (r record) matches(msg string, attributes map[string]string) bool {
	if r.text("msg") != msg {
		return false
	}
	for key, part := range attributes {
		if !strings.Contains(r.text(key), part) {
			return false
		}
	}
	return true
}

func newJournal() *journal { return &journal{} }

func (j *journal) read(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var rec record
			known := json.Unmarshal([]byte(line), &rec) == nil
			j.mu.Lock()
			j.lines = append(j.lines, strings.TrimSuffix(line, "\n"))
			if known {
				j.records = append(j.records, rec)
			}
			j.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

func (j *journal) all() []record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.records)
}

// count is how many records match.
func (j *journal) count(msg string, attributes map[string]string) int {
	n := 0
	for _, rec := range j.all() {
		if rec.matches(msg, attributes) {
			n++
		}
	}
	return n
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "\n")
}

func (j *journal) tail(n int) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines[max(0, len(j.lines)-n):], "\n")
}
