package demo

import (
	"fmt"
	"io"
	"strings"
	"time"

	"koji-relay/internal/devbroker"
)

// screen prints the demo.
type screen struct {
	w      io.Writer
	colour bool
}

// Colours, as parameters of the terminal's SGR sequence.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colours text, which is padded already: the sequences have no width.
func (s *screen) paint(colour, text string) string {
	if !s.colour || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) line(text string) { fmt.Fprintln(s.w, text) }

func (s *screen) say(format string, args ...any) { s.line(fmt.Sprintf(format, args...)) }

// act prints the heading of an act.
func (s *screen) act(number int, title, text string) {
	s.line("")
	s.line(s.paint(bold, fmt.Sprintf("%d. %s", number, title)))
	s.line("   " + text)
}

// event prints something that happens in the middle of an act.
func (s *screen) event(colour, text string) {
	s.line(s.paint(colour, "   --> "+text))
}

// table prints how things stand, a row for every second or so.
type table struct {
	screen  *screen
	account *account
	brokers [2]*devbroker.Broker
	up      [2]bool
	start   time.Time
	last    time.Time // when the last row was printed
	seen    int       // hand-overs told by the rows so far
}

const tableHead = `
     time commits   answered in ms       broker 1      broker 2   on the     at the
                   median   slowest      accepted      accepted      way subscriber
`

func (t *table) head() {
	for line := range strings.Lines(tableHead) {
		t.screen.line(t.screen.paint(dim, strings.TrimSuffix(line, "\n")))
	}
}

// tick prints a row when it is time for one.
func (t *table) tick() {
	if time.Since(t.last) >= time.Second {
		t.row()
	}
}

// row prints a row now. Its times are those of the hand-overs since the last one.
func (t *table) row() {
	now := time.Now()
	b := t.account.balance()
	recent := b.took[t.seen:]
	t.last, t.seen = now, len(b.took)
	median, slowest := "-", "-"
	if len(recent) > 0 {
		median, slowest = millis(percentile(recent, 50)), millis(percentile(recent, 100))
	}
	waiting := b.handedOver - b.received
	way := fmt.Sprintf("%8d", waiting)
	if waiting > 0 {
		way = t.screen.paint(yellow, way)
	}
	t.screen.say("  %5.1f s %7d %8s %9s %s %s %s %10d",
		now.Sub(t.start).Seconds(), b.commits, median, slowest, t.broker(0), t.broker(1), way, b.received)
}

func (t *table) broker(i int) string {
	state, colour := "up", green
	if !t.up[i] {
		state, colour = "down", red
	}
	return fmt.Sprintf("%s %7d", t.screen.paint(colour, fmt.Sprintf("%5s", state)),
		t.brokers[i].Stats().Messages)
}

// millis writes a duration in milliseconds, to a tenth.
func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond))
}
