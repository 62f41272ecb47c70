package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
		"127.0.0.1:9763": 200, "127.0.0.1": 200, "127.8.9.1:9763": 200, "localhost": 200, "LOCALHOST:1234": 200, "[::1]:9763": 200, "[::1]": 200,
		"evil.example.com": 421, "evil.example.com:9763": 421, "localhost.evil.example.com": 421, "10.0.0.1:9763": 421, "": 421,
		"127.0.0.1.evil.example.com": 421, "0.0.0.0:9763": 421,
	} {
		for _, path := range []string{"/status", "/metrics", "/ready", "/live", "/"} {
			if code, text := request(t, s.Handler(), "GET", host, path); code != want {
				t.Errorf("GET %s for host %q is answered %d %s, want %d", path, host, code, text, want)
			}
		}
	}
}

func TestReadOnlyPortChangesNothing(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	for _, path := range []string{"/", "/status", "/v1/reload", "/v1/pause", "/v1/queue/drop", "/v1/import"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
			if code, text := request(t, s.Handler(), method, "localhost", path); code != http.StatusMethodNotAllowed || !strings.Contains(text, CodeMethod) {
				t.Errorf("%s %s is answered %d %s", method, path, code, text)
			}
		}
	}
	for _, path := range []string{"/v1/export", "/v1/queue/x", "/debug/pprof/", "/debug/pprof/heap", "/nothing"} {
		if code, text := get(t, s.Handler(), path); code != http.StatusNotFound || !strings.Contains(text, CodeNotFound) {
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
