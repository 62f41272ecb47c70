// Package ingest is the hub API: it takes commits over HTTP/1.1 on a Unix socket and answers 200 only when
// every event has been dealt with. Who may connect is the matter of the socket's file. It never translates,
// sends or stores by itself, and never keeps a commit after its answer.
package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"koji-relay/internal/message"
)

// Taker deals with one commit: when Take returns, each event not named in Receipt.NotTaken has been
// accepted by a broker, stored, set aside or skipped. Take is called concurrently.
type Taker interface {
	Take(ctx context.Context, c message.Commit) message.Receipt
}

// Options configure a Server. All but Observe are required.
type Options struct {
	Decode func(body []byte) (message.Commit, error)
	Taker  Taker
	// MaxRequestBytes bounds one request body, MaxInflightBytes the bodies of all requests under way.
	MaxRequestBytes  int64
	MaxInflightBytes int64
	Logger           *slog.Logger
	// Observe, when set, is told of every commit that was taken, with the time from its last byte to its
	// answer.
	Observe func(c message.Commit, r message.Receipt, took time.Duration)
}

// Server is the hub API. Make one with New.
type Server struct {
	opts     Options
	inflight *semaphore.Weighted
	http     *http.Server
	intake   intake
}

// New makes a Server; it listens on nothing until Serve.
func New(opts Options) *Server {
	s := &Server{opts: opts, inflight: semaphore.NewWeighted(opts.MaxInflightBytes)}
	s.intake.busy = make(map[net.Conn]*time.Time)
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/commits", s.commits)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "NOT_FOUND", "no such path; the hub API is POST /v1/commits", nil)
	})
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute, // the hub plugin gives up after seconds; this frees what it left
		IdleTimeout:       5 * time.Minute,
		ConnState:         s.intake.follow,
		ErrorLog:          slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until Shutdown or Close; it then returns nil. It may be called for several listeners
// at once.
func (s *Server) Serve(l net.Listener) error {
	if !s.intake.open(l) {
		return l.Close()
	}
	defer s.intake.serving.Done()
	if err := s.http.Serve(l); !s.intake.isClosed() && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the hub API on %s: %w", l.Addr(), err)
	}
	return nil
}

// Close drops every connection at once; their hub workers read no answer and use the outbox.
func (s *Server) Close() error { return s.http.Close() }

// commits takes one commit. The order of its steps is its guarantee: nothing is done before the whole body
// is read and decoded, and nothing but Take's receipt makes the answer a 200.
func (s *Server) commits(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "use POST", nil)
		return
	}
	size := r.ContentLength
	if size < 0 { // chunked: no telling how much will come
		size = s.opts.MaxRequestBytes
	}
	if size > s.opts.MaxRequestBytes {
		s.tooLarge(w)
		return
	}
	if !s.inflight.TryAcquire(size) {
		s.opts.Logger.Warn("commit refused: too many bytes in flight", "max_inflight_bytes", s.opts.MaxInflightBytes)
		refuse(w, http.StatusServiceUnavailable, "OVERLOADED", fmt.Sprintf(
			"more than max_inflight_bytes (%d) under way; try again", s.opts.MaxInflightBytes), nil)
		return
	}
	defer s.inflight.Release(size)

	body, err := readBody(w, r, s.opts.MaxRequestBytes)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		s.tooLarge(w)
		return
	case err != nil:
		refuse(w, http.StatusBadRequest, "BAD_REQUEST", "read the request body: "+err.Error(), nil)
		return
	}
	commit, err := s.opts.Decode(body)
	if err != nil {
		s.opts.Logger.Error("commit refused: not in the form of the hub API", "error", err)
		refuse(w, http.StatusBadRequest, "BAD_REQUEST", err.Error(), nil)
		return
	}

	start := time.Now()
	// A hub worker that stops waiting does not undo what is under way: a put cut short would be a message
	// sent twice. Take bounds itself.
	receipt := s.opts.Taker.Take(context.WithoutCancel(r.Context()), commit)
	if s.opts.Observe != nil {
		s.opts.Observe(commit, receipt, time.Since(start))
	}
	if len(receipt.NotTaken) > 0 {
		refuse(w, http.StatusServiceUnavailable, "NOT_TAKEN", receipt.Reason, receipt.NotTaken)
		return
	}
	answer(w, http.StatusOK, map[string]int{
		"sent": receipt.Sent, "queued": receipt.Queued, "skipped": receipt.Skipped, "dead": receipt.Dead,
	})
}

func (s *Server) tooLarge(w http.ResponseWriter) {
	// The rest of the body is not worth reading.
	w.Header().Set("Connection", "close")
	refuse(w, http.StatusRequestEntityTooLarge, "TOO_LARGE", fmt.Sprintf(
		"the request is larger than max_request_bytes (%d); post the commit in several requests with event numbers",
		s.opts.MaxRequestBytes), nil)
}

// readBody reads the whole body into one slice, allocated once where its length is announced.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	src := http.MaxBytesReader(w, r.Body, limit)
	if r.ContentLength < 0 {
		return io.ReadAll(src)
	}
	body := make([]byte, r.ContentLength)
	_, err := io.ReadFull(src, body)
	return body, err
}

// refusal is every answer but 200. NotTaken is absent where nothing was done at all.
type refusal struct {
	Code     string `json:"code"`
	NotTaken []int  `json:"not_taken,omitempty"`
	Error    string `json:"error"`
}

func refuse(w http.ResponseWriter, status int, code, text string, notTaken []int) {
	answer(w, status, refusal{Code: code, NotTaken: notTaken, Error: text})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here is the hub worker having gone away; it then uses the outbox.
	_ = json.NewEncoder(w).Encode(v)
}
