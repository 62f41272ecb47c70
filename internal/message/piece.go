package message

import "iter"

// A commit is dealt with in pieces, so that each step takes a bounded time and a bounded memory.
const (
	PieceEvents = 500     // the most events of a piece
	PieceBytes  = 4 << 20 // the most bytes of kwargs, unless one event alone has more
)

// Pieces cuts events into pieces, in order. It copies nothing.
func Pieces(events []Event) iter.Seq[[]Event] {
	return func(yield func([]Event) bool) {
		for len(events) > 0 {
			n, size := 1, len(events[0].Kwargs)
			for n < min(len(events), PieceEvents) && size+len(events[n].Kwargs) <= PieceBytes {
				size += len(events[n].Kwargs)
				n++
			}
			if !yield(events[:n:n]) {
				return
			}
			events = events[n:]
		}
	}
}
