package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// witness notes what a relay says of itself while things go wrong: whether it is ready, and
// what it has counted, twice a second.
type witness struct {
	address string
	client  *http.Client
	mu      sync.Mutex // guards said
	said    []readiness
	counted *counted
}

type readiness struct {
	at    time.Time
	ready bool
	why   string
}

func newWitness(c *chaos, i int) *witness {
	port := freePorts(c)
	return &witness{counted: newCounted(), address: "127.0.0.1:" + strconv.Itoa(port),
		client: &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// watch asks until ctx ends.
func (w *witness) watch(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ready, why := w.ask()
		w.count()
		w.mu.Lock()
		w.said = append(w.said, readiness{time.Now(), ready, why})
		w.mu.Unlock()
	}
}

func (w *witness) ask() (ready bool, why string) {
	response, err := w.client.Get("http://" + w.address + "/ready")
	if err != nil {
		return false, err.Error()
	}
	defer response.Body.Close()
	var said struct {
		Ready   bool              `json:"ready"`
		Reasons []json.RawMessage `json:"reasons"`
	}
	if err := json.NewDecoder(response.Body).Decode(&said); err != nil {
		return false, err.Error()
	}
	return said.Ready, fmt.Sprintf("%s", said.Reasons)
}

// readyThrough reports whether the relay said nothing but that it was ready from one time to another.
func (w *witness) readyThrough(from, to time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.said {
		if s.at.After(from) && s.at.Before(to) && !s.ready {
			return false
		}
	}
	return true
}

// count notes what the relay has counted so far, if it answers.
func (w *witness) count() {
	process := w.counted.process()
	if m, err := w.scrape(); err == nil {
		w.counted.see(process, m)
	}
}

// scrape reads the metrics.
func (w *witness) scrape() (metrics, error) {
	response, err := w.client.Get("http://" + w.address + "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	return parser.TextToMetricFamilies(response.Body)
}
