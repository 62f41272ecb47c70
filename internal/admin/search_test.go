package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/inspect"
)

// askedHistory is a history that remembers the question, and has one hostile message.
type askedHistory struct {
	HistoryControl
	asked *inspect.HistoryQuery
}

func (a askedHistory) History(_ context.Context, q inspect.HistoryQuery,
	each func(*inspect.HistoryMessage) error) error {
	*a.asked = q
	return each(&inspect.HistoryMessage{MessageID: "id-1", Time: time.Unix(1700000000, 0),
		Address: "build.tag",
		Fate:    inspect.Accepted, Broker: "b1:5672", Props: []byte(`{"tag": "<script>alert(1)</script>"}`),
		Body: "a secret body"})
}

func (askedHistory) HistoryGaps(context.Context, time.Time, time.Time) ([]inspect.Gap, error) {
	return []inspect.Gap{{Reason: "the relay was killed"}}, nil
}

func TestPageSearchesTheHistoryWithoutAScriptAndWithoutBodies(t *testing.T) {
	t.Parallel()
	var asked inspect.HistoryQuery
	s, _, control := newTestServer(t, Status{})
	control.HistoryControl = askedHistory{asked: &asked}
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Host = "localhost"
		s.Handler().ServeHTTP(w, r)
		return w
	}
	w := get("/search?build=bash&tag=f40-*&task=7&user=u&address=build.*&fate=accepted&since=a+week")
	text := w.Body.String()
	for _, want := range []string{"id-1", "b1:5672", "&lt;script&gt;", `value="f40-*"`,
		"the relay was killed", "<option selected>accepted"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	for _, never := range []string{"a secret body", "<script"} {
		if strings.Contains(text, never) {
			t.Errorf("the page has %q", never)
		}
	}
	if asked.Build != "bash" || asked.Tag != "f40-*" || asked.Task != 7 || asked.User != "u" ||
		asked.Address != "build.*" ||
		asked.Fate != inspect.Accepted || asked.Limit == 0 || time.Since(asked.Since) < 6*24*time.Hour {
		t.Errorf("asked %+v", asked)
	}
	if w := get("/search?task=x"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(),
		"not the number of a task") {
		t.Errorf("a task that is no number gives %d", w.Code)
	}
	if w := get("/search"); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "newest first") {
		t.Errorf("without a question the page has an answer, code %d", w.Code)
	}
	if w := get("/"); !strings.Contains(w.Body.String(), `action="/search"`) {
		t.Error("the status page has no search field")
	}
}
