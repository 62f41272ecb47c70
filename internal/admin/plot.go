package admin

import (
	"fmt"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

// plot is a day in columns, for an SVG of slotsKept by plotHeight units.
type plot struct {
	Label, Top string
	Columns    []plotColumns
}

// plotColumns are the columns of one colour, as the data of an SVG path.
type plotColumns struct{ Class, Path string }

const plotHeight = 100.0

// newPlots draws the backlog of a day and the age of its oldest.
func newPlots(slots []slot, maxAge time.Duration) (backlog, age plot) {
	var most, oldest int64
	known := 0
	for i := range slots {
		if slots[i].number != 0 {
			known++
		}
		most = max(most, slots[i].queue+slots[i].outbox)
		oldest = max(oldest, int64(slots[i].oldest))
	}
	backlog.Top = "at most " + countText(most)
	age.Top = "at most " + inspect.Duration(time.Duration(oldest).Truncate(time.Second))
	if maxAge > 0 {
		age.Top += "; given up after " + inspect.Duration(maxAge)
	}
	over := fmt.Sprintf("over the last day, known for %s of it: ",
		inspect.Duration(time.Duration(known)*slotLength))
	backlog.Label = "Messages in the queue and events in the outbox " + over + backlog.Top
	age.Label = "Age of the oldest of them " + over + age.Top
	var queued, waiting, ages strings.Builder
	for i := range slots {
		s := &slots[i]
		below := column(&queued, i, 0, s.queue, most)
		column(&waiting, i, below, s.outbox, most)
		column(&ages, i, 0, int64(s.oldest), oldest)
	}
	backlog.Columns = []plotColumns{{"queued", queued.String()}, {"outbox", waiting.String()}}
	age.Columns = []plotColumns{{"queued", ages.String()}}
	return backlog, age
}

// column draws n of most at place x, on what is below, and gives the height of both. What is there at all is
// seen.
func column(path *strings.Builder, x int, below float64, n, most int64) float64 {
	if n <= 0 {
		return below
	}
	top := min(plotHeight, below+max(1.5, plotHeight*float64(n)/float64(most)))
	fmt.Fprintf(path, "M%d %.1fV%.1fh1V%.1fz", x, plotHeight-below, plotHeight-top, plotHeight-below)
	return top
}

// strip is the states of a broker over a day.
type strip struct {
	Label string
	Runs  []stripRun
}

type stripRun struct {
	Class    inspect.BrokerState
	X, Width int
}

func newStrip(states []inspect.BrokerState) strip {
	var s strip
	spent := make(map[inspect.BrokerState]time.Duration)
	for i, state := range states {
		if state == "" {
			continue
		}
		spent[state] += slotLength
		if n := len(s.Runs) - 1; n >= 0 && s.Runs[n].Class == state && s.Runs[n].X+s.Runs[n].Width == i {
			s.Runs[n].Width++
			continue
		}
		s.Runs = append(s.Runs, stripRun{state, i, 1})
	}
	var parts []string
	for _, state := range []inspect.BrokerState{inspect.Up, inspect.Connecting, inspect.Stalled, inspect.Down} {
		if d := spent[state]; d > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", state, inspect.Duration(d)))
		}
	}
	s.Label = "Worst state in each 5 minutes of the last day: " + strings.Join(parts, ", ")
	return s
}
