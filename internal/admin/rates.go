package admin

import (
	"sync"
	"time"
)

// Rates are messages per second, over the last minute and the last five.
type Rates struct {
	Minute      Rate `json:"minute"`
	FiveMinutes Rate `json:"five_minutes"`
}

// Rate is what went through the relay, per second.
type Rate struct {
	Events   float64 `json:"events"` // taken from the hub
	Sent     float64 `json:"sent"`   // accepted by brokers, drained ones included
	Queued   float64 `json:"queued"`
	Drained  float64 `json:"drained"`
	Failed   float64 `json:"failed"` // attempts
	NotTaken float64 `json:"not_taken"`
}

// Minute is what went through the relay in one minute.
type Minute struct {
	Time     time.Time `json:"time"` // its beginning
	Sent     int64     `json:"sent"`
	Queued   int64     `json:"queued"`
	NotTaken int64     `json:"not_taken"`
}

// totals are counts since the start.
type totals struct {
	events, sent, queued, drained, failed, notTaken int64
}

func (t totals) minus(o totals) totals {
	return totals{t.events - o.events, t.sent - o.sent, t.queued - o.queued, t.drained - o.drained,
		t.failed - o.failed, t.notTaken - o.notTaken}
}

type sample struct {
	at time.Time
	totals
}

const (
	sampleEvery = 2 * time.Second // samples closer together are not kept
	sampleFor   = 5 * time.Minute
	minutesKept = 60
)

// history turns samples of the totals into rates and minutes. It is safe for concurrent use.
type history struct {
	mu      sync.Mutex
	samples []sample // of the last five minutes, oldest first; guarded by mu, as is all below
	latest  sample
	minutes []Minute // oldest first
}

// add takes the totals at a time. Times do not run backwards.
func (h *history) add(at time.Time, t totals) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := sample{at, t}
	if h.latest.at.IsZero() {
		h.latest = sample{at: at} // what came before the first sample counts as news of its minute
		h.samples = append(h.samples, h.latest)
	}
	h.addMinute(at.Truncate(time.Minute), t.minus(h.latest.totals))
	h.latest = now
	if at.Sub(h.samples[len(h.samples)-1].at) >= sampleEvery {
		h.samples = append(h.samples, now)
	}
	// One sample older than the window stays, so that the window is covered.
	for len(h.samples) > 1 && at.Sub(h.samples[1].at) >= sampleFor {
		h.samples = h.samples[1:]
	}
}

func (h *history) addMinute(minute time.Time, d totals) {
	switch last := len(h.minutes) - 1; {
	case last < 0, minute.Sub(h.minutes[last].Time) >= minutesKept*time.Minute:
		h.minutes = []Minute{{Time: minute}}
	default:
		for next := h.minutes[last].Time; next.Before(minute); {
			next = next.Add(time.Minute)
			h.minutes = append(h.minutes, Minute{Time: next})
		}
	}
	if over := len(h.minutes) - minutesKept; over > 0 {
		h.minutes = append(h.minutes[:0], h.minutes[over:]...)
	}
	m := &h.minutes[len(h.minutes)-1]
	m.Sent += d.sent
	m.Queued += d.queued
	m.NotTaken += d.notTaken
}

// rates gives the rates up to the latest sample and a copy of the minutes.
func (h *history) rates() (Rates, []Minute) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Rates{Minute: h.over(time.Minute), FiveMinutes: h.over(sampleFor)}, append([]Minute{}, h.minutes...)
}

// over gives the rate from the youngest sample that is at least d old, or the oldest there is.
func (h *history) over(d time.Duration) Rate {
	if len(h.samples) == 0 {
		return Rate{}
	}
	from := h.samples[0]
	for _, s := range h.samples {
		if h.latest.at.Sub(s.at) < d {
			break
		}
		from = s
	}
	seconds := h.latest.at.Sub(from.at).Seconds()
	if seconds <= 0 {
		return Rate{}
	}
	t := h.latest.minus(from.totals)
	per := func(n int64) float64 { return float64(n) / seconds }
	return Rate{Events: per(t.events), Sent: per(t.sent), Queued: per(t.queued), Drained: per(t.drained),
		Failed: per(t.failed), NotTaken: per(t.notTaken)}
}
