package relay

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// notices keep the log of addresses in trouble short.
type notices struct {
	any atomic.Bool // keeps what each settlement asks for off the mutex: whether an address is in trouble

	mu sync.Mutex         // guards of
	of map[string]*notice // by address
}

func newNotices() notices { return notices{of: map[string]*notice{}} }

// notice is the log's state for one address.
type notice struct {
	kind   string // of trouble, empty = none
	cause  string
	logged time.Time
	hushed bool // came back soon after it was over: not logged again, nor is its end
}

// noticePause keeps an address that is in and out of trouble, such as one bad message among good ones, from
// filling the log.
const noticePause = time.Minute

// notice logs trouble with an address once, and its end once. An empty kind is the end; kinds tell troubles
// apart, while causes may differ from message to message.
func (b *broker) notice(address, kind, cause string) {
	if kind == "" && !b.notices.any.Load() {
		return
	}
	b.notices.mu.Lock()
	n := b.notices.of[address]
	if n == nil {
		n = &notice{}
	}
	if n.kind == kind {
		b.notices.mu.Unlock()
		return
	}
	last := *n
	n.kind = kind
	if kind != "" {
		n.cause, n.hushed = cause, time.Since(n.logged) < noticePause
		if !n.hushed {
			n.logged = time.Now()
		}
		if len(b.notices.of) > 4*maxLinks {
			clear(b.notices.of)
		}
		b.notices.of[address] = n
	}
	hushed := n.hushed
	inTrouble := func(n *notice) bool { return n.kind != "" }
	b.notices.any.Store(slices.ContainsFunc(slices.Collect(maps.Values(b.notices.of)), inTrouble))
	b.notices.mu.Unlock()
	if f := b.r.opts.Observer.AddressWorks; f != nil && kind == "" {
		f(address)
	}
	switch {
	case hushed:
	case kind == "":
		b.log.Info("address works again", "address", address, "cause", last.cause)
	default:
		b.log.Warn("address in trouble", "address", address, "cause", cause)
	}
}
