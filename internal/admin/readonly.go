package admin

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler answers read-only requests. It is for a loopback port, where every user of the host, and every web
// page that a browser on it shows, can send requests: so it only reads, only answers for local names, and
// lets no other site read the answers.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.handleReads(mux, func(*http.Request) *Status { return s.Status() })
	return localNamesOnly(getOnly(mux))
}

// handleReads adds the paths that only read.
func (s *Server) handleReads(mux *http.ServeMux, status func(*http.Request) *Status) {
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]bool{"live": true})
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		now, code := status(r), http.StatusOK
		if !now.Ready {
			code = http.StatusServiceUnavailable
		}
		answer(w, code, struct {
			Ready   bool     `json:"ready"`
			State   State    `json:"state"`
			Reasons []Reason `json:"reasons"`
		}{now.Ready, now.State, now.Reasons})
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, status(r))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.opts.Metrics.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelError),
		MaxRequestsInFlight: 8, // scrapers, not a flood
		Timeout:             10 * time.Second,
	}))
	mux.HandleFunc("GET /search", s.search)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { s.page(w, status(r)) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, &Error{Code: CodeNotFound, Text: "no such path; try /, /search, /status, /ready, /live or " +
			"/metrics"})
	})
}

// getOnly refuses every method that could be meant to change something.
func getOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			refuse(w, &Error{Code: CodeMethod, Text: "this port only reads; use the koji-relay commands to change " +
				"something"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// localNamesOnly refuses requests for a name that is not this host's loopback: a page of another site can
// make its own name point here (DNS rebinding), and would then be allowed to read the answers.
func localNamesOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if !localName(r.Host) {
			refuse(w, &Error{Code: CodeForeignHost,
				Text: "asked for by a name that is not localhost, 127.0.0.1 or [::1]; a proxy must set the Host header"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// answer writes v as JSON. A value that has no JSON form becomes an error, not half an answer.
func answer(w http.ResponseWriter, code int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		e := &Error{Code: CodeFailed, Text: "write the answer: " + err.Error()}
		code = e.status()
		text, _ = json.Marshal(e)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // an error here is the client having gone away
}

func refuse(w http.ResponseWriter, e *Error) { answer(w, e.status(), e) }
