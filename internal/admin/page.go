package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

var (
	//go:embed page/page.html
	pageHTML string
	//go:embed page/page.css
	pageCSS string
	//go:embed page/page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	// Only the page's own style and script run, by their digests, and only this port is asked for anything.
	pagePolicy = strings.Join([]string{"default-src 'none'", "style-src " + digest(pageCSS),
		"script-src " + digest(pageJS), "connect-src 'self'", "img-src data:", "base-uri 'none'",
		"form-action 'self'", "frame-ancestors 'none'"}, "; ")
)

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// shownMessages bounds the page; /status has the rest.
const shownMessages = 30

// page answers with the status page. It is whole without scripts; its script fetches it again and exchanges
// what changed.
func (s *Server) page(w http.ResponseWriter, status *Status) {
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, newView(status, &s.day, time.Now())); err != nil {
		s.opts.Logger.Error("the status page cannot be shown", "error", err)
		refuse(w, &Error{Code: CodeFailed, Text: "the page could not be made; see the log, and /status"})
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	_, _ = out.WriteTo(w) // an error here is the reader having gone away
}

// view is what the template shows: a Status, and what is worked out from it.
type view struct {
	*Status
	now time.Time

	Style  template.CSS
	Script template.JS

	Headline         headline
	BrokersUp        int
	ActiveBroker     string
	Chart            chart
	Backlog, Ages    plot
	Strips           map[string]strip // by broker
	Topics           []topicView
	Shown            []Fate
	DeadReasons      []reasonCount
	Chosen, Defaults []inspect.Setting
}

type headline struct{ Class, Word, Sentence string }

type topicView struct {
	inspect.Topic
	Percent int // of the largest
}

type reasonCount struct {
	Reason string
	Count  int64
}

