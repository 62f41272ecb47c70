package ingest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"koji-relay/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// publish is what a Server is given.
type publish = func(context.Context, message.Commit) message.Receipt

func newServer(t *testing.T, take publish, change func(*Options)) *Server {
	t.Helper()
	opts := Options{
		Decode: func(body []byte) (message.Commit, error) {
			if !json.Valid(body) {
				return message.Commit{}, errors.New("not JSON at byte 7")
			}
			return message.Commit{ID: string(body)}, nil
		},
		Publish:          take,
		MaxRequestBytes:  1000,
		MaxInflightBytes: 4000,
		Logger:           slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&opts)
	}
	return New(opts)
}

// serveUnix serves s on a socket and returns a client for it.
func serveUnix(t *testing.T, s *Server) *http.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hub.sock")
	l, err := ListenUnix(SocketOptions{Path: path, Mode: 0o660})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &http.Client{Transport: transport}
}

func post(t *testing.T, c *http.Client, body io.Reader) (int, string) {
	t.Helper()
	resp, err := c.Post("http://hub/v1/commits", "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	full := func(context.Context, message.Commit) message.Receipt {
		return message.Receipt{Sent: 2, Queued: 3, Skipped: 4, Dead: 5}
	}
	for name, tc := range map[string]struct {
		take   publish
		body   io.Reader
		status int
		answer string
	}{
		"a commit that was dealt with is 200 with its account": {
			full, strings.NewReader(`{}`), 200, `{"dead":5,"queued":3,"sent":2,"skipped":4}`,
		},
		"events not taken are 503 and named": {
			func(context.Context, message.Commit) message.Receipt {
				return message.Receipt{Sent: 1, NotTaken: []int{0, 3}, Reason: "store down"}
			},
			strings.NewReader(`{}`), 503, `{"code":"NOT_TAKEN","not_taken":[0,3],"error":"store down"}`,
		},
		"a body that is no commit is 400 with what is wrong": {
			full, strings.NewReader(`{"x": `), 400, `{"code":"BAD_REQUEST","error":"not JSON at byte 7"}`,
		},
		"a body over max_request_bytes is 413": {
			full, strings.NewReader(strings.Repeat(" ", 1001)), 413,
			`{"code":"TOO_LARGE","error":"the request is larger ` +
				`than max_request_bytes (1000); post the commit in several requests with event numbers"}`,
		},
		"a chunked body over max_request_bytes is 413": {
			full, struct{ io.Reader }{strings.NewReader(strings.Repeat(" ", 1001))}, 413,
			`{"code":"TOO_LARGE","error":"the request is larger ` +
				`than max_request_bytes (1000); post the commit in several requests with event numbers"}`,
		},
		"a chunked body is read whole": {
			full, struct{ io.Reader }{strings.NewReader(`{}`)}, 200, `{"dead":5,"queued":3,"sent":2,"skipped":4}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := serveUnix(t, newServer(t, tc.take, nil))
			status, answer := post(t, client, tc.body)
			if status != tc.status {
				t.Errorf("status %d, want %d", status, tc.status)
			}
			if diff := cmp.Diff(tc.answer, answer); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOtherPathsAndMethodsAreRefusedInWords(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil, nil)
	for _, tc := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"PUT", "/v1/commits", 405, "METHOD_NOT_ALLOWED"},
		{"POST", "/v2/commits", 404, "NOT_FOUND"},
		{"GET", "/debug/pprof/heap", 404, "NOT_FOUND"},
		{"POST", "/v1/queue/drop", 404, "NOT_FOUND"},
	} {
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.code) {
			t.Errorf("%s %s: %d %s, want %d %s", tc.method, tc.path, w.Code, w.Body, tc.status, tc.code)
		}
	}
}

func TestCommitIsFinishedAfterTheHubStoppedWaiting(t *testing.T) {
	t.Parallel()
	entered, finished := make(chan struct{}), make(chan error, 1)
	release := make(chan struct{})
	client := serveUnix(t, newServer(t, func(ctx context.Context, _ message.Commit) message.Receipt {
		close(entered)
		<-release
		finished <- ctx.Err()
		return message.Receipt{}
	}, nil))
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "POST", "http://hub/v1/commits", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	cancel()
	<-gone
	close(release)
	if err := <-finished; err != nil {
		t.Errorf("the commit under way was cancelled: %v", err)
	}
}

// A hub that connected just before a restart must not be sent to its outbox.
func TestRequestOnAConnectionAcceptedBeforeTheEndIsAnswered(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(context.Context, message.Commit) message.Receipt { return message.Receipt{Sent: 1} },
		nil)
	client := serveUnix(t, s)
	dial := func() (net.Conn, error) {
		return client.Transport.(*http.Transport).DialContext(t.Context(), "", "")
	}
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wait := func(what string, ready func() bool) {
		t.Helper()
		for deadline := time.After(10 * time.Second); !ready(); {
			select {
			case <-deadline:
				t.Fatal("waited in vain until " + what)
			case <-time.After(time.Millisecond):
			}
		}
	}
	wait("the connection is accepted", func() bool {
		s.intake.mu.Lock()
		defer s.intake.mu.Unlock()
		return len(s.intake.busy) == 1
	})

	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(t.Context()) }()
	wait("the socket is closed", func() bool {
		late, err := dial()
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	if _, err := io.WriteString(conn,
		"POST /v1/commits HTTP/1.1\r\nHost: hub\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("the request was not answered: %v", err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("the answer is %s", response.Status)
	}
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestConnectionWithoutARequestHoldsUpShutdownForASecondOnly(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil, nil)
	client := serveUnix(t, s)
	conn, err := client.Transport.(*http.Transport).DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("Shutdown took %v", took)
	}
}

func TestBytesInFlightAreBoundedOverAllRequests(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, 1), make(chan struct{})
	client := serveUnix(t, newServer(t, func(context.Context, message.Commit) message.Receipt {
		entered <- struct{}{}
		<-release
		return message.Receipt{}
	}, nil))
	// 900 bytes, which count three times: as they came, as messages, and as what the store makes of them.
	body := `"` + strings.Repeat("x", 898) + `"`
	first := make(chan int, 1)
	go func() {
		status, _ := post(t, client, strings.NewReader(body))
		first <- status
	}()
	<-entered
	if status, answer := post(t, client, strings.NewReader(body)); status != 503 ||
		!strings.Contains(answer, "OVERLOADED") {
		t.Errorf("second request: %d %s, want 503 OVERLOADED", status, answer)
	}
	close(release)
	if status := <-first; status != 200 {
		t.Errorf("first request: %d, want 200", status)
	}
	if status, answer := post(t, client, strings.NewReader(body)); status != 200 {
		t.Errorf("request after the first was answered: %d %s, want 200", status, answer)
	}
}

func TestSocketFile(t *testing.T) {
	t.Parallel()
	gid := os.Getgid()
	if os.Getuid() == 0 { // may give it to any group
		gid = 4711
	}
	opts := SocketOptions{Path: filepath.Join(t.TempDir(), "s"), Mode: 0o640, Group: strconv.Itoa(gid)}
	l, err := ListenUnix(opts)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(opts.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want 0640", info.Mode().Perm())
	}
	if got := info.Sys().(*syscall.Stat_t).Gid; int(got) != gid {
		t.Errorf("group %d, want %d", got, gid)
	}
	if _, err := ListenUnix(opts); err == nil || !strings.Contains(err.Error(), "another koji-relay") {
		t.Errorf("second listener: %v, want to be told of the first", err)
	}
	// A killed process leaves its socket file behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := ListenUnix(opts)
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	again.Close()

	if err := os.WriteFile(opts.Path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(opts); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if text, err := os.ReadFile(opts.Path); err != nil || !bytes.Equal(text, []byte("precious")) {
		t.Errorf("the file in the way: %q, %v", text, err)
	}
}
