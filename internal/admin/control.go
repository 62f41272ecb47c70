package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"

	"koji-relay/internal/inspect"
)

// Control is what the daemon does for its administrator. Its methods are called concurrently. An *Error comes
// back to the client as it is; any other error has the code FAILED.
type Control interface {
	// Reload reads the configuration again. After errors, which the result lists, the old one stays in effect.
	Reload(ctx context.Context) Reload
	// SetLogLevel takes one of config's words (debug, info, warn, error) until the next start or reload.
	SetLogLevel(ctx context.Context, level string) error
	// Pause and Resume may be called again without effect.
	Pause(ctx context.Context, what Pausable) error
	Resume(ctx context.Context, what Pausable) error
	// Check gives a report of the configuration file as the relay reads it now, as JSON; with connecting also of
	// what its brokers and its database answer.
	Check(ctx context.Context, connecting bool) (any, error)
	// Tail calls each for every message that arrives from the brokers, and notice with what is worth knowing
	// about the subscriptions, one at a time, until ctx ends.
	Tail(ctx context.Context, patterns []string, each func(inspect.Arrival) error,
		notice func(string) error) error
	// SendTest sends a test message the way that commits go, and waits for it to come back.
	SendTest(ctx context.Context) (inspect.TestSent, error)
	QueueControl
	HistoryControl
}

// QueueControl looks at the queue and the dead letters, and changes them.
type QueueControl interface {
	// List gives the items in order, oldest first, without props and body. An error of each ends it and comes
	// back.
	List(ctx context.Context, box inspect.Box, opts inspect.ListOptions, each func(inspect.Item) error) error
	// Show gives one item with props and body.
	Show(ctx context.Context, box inspect.Box, id string) (inspect.Item, error)
	// Retry makes messages due now; dead letters return to the queue.
	Retry(ctx context.Context, box inspect.Box, which inspect.Selection) (inspect.Changed, error)
	// Drop deletes.
	Drop(ctx context.Context, box inspect.Box, which inspect.Selection) (inspect.Changed, error)
	// Export writes queue and dead letters as JSON Lines, and Import reads them. Import is idempotent on
	// message-id; after an error the lines before it may have been stored.
	Export(ctx context.Context, w io.Writer) error
	Import(ctx context.Context, r io.Reader) (inspect.Imported, error)
}

// Pausable is what can be paused.
type Pausable string

// Drain is the sending of queued messages; Publish is all sending: commits are then queued.
const (
	Drain   Pausable = "drain"
	Publish Pausable = "publish"
)

// resultTrailer ends a stream of JSON Lines: "ok", or an Error in JSON. A stream without it was cut short.
const resultTrailer = "Koji-Relay-Result"

// maxActionBytes bounds the JSON of an action: some 200,000 ids.
const maxActionBytes = 8 << 20

// ControlHandler answers on the control socket, whose file mode says who may connect. It reads what Handler
// does, but asks Source first, so that what a command has just changed is seen.
func (s *Server) ControlHandler() http.Handler {
	mux := http.NewServeMux()
	s.handleReads(mux, func(r *http.Request) *Status {
		s.refresh(r.Context())
		return s.Status()
	})
	c := s.opts.Control
	mux.HandleFunc("POST /v1/reload", s.action(func(r *http.Request) (any, error) {
		return c.Reload(r.Context()), nil
	}))
	mux.HandleFunc("POST /v1/log-level", s.action(func(r *http.Request) (any, error) {
		in, err := decode[levelRequest](r)
		if err != nil {
			return nil, err
		}
		return done{}, c.SetLogLevel(r.Context(), in.Level)
	}))
	for path, do := range map[string]func(context.Context, Pausable) error{
		"/v1/pause": c.Pause, "/v1/resume": c.Resume} {
		mux.HandleFunc("POST "+path, s.action(func(r *http.Request) (any, error) {
			in, err := decode[pauseRequest](r)
			if err == nil && in.What != Drain && in.What != Publish {
				err = &Error{Code: CodeBadRequest, Text: fmt.Sprintf("what is %q, and must be drain or publish", in.What)}
			}
			if err != nil {
				return nil, err
			}
			return done{}, do(r.Context(), in.What)
		}))
	}
	mux.HandleFunc("POST /v1/check", s.action(func(r *http.Request) (any, error) {
		in, err := decode[checkRequest](r)
		if err != nil {
			return nil, err
		}
		return c.Check(r.Context(), in.Connect)
	}))
	mux.HandleFunc("POST /v1/send-test",
		s.action(func(r *http.Request) (any, error) { return c.SendTest(r.Context()) }))
	s.handleTail(mux, c)
	s.handleQueue(mux, c)
	s.handleHistory(mux, c)
	handlePprof(mux)
	return mux
}

type (
	levelRequest struct {
		Level string `json:"level"`
	}
	pauseRequest struct {
		What Pausable `json:"what"`
	}
	checkRequest struct {
		Connect bool `json:"connect,omitempty"`
	}
	done struct{}
)