func newView(s *Status, d *day, now time.Time) *view {
	v := &view{Status: s, now: now, Style: template.CSS(pageCSS), Script: template.JS(pageJS),
		Headline: newHeadline(s), Chart: newChart(s.Minutes, now),
		Shown: s.Recent[:min(len(s.Recent), shownMessages)]}
	v.Backlog, v.Ages = newPlots(d.seen(now), s.Queue.MaxAge)
	v.Strips = make(map[string]strip, len(s.Brokers))
	for _, b := range s.Brokers {
		v.Strips[b.Name] = newStrip(d.states(b.Name, now))
		if b.State == inspect.Up {
			v.BrokersUp++
		}
		if b.Active {
			v.ActiveBroker = b.Name
		}
	}
	for _, t := range inspect.LargestFirst(s.Queue.ByTopic) {
		v.Topics = append(v.Topics, topicView{Topic: t})
		i := len(v.Topics) - 1
		v.Topics[i].Percent = int(max(1, 100*t.Bytes/max(1, v.Topics[0].Bytes)))
	}
	for reason, n := range s.Queue.DeadLettersByReason {
		v.DeadReasons = append(v.DeadReasons, reasonCount{reason, n})
	}
	slices.SortFunc(v.DeadReasons, func(a, b reasonCount) int {
		if a.Count != b.Count {
			return int(b.Count - a.Count)
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	for _, setting := range s.Config.Settings {
		if setting.Source == "default" {
			v.Defaults = append(v.Defaults, setting)
		} else {
			v.Chosen = append(v.Chosen, setting)
		}
	}
	return v
}

// Headline is the first line of the page: how the relay is, and what that means for commits.
func (s *Status) Headline() string {
	word, sentence := s.Summary()
	return word + ". " + sentence
}

func newHeadline(s *Status) headline {
	word, sentence := s.Summary()
	class := map[State]string{OK: "ok", Degraded: "warn", NotReady: "bad"}[s.State]
	if s.Phase != Running && s.Phase != Stopping {
		class = "plain"
	}
	return headline{class, word, sentence}
}

// QueueOff reports [queue] enabled = off. While the relay starts that is not known.
func (v *view) QueueOff() bool { return v.Phase != Starting && !v.Queue.Enabled }

// BrokerClass gives the colour of a broker's state.
func (v *view) BrokerClass(s inspect.BrokerState) string {
	switch s {
	case inspect.Up:
		return "ok"
	case inspect.Connecting, inspect.Stalled:
		return "warn"
	}
	return "bad"
}

// FateClass gives the colour of a fate.
func (v *view) FateClass(f FateKind) string {
	switch f {
	case Sent, Drained:
		return "ok"
	case Queued:
		return "warn"
	case Dropped:
		return "plain"
	}
	return "bad"
}

// FateWord gives a fate in words.
func (v *view) FateWord(f FateKind) string {
	switch f {
	case Drained:
		return "sent late"
	case NotTaken:
		return "handed back"
	}
	return string(f)
}

// Count writes a number with its thousands apart.
func (v *view) Count(n int64) string { return countText(n) }

// Noun gives a noun as it stands beside a number.
func (v *view) Noun(n int64, noun string) string { return inspect.Noun(n, noun) }

// Carries says how large a message a broker takes, and how many links it has.
func (v *view) Carries(b inspect.Broker) string {
	if b.Links == 0 {
		return ""
	}
	text := inspect.Count(b.Links, "link")
	if b.MaxMessageSize > 0 {
		text += fmt.Sprintf(", messages up to %s", v.Size(int64(min(b.MaxMessageSize, math.MaxInt64))))
	}
	return text
}

func countText(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}

// Size writes bytes in the unit that suits them; number and unit stay on one line.
func (v *view) Size(n int64) string { return strings.Replace(inspect.Size(n), " ", "\u00a0", 1) }

// PerMinute writes a rate per second as one per minute.
func (v *view) PerMinute(perSecond float64) string {
	if f := perSecond * 60; f > 0 && f < 9.95 {
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return v.Count(int64(perSecond*60 + .5))
}

// PerMinutes writes the columns of a rate.
func (v *view) PerMinutes(r Rate) []string {
	return []string{v.PerMinute(r.Events), v.PerMinute(r.Sent), v.PerMinute(r.Queued), v.PerMinute(r.Drained),
		v.PerMinute(r.Failed)}
}

// Age says how long ago a time was.
func (v *view) Age(t time.Time) string {
	return inspect.Duration(max(0, v.now.Sub(t).Truncate(time.Second)))
}

// Until says when a time will be.
func (v *view) Until(t time.Time) string {
	if d := t.Sub(v.now).Truncate(time.Second); d > 0 {
		return "in " + inspect.Duration(d)
	}
	return "now"
}

// Clock writes the time of day, and the day where it is not today.
func (v *view) Clock(t time.Time) string {
	t = t.UTC()
	if t.Format(time.DateOnly) == v.now.UTC().Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// Day writes a date.
func (v *view) Day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// chart is the last hour in bars, for an SVG of 600 by 100 units.
type chart struct {
	Bars                   []chartBar
	Label, Top             string
	Sent, Queued, NotTaken int64
}

type chartBar struct {
	Class     string
	X         int
	Y, Height float64
}

func newChart(minutes []Minute, now time.Time) chart {
	const width, height = 10, 100.0
	var c chart
	top := int64(0)
	for _, m := range minutes {
		c.Sent += m.Sent
		c.Queued += m.Queued
		c.NotTaken += m.NotTaken
		top = max(top, m.Sent+m.Queued+m.NotTaken)
	}
	v := &view{}
	c.Top = "at most " + v.Count(top) + " a minute"
	c.Label = fmt.Sprintf("Messages per minute over the last hour, %s: %d sent, %d queued, %d handed back to "+
		"the hub",
		c.Top, c.Sent, c.Queued, c.NotTaken)
	this := now.Truncate(time.Minute)
	for _, m := range minutes {
		slot := minutesKept - 1 - int(this.Sub(m.Time)/time.Minute)
		if slot < 0 || slot >= minutesKept {
			continue
		}
		y := height
		for _, part := range []struct {
			class string
			n     int64
		}{{"sent", m.Sent}, {"queued", m.Queued}, {"nottaken", m.NotTaken}} {
			if part.n == 0 {
				continue
			}
			h := max(1, height*float64(part.n)/float64(top)) // one message among thousands is still seen
			y = max(0, y-h)
			c.Bars = append(c.Bars, chartBar{part.class, slot*width + 1, y, h})
		}
	}
	return c
}

// Pace says where the queue is heading.
func (v *view) Pace() string {
	if !v.Queue.Known || v.Queue.Depth == 0 {
		return ""
	}
	return v.Outlook.Text(v.now)
}
