package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"koji-relay/internal/inspect"
)

func TestClientReachesEveryAction(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	control.items = []inspect.Item{{MessageID: "a", Address: "build.tag", Event: 3},
		{MessageID: "b", Reason: "rejected"}}
	control.lines = `{"a":1}` + "\n"
	c, ctx := serveControl(t, s), t.Context()

	check := func(call string, err error, wantCall string) {
		t.Helper()
		calls := control.called()
		if err != nil || len(calls) == 0 || calls[len(calls)-1] != wantCall {
			t.Errorf("%s: error %v, calls %q, want %q", call, err, calls, wantCall)
		}
	}
	reload, err := c.Reload(ctx)
	check("Reload", err, "reload")
	if !reload.OK || len(reload.Changed) != 1 || len(reload.NeedRestart) != 1 {
		t.Errorf("Reload gives %+v", reload)
	}
	check("SetLogLevel", c.SetLogLevel(ctx, "debug"), "log-level debug")
	check("Pause", c.Pause(ctx, Drain), "pause drain")
	check("Resume", c.Resume(ctx, Publish), "resume publish")
	var report struct{ Connected bool }
	check("Check", c.Check(ctx, true, &report), "check")
	sent, err := c.SendTest(ctx)
	check("SendTest", err, "send-test")
	if !report.Connected || sent.Outcome != "accepted" {
		t.Errorf("Check gives %+v, SendTest %+v", report, sent)
	}
	for _, box := range []inspect.Box{inspect.QueueBox, inspect.DeadBox} {
		var items []inspect.Item
		err := c.List(ctx, box, inspect.ListOptions{Limit: 2, Address: "build.tag"},
			func(i inspect.Item) error { items = append(items, i); return nil })
		check("List", err, fmt.Sprintf(`list %s {"limit":2,"address":"build.tag"}`, box))
		if diff := cmp.Diff(control.items, items); diff != "" {
			t.Error(diff)
		}
		item, err := c.Show(ctx, box, "odd/id?x")
		check("Show", err, fmt.Sprintf("show %s odd/id?x", box))
		if item.Body != `{"a": 1}` || string(item.Props) != `{"type":"Tag"}` {
			t.Errorf("Show gives %+v", item)
		}
		changed, err := c.Retry(ctx, box, inspect.Selection{IDs: []string{"a", "b"}})
		check("Retry", err, fmt.Sprintf(`retry %s {"ids":["a","b"]}`, box))
		if changed.Count != 2 {
			t.Errorf("Retry gives %+v", changed)
		}
		_, err = c.Drop(ctx, box, inspect.Selection{All: true})
		check("Drop", err, fmt.Sprintf(`drop %s {"all":true}`, box))
	}
	var out bytes.Buffer
	check("Export", c.Export(ctx, &out), "export")
	if out.String() != control.lines {
		t.Errorf("Export gives %q", out.String())
	}
	imported, err := c.Import(ctx, strings.NewReader(strings.Repeat("x", 1<<20)))
	check("Import", err, "import")
	if imported.Stored != 1<<20 {
		t.Errorf("Import gives %+v", imported)
	}
}

func TestControlSocketShowsThePresentState(t *testing.T) {
	t.Parallel()
	s, source, _ := newTestServer(t, runningStatus())
	c := serveControl(t, s)
	source.change(func(s *Status) { s.Paused.Drain = true })
	if s.Status().Paused.Drain {
		t.Fatal("the cache was refreshed by nobody")
	}
	status, err := c.Status(t.Context())
	if err != nil || !status.Paused.Drain || status.State != Degraded {
		t.Errorf("status %+v, error %v", status, err)
	}
	if !s.Status().Paused.Drain {
		t.Error("what the control socket has seen is not cached")
	}
}

func TestErrorsComeBackWithTheirCode(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	c, ctx := serveControl(t, s), t.Context()
	each := func(inspect.Item) error { return nil }
	for _, e := range []struct {
		err  error
		want *Error
	}{
		{errors.New("disk on fire"), &Error{CodeFailed, "disk on fire"}},
		{fmt.Errorf("drop from the queue: %w", &Error{CodeNotFound, "no message x"}),
			&Error{CodeNotFound, "drop from the queue: no message x"}},
		{&Error{CodeUnavailable, "the database does not answer"},
			&Error{CodeUnavailable, "the database does not answer"}},
		{&Error{CodeRefused, "stop the other relay first"}, &Error{CodeRefused, "stop the other relay first"}},
	} {
		control.err = e.err
		_, show := c.Show(ctx, inspect.QueueBox, "x")
		_, drop := c.Drop(ctx, inspect.DeadBox, inspect.Selection{All: true})
		_, imp := c.Import(ctx, strings.NewReader("x"))
		for call, err := range map[string]error{"Show": show, "Drop": drop, "Import": imp,
			"List":   c.List(ctx, inspect.QueueBox, inspect.ListOptions{}, each),
			"Export": c.Export(ctx, &bytes.Buffer{}), "Pause": c.Pause(ctx, Drain),
			"SetLogLevel": c.SetLogLevel(ctx, "debug")} {
			var got *Error
			if !errors.As(err, &got) || *got != *e.want {
				t.Errorf("%s gives %#v, want %#v", call, err, e.want)
			}
		}
	}
}

