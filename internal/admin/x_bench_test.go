package admin

import (
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// BenchmarkHooks models one commit of one event that a broker accepts: what the metrics add to each
// hand-over.
func BenchmarkHooks(b *testing.B) {
	m, recent := NewMetrics("1", ""), NewRecent(100)
	commit := message.Commit{Events: []message.Event{{Callback: "postTag"}}}
	b.ReportAllocs()
	for b.Loop() {
		m.CommitTaken(inspect.ViaSocket, commit, message.Receipt{Sent: 1}, time.Millisecond)
		m.MessageSent("build.tag", "broker1.example.com:5671", time.Millisecond)
		recent.Add(Fate{Address: "build.tag", Fate: Sent})
	}
}

// BenchmarkReads models a scrape, a look at the page and a health check of a relay that has used forty
// addresses.
func BenchmarkReads(b *testing.B) {
	source := &fakeSource{status: runningStatus()}
	s := New(Options{Source: source.get, Metrics: NewMetrics("1", ""), Recent: NewRecent(100),
		Control: &fakeControl{}, Logger: discard})
	for i := range 40 {
		s.opts.Metrics.MessageSent(fmt.Sprint("address", i), "broker1.example.com:5671", time.Millisecond)
	}
	fill(s, time.Now())
	s.refresh(b.Context())
	for _, path := range []string{"/metrics", "/", "/ready"} {
		b.Run(path, func(b *testing.B) {
			h := s.Handler()
			b.ReportAllocs()
			for b.Loop() {
				w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
				r.Host = "localhost"
				h.ServeHTTP(w, r)
				if w.Code != 200 {
					b.Fatalf("answered %d", w.Code)
				}
			}
		})
	}
}
