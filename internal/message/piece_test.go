package message

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPiecesAreBoundedByEventsAndBytes(t *testing.T) {
	t.Parallel()
	const half = PieceBytes / 2
	sized := func(sizes ...int) (events []Event) {
		for i, n := range sizes {
			events = append(events, Event{Number: i, Kwargs: make([]byte, n)})
		}
		return events
	}
	for name, tc := range map[string]struct {
		events []Event
		want   []int
	}{
		"nothing":                            {nil, nil},
		"a small commit is one piece":        {sized(10, 20, 30), []int{3}},
		"as many events as a piece may have": {make([]Event, PieceEvents), []int{PieceEvents}},
		"one more":                           {make([]Event, PieceEvents+1), []int{PieceEvents, 1}},
		"as many bytes as a piece may have":  {sized(half, half), []int{2}},
		"one more byte":                      {sized(half, half, 1), []int{2, 1}},
		"an event above the limit is alone":  {sized(1, 3*half, 1), []int{1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []int
			next := 0
			for piece := range Pieces(tc.events) {
				got = append(got, len(piece))
				if len(tc.events) > 0 && &piece[0] != &tc.events[next] {
					t.Errorf("piece %d does not begin with event %d", len(got), next)
				}
				next += len(piece)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("events of each piece (-want +got):\n%s", diff)
			}
		})
	}
}
