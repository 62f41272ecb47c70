package admin

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func request(t *testing.T, h http.Handler, method, host, path string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	r.Host = host
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestReadOnlyPortAnswersLocalNamesOnly(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, runningStatus())
	for host, want := range map[string]int{
		"127.0.0.1:9763": 200, "127.0.0.1": 200, "127.8.9.1:9763": 200, "localhost": 200, "LOCALHOST:1234": 200,
		"[::1]:9763": 200, "[::1]": 200, "evil.example.com": 421, "evil.example.com:9763": 421,
		"localhost.evil.example.com": 421, "10.0.0.1:9763": 421, "": 421, "127.0.0.1.evil.example.com": 421,
		"0.0.0.0:9763": 421,
	} {
		for _, path := range []string{"/status", "/metrics", "/ready", "/live", "/"} {
			if code, text := request(t, s.Handler(), "GET", host, path); code != want {
				t.Errorf("GET %s for host %q is answered %d %s, want %d", path, host, code, text, want)
			}
		}
	}
}

func FuzzOnlyLoopbackNamesAreLocal(f *testing.F) {
	for _, host := range []string{"localhost:9763", "[::1]", "127.0.0.1.evil.example.com",
		"[::ffff:127.0.0.1]:80", "0x7f.1", "::1", "[localhost]"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !localName(host) {
			return
		}
		// Whatever is let in is, but for brackets and port, a word that no name server is asked for.
		name := strings.ToLower(host)
		if i := strings.LastIndexByte(name, ':'); i > 0 && !strings.HasSuffix(name, "]") &&
			strings.Count(name, ":") == 1 || strings.Contains(name, "]:") {
			name = name[:i]
		}
		name = strings.Trim(name, "[]")
		ip := net.ParseIP(name)
		if name != "localhost" && (ip == nil || !ip.IsLoopback()) {
			t.Errorf("%q is taken for local", host)
		}
	})
}

func TestReadsAndRefreshesGoTogether(t *testing.T) {
	t.Parallel()
	s, source := troubledServer(t)
	var wg sync.WaitGroup
	for _, path := range []string{"/", "/status", "/metrics", "/ready"} {
		wg.Go(func() {
			for range 20 {
				if code, _ := get(t, s.Handler(), path); code >= 500 {
					t.Errorf("GET %s is answered %d", path, code)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 50 {
			source.change(func(s *Status) { s.Queue.Depth = int64(i) })
			s.refresh(t.Context())
			s.opts.Metrics.MessageSent("build.tag", "b:1", time.Millisecond)
			s.opts.Recent.Add(Fate{Event: i})
		}
	})
	wg.Wait()
}

func TestReadOnlyPortChangesNothing(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	for _, path := range []string{"/", "/status", "/v1/reload", "/v1/pause", "/v1/queue/drop", "/v1/import"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
			if code, text := request(t, s.Handler(), method, "localhost", path); code != http.StatusMethodNotAllowed ||
				!strings.Contains(text, CodeMethod) {
				t.Errorf("%s %s is answered %d %s", method, path, code, text)
			}
		}
	}
	for _, path := range []string{"/v1/export", "/v1/queue/x", "/debug/pprof/", "/debug/pprof/heap",
		"/nothing"} {
		if code, text := get(t, s.Handler(), path); code != http.StatusNotFound ||
			!strings.Contains(text, CodeNotFound) {
			t.Errorf("GET %s is answered %d %s", path, code, text)
		}
	}
	if calls := control.called(); len(calls) > 0 {
		t.Errorf("the daemon was asked for %v", calls)
	}
}

func TestReadOnlyPathsAnswer(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, runningStatus())
	exercise(s.opts.Metrics)
	for path, want := range map[string]string{
		"/live":    `{"live":true}`,
		"/ready":   `"state":"ok"`,
		"/status":  `"version":"1.2.3"`,
		"/metrics": `koji_relay_broker_up{broker="broker1.example.com:5671"} 1`,
		"/":        "broker1.example.com:5671",
	} {
		if code, text := get(t, s.Handler(), path); code != 200 || !strings.Contains(text, want) {
			t.Errorf("GET %s is answered %d without %s:\n%s", path, code, want, text)
		}
		if code, _ := request(t, s.Handler(), "HEAD", "localhost", path); code != 200 {
			t.Errorf("HEAD %s is answered %d", path, code)
		}
	}
}