func TestStreamThatFailsLateIsAnError(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	c, ctx := serveControl(t, s), t.Context()
	for range 3000 { // more than is buffered
		control.items = append(control.items, inspect.Item{MessageID: strings.Repeat("m", 36)})
	}
	control.fail = &Error{CodeUnavailable, "the database went away"}
	var got *Error
	n := 0
	if err := c.List(ctx, inspect.QueueBox, inspect.ListOptions{},
		func(inspect.Item) error { n++; return nil }); !errors.As(err,
		&got) || got.Code != CodeUnavailable || n != 3000 {
		t.Errorf("List gives %v after %d items", err, n)
	}
	control.lines = strings.Repeat("x", 1<<20)
	if err := c.Export(ctx, &bytes.Buffer{}); !errors.As(err, &got) || got.Code != CodeUnavailable {
		t.Errorf("Export gives %v", err)
	}
	control.items, control.fail = nil, nil
	if err := c.List(ctx, inspect.QueueBox, inspect.ListOptions{},
		func(inspect.Item) error { return nil }); err != nil {
		t.Errorf("an empty list gives %v", err)
	}
}

func TestStreamCutShortIsAnError(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	control.lines = strings.Repeat("x", 1<<20)
	whole := s.ControlHandler()
	s.control.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		whole.ServeHTTP(w, r)
		w.Header().Del(resultTrailer)
	})
	err := serveControl(t, s).Export(t.Context(), &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("Export gives %v", err)
	}
}

func TestAnswerWithoutAJSONFormIsAnError(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	c := serveControl(t, s)
	control.props = "{not JSON"
	var got *Error
	if _, err := c.Show(t.Context(), inspect.DeadBox, "x"); !errors.As(err, &got) || got.Code != CodeFailed {
		t.Errorf("Show gives %v", err)
	}
	control.items = []inspect.Item{{Props: []byte("{not JSON")}}
	if err := c.List(t.Context(), inspect.DeadBox, inspect.ListOptions{},
		func(inspect.Item) error { return nil }); !errors.As(err, &got) || got.Code != CodeFailed {
		t.Errorf("List gives %v", err)
	}
}

func TestBadRequestsChangeNothing(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	c, ctx := serveControl(t, s), t.Context()
	_, none := c.Drop(ctx, inspect.QueueBox, inspect.Selection{})
	_, both := c.Drop(ctx, inspect.QueueBox, inspect.Selection{IDs: []string{"x"}, All: true})
	_, unknown := call[done](ctx, c, "POST", "/v1/queue/drop", map[string]bool{"everything": true})
	_, text := call[done](ctx, c, "POST", "/v1/queue/drop", strings.NewReader("all"))
	for name, err := range map[string]error{"nothing selected": none, "ids and all": both,
		"unknown key": unknown, "not JSON": text, "unknown pause": c.Pause(ctx, "hub")} {
		var got *Error
		if !errors.As(err, &got) || got.Code != CodeBadRequest {
			t.Errorf("%s gives %v", name, err)
		}
	}
	if calls := control.called(); len(calls) > 0 {
		t.Errorf("the daemon was asked for %v", calls)
	}
}

func TestClientKnowsThatNothingRuns(t *testing.T) {
	t.Parallel()
	_, err := NewClient(filepath.Join(t.TempDir(), "control.sock")).Status(t.Context())
	if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "control.sock") {
		t.Errorf("got %v", err)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, runningStatus())
	asked := make(chan struct{})
	s.opts.Source = func(ctx context.Context) Status { close(asked); <-ctx.Done(); return Status{} }
	c := serveControl(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { <-asked; cancel() }()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestProfilesAreOnTheControlSocket(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, runningStatus())
	if code, text := get(t, s.ControlHandler(), "/debug/pprof/goroutine?debug=1"); code != 200 ||
		!strings.Contains(text, "goroutine profile") {
		t.Errorf("answered %d %s", code, text)
	}
	if code, _ := get(t, s.Handler(), "/debug/pprof/goroutine?debug=1"); code != 404 {
		t.Errorf("the read-only port answers %d", code)
	}
}

func TestTailEndsWithItsClientAndWithTheRelay(t *testing.T) {
	t.Parallel()
	s, _, control := newTestServer(t, runningStatus())
	c := serveControl(t, s)
	var notices []string
	enough := errors.New("enough")
	err := c.Tail(t.Context(), []string{"build.*", "#"}, func(a inspect.Arrival) error {
		if a.MessageID != "a" || fmt.Sprint(a.Props["id"]) != "1152921504606846976" {
			t.Errorf("arrived: %+v", a)
		}
		return enough
	}, func(text string) error { notices = append(notices, text); return nil })
	if !errors.Is(err, enough) || len(notices) != 1 || control.called()[0] != "tail build.* #" {
		t.Errorf("%v, %q, %q", err, notices, control.called())
	}
	ended, arrived := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		ended <- c.Tail(t.Context(), nil, func(inspect.Arrival) error { arrived <- struct{}{}; return nil },
			func(string) error { return nil })
	}()
	<-arrived
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("the stop waited for a stream that has no end: %v", err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "the relay has stopped") {
		t.Errorf("ended with %v", err)
	}
}