func (s *Server) handleQueue(mux *http.ServeMux, c QueueControl) {
	for _, box := range []inspect.Box{inspect.QueueBox, inspect.DeadBox} {
		path := "/v1/" + string(box)
		mux.HandleFunc("POST "+path+"/list", func(w http.ResponseWriter, r *http.Request) {
			opts, err := decode[inspect.ListOptions](r)
			if err != nil {
				refuse(w, asError(err))
				return
			}
			s.stream(w, func(out *bufio.Writer) error {
				lines := json.NewEncoder(out)
				return c.List(r.Context(), box, opts, func(i inspect.Item) error { return lines.Encode(i) })
			})
		})
		mux.HandleFunc("GET "+path+"/{id}", func(w http.ResponseWriter, r *http.Request) {
			item, err := c.Show(r.Context(), box, r.PathValue("id"))
			if err != nil {
				refuse(w, asError(err))
				return
			}
			answer(w, http.StatusOK, item)
		})
		mux.HandleFunc("POST "+path+"/retry", s.change("retry", box, c.Retry))
		mux.HandleFunc("POST "+path+"/drop", s.change("drop", box, c.Drop))
	}
	mux.HandleFunc("GET /v1/export", func(w http.ResponseWriter, r *http.Request) {
		s.stream(w, func(out *bufio.Writer) error { return c.Export(r.Context(), out) })
	})
	mux.HandleFunc("POST /v1/import", s.action(func(r *http.Request) (any, error) {
		return c.Import(r.Context(), r.Body)
	}))
}

// handlePprof adds Go's profiles; a profile shows memory, and so is for the socket's owner only.
func handlePprof(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

type boxChange func(context.Context, inspect.Box, inspect.Selection) (inspect.Changed, error)

// change answers with what do did to the items that the request selects. Who did it is logged with the
// number.
func (s *Server) change(verb string, box inspect.Box, do boxChange) http.HandlerFunc {
	return s.act(func(r *http.Request) (any, error) {
		which, err := decode[inspect.Selection](r)
		if err == nil && !which.Clear() {
			err = &Error{Code: CodeBadRequest, Text: "give ids, or all, or conditions (address, reason, before)"}
		}
		if err != nil {
			return nil, err
		}
		changed, err := do(r.Context(), box, which)
		if !which.DryRun && changed.Count > 0 {
			LogChange(s.opts.Logger.With(UserOf(r.Context())), verb, box, which, changed)
		}
		return changed, err
	})
}

// LogChange logs what an administrator did to queue or dead letters.
func LogChange(log *slog.Logger, verb string, box inspect.Box, which inspect.Selection,
	changed inspect.Changed) {
	by := []any{"action", verb, "box", string(box), "count", changed.Count, "missing", len(changed.Missing)}
	switch {
	case which.All:
		by = append(by, "selected", "all")
	case len(which.IDs) > 0:
		by = append(by, "selected", strings.Join(which.IDs[:min(len(which.IDs), 10)], " "))
	}
	if which.Address != "" {
		by = append(by, "address", which.Address)
	}
	if which.Reason != "" {
		by = append(by, "reason", which.Reason)
	}
	if !which.Before.IsZero() {
		by = append(by, "before", which.Before)
	}
	log.Info("changed by an administrator", by...)
}

// action is act, and logs what was done.
func (s *Server) action(do func(*http.Request) (any, error)) http.HandlerFunc {
	return s.act(func(r *http.Request) (any, error) {
		result, err := do(r)
		if err == nil {
			s.opts.Logger.Info("control action done", UserOf(r.Context()), "action", r.URL.Path)
		}
		return result, err
	})
}

// act answers with what do gives, in JSON; the status page shows the change at once. A failure is logged.
func (s *Server) act(do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		result, err := do(r)
		s.Refresh()
		if err != nil {
			e := asError(err)
			s.opts.Logger.Warn("control action failed", UserOf(r.Context()), "action", r.URL.Path, "code", e.Code,
				"error", err)
			refuse(w, e)
			return
		}
		answer(w, http.StatusOK, result)
	}
}

// stream answers with the JSON Lines that write gives. An error before the first bytes is an answer of its
// own, a later one the trailer's value.
func (s *Server) stream(w http.ResponseWriter, write func(*bufio.Writer) error) {
	w.Header().Set("Trailer", resultTrailer)
	w.Header().Set("Content-Type", "application/jsonl")
	started := &startedWriter{w: w}
	out := bufio.NewWriterSize(started, 64<<10)
	err := write(out)
	if err == nil {
		err = out.Flush()
	}
	switch {
	case err == nil:
		if !started.yes {
			w.WriteHeader(http.StatusOK) // of an empty list
		}
		w.Header().Set(resultTrailer, "ok")
	case !started.yes:
		w.Header().Del("Trailer")
		refuse(w, asError(err))
	default:
		out.Flush()
		text, _ := json.Marshal(asError(err))
		w.Header().Set(resultTrailer, string(text))
	}
}

// startedWriter remembers whether anything was written.
type startedWriter struct {
	w   io.Writer
	yes bool
}

func (s *startedWriter) Write(p []byte) (int, error) {
	s.yes = true
	return s.w.Write(p)
}

// decode reads the JSON of an action. An absent body means the zero value.
func decode[T any](r *http.Request) (T, error) {
	var v T
	dec := json.NewDecoder(io.LimitReader(r.Body, maxActionBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil && !errors.Is(err, io.EOF) {
		return v, &Error{Code: CodeBadRequest, Text: "read the request: " + err.Error()}
	}
	return v, nil
}
