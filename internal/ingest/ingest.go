// Package ingest is the hub API: it takes commits over HTTP/1.1 on a Unix socket and answers 200 only when
// every event has been dealt with. Who may connect is the matter of the socket's file. It never translates,
// sends or stores by itself, and never keeps a commit after its answer.
package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"koji-relay/internal/message"
)

// Options configure a Server. All but Events are required.
type Options struct {
	// Decode reads the form of the hub API. It keeps parts of body.
	Decode func(body []byte) (message.Commit, error)
	// Publish deals with one commit: when it returns, each event not named in Receipt.NotTaken has been
	// accepted by a broker, stored, set aside or skipped. It bounds itself and is called concurrently.
	Publish func(ctx context.Context, c message.Commit) message.Receipt
	// Events gives the patterns of the callbacks that make messages; every answer names them to the hub.
	Events func() string
	// MaxRequestBytes bounds one request body, MaxInflightBytes the memory of all requests under way: their
	// bodies, events and messages.
	MaxRequestBytes  int64
	MaxInflightBytes int64
	Logger           *slog.Logger
}

// bodyTimeout bounds the arrival of a request. The hub plugin sends at once, and gives up after seconds.
const bodyTimeout = 5 * time.Second

// Server is the hub API. Make one with New.
type Server struct {
	opts    Options
	account *account
	http    *http.Server
	intake  intake

	mu    sync.Mutex     // guards the field below
	since map[string]int // requests refused since the last line about their code
}

// tellEvery is how often the log has a line about requests that are refused for one reason.
const tellEvery = 10 * time.Second

// tell logs the first request that is refused for a reason, and after tellEvery how many were like it.
func (s *Server) tell(r *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, told := s.since[r.Code]; told {
		s.since[r.Code]++
		return
	}
	s.opts.Logger.Warn("commit refused", "code", r.Code, "error", r.Error)
	s.since[r.Code] = 0
	time.AfterFunc(tellEvery, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := s.since[r.Code]; n > 0 {
			s.opts.Logger.Warn("commits refused", "code", r.Code, "commits", n, "within", tellEvery)
		}
		delete(s.since, r.Code)
	})
}

// New makes a Server; it listens on nothing until Serve.
func New(opts Options) *Server {
	s := &Server{opts: opts, account: newAccount(opts.MaxInflightBytes), since: make(map[string]int)}
	s.intake.busy = make(map[net.Conn]*time.Time)
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/commits", s.commits)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, refusal{Code: "NOT_FOUND", Error: "no such path; the hub API is POST " +
			"/v1/commits"})
	})
	s.http = &http.Server{
		Handler:     mux,
		ReadTimeout: bodyTimeout,
		IdleTimeout: 30 * time.Second,
		ConnState:   s.intake.follow,
		ErrorLog:    slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug),
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

// SetMaxInflightBytes changes Options.MaxInflightBytes for requests to come.
func (s *Server) SetMaxInflightBytes(n int64) { s.account.setLimit(n) }

// Close drops every connection at once; their hub workers read no answer and use the outbox.
func (s *Server) Close() error { return s.http.Close() }

// commits takes one commit (POST), or says only which callbacks make messages (GET). The order of its steps
// is its guarantee: nothing is done before the whole body is read and decoded, and nothing but the receipt
// makes the answer a 200.
func (s *Server) commits(w http.ResponseWriter, r *http.Request) {
	if s.opts.Events != nil {
		w.Header().Set("Koji-Relay-Events", s.opts.Events())
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet:
		w.WriteHeader(http.StatusNoContent) // its header says it
		return
	default:
		w.Header().Set("Allow", "GET, POST")
		answer(w, http.StatusMethodNotAllowed, refusal{Code: "METHOD_NOT_ALLOWED", Error: "use POST"})
		return
	}
	hold := s.account.open(func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now()) })
	defer hold.close()
	commit, refused := s.read(r, hold)
	if refused != nil {
		s.tell(refused)
		w.Header().Set("Connection", "close") // the rest of the body is not worth reading
		answer(w, refused.status, refused)
		return
	}
	// A hub worker that stops waiting does not undo what is under way: it may be gone for good, and its commit
	// with it. The work is bounded by itself.
	receipt := s.opts.Publish(context.WithoutCancel(r.Context()), commit)
	if len(receipt.NotTaken) > 0 {
		answer(w, http.StatusServiceUnavailable,
			refusal{Code: "NOT_TAKEN", NotTaken: receipt.NotTaken, Error: receipt.Reason})
		return
	}
	answer(w, http.StatusOK, taken{receipt.Dead, receipt.Queued, receipt.Sent, receipt.Skipped})
}

// taken is a 200: how many events became what.
type taken struct {
	Dead    int `json:"dead"`
	Queued  int `json:"queued"`
	Sent    int `json:"sent"`
	Skipped int `json:"skipped"`
}

// refusal is every answer but 200. NotTaken is absent where nothing was done at all.
type refusal struct {
	status   int
	Code     string `json:"code"`
	NotTaken []int  `json:"not_taken,omitempty"`
	Error    string `json:"error"`
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here is the hub worker having gone away; it then uses the outbox.
	_ = json.NewEncoder(w).Encode(v)
}
