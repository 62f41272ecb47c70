package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// FuzzCommits: whatever comes over the hub's socket is answered as the hub API says, and what is published is
// what the answer is about. Nothing is published of a request that is refused.
func FuzzCommits(f *testing.F) {
	const commit = `{"commit": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", "events": [`
	for _, body := range []string{
		commit + `{"event": 0, "callback": "postTag", "kwargs": {"a": "é"}}, {"callback": "postTag", ` +
			`"kwargs": {}}]}`,
		commit + `{"event": 4294967296, "callback": "x", "kwargs": {}}]}`, commit + `]}`, commit, "", "null",
		"[[[[", "\xff",
		commit + `{"event": 3, "callback": "a", "kwargs": 0}, {"event": 3, "callback": "b", "kwargs": {}}]}`,
	} {
		f.Add(http.MethodPost, "application/json", "", []byte(body), uint8(0))
		f.Add(http.MethodPost, "", "2", []byte(body), uint8(1))
	}
	f.Add(http.MethodGet, "text/plain", "999999999999", []byte("{}"), uint8(2))
	f.Fuzz(func(t *testing.T, method, contentType, length string, body []byte, refuse uint8) {
		request, err := http.NewRequest(method, "http://koji-relay/v1/commits", bytes.NewReader(body))
		if err != nil {
			return // no client can send it
		}
		request.Header.Set("Content-Type", contentType)
		if length != "" {
			request.Header.Set("Content-Length", length)
		}
		var published []message.Commit
		s := New(Options{
			Decode: callbacks.DecodeCommit,
			Publish: func(_ context.Context, c message.Commit) (r message.Receipt) {
				published = append(published, c)
				for _, e := range c.Events {
					if refuse > 0 && e.Number%int(refuse) == 0 {
						r.NotTaken = append(r.NotTaken, e.Number)
					} else {
						r.Sent++
					}
				}
				return r
			},
			MaxRequestBytes: 10_000, MaxInflightBytes: 40_000, Logger: slog.New(slog.DiscardHandler),
		})
		w := httptest.NewRecorder()
		s.commits(w, request)
		checkAnswer(t, w, published)
	})
}

func checkAnswer(t *testing.T, w *httptest.ResponseRecorder, published []message.Commit) {
	var said struct {
		Code     string
		Error    string
		NotTaken []int `json:"not_taken"`
		Sent     int
	}
	if w.Code == http.StatusNoContent {
		if len(published) > 0 || w.Body.Len() > 0 {
			t.Fatalf("answer 204 %q, and %d commits were published", w.Body, len(published))
		}
		return
	}
	if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil {
		t.Fatalf("answer %d %q: %v", w.Code, w.Body, err)
	}
	switch w.Code {
	case http.StatusOK, http.StatusServiceUnavailable:
		if len(published) != 1 {
			t.Fatalf("answer %d, and %d commits were published", w.Code, len(published))
		}
		numbers := make(map[int]bool)
		for _, e := range published[0].Events {
			numbers[e.Number] = true
		}
		if w.Code == http.StatusOK && said.Sent != len(numbers) {
			t.Fatalf("sent %d of %d events and was answered 200", said.Sent, len(numbers))
		}
		if w.Code != http.StatusOK && (said.Code != "NOT_TAKEN" || len(said.NotTaken) == 0) {
			t.Fatalf("answer %d %s", w.Code, w.Body)
		}
		if slices.ContainsFunc(said.NotTaken, func(n int) bool { return !numbers[n] }) {
			t.Fatalf("events %v were not taken, but there are %v", said.NotTaken, numbers)
		}
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge,
		http.StatusRequestTimeout, http.StatusUnsupportedMediaType:
		if len(published) > 0 || said.Code == "" || said.Error == "" {
			t.Fatalf("answer %d %s, and %d commits were published", w.Code, w.Body, len(published))
		}
	default:
		t.Fatalf("answer %d %s is not in the hub API", w.Code, w.Body)
	}
}
