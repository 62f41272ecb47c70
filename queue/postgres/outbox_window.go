package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
)

// window is what one session of the reader has in hand. Its run is the only goroutine that touches it; the
// goroutines that it starts, one for each piece being taken and one that deletes, answer by channels.
//
//	table --read--> waits for pieces before it --> ready --> taken --> done --> deleted
type window struct {
	*Outbox
	session *listener
	walk    marks[int64]
	more    bool // the table may hold events that were not read
	full    bool // what was read last had no room; it is read again when a piece is over

	held  map[int64]bool    // ids that were read and are not deleted
	last  map[string]*piece // by subject: the last piece about it that is not over
	ready []*piece          // in their order
	count int               // pieces that are not over
	bytes int               // of them
	under int               // pieces being taken
	most  int               // bound of under

	done     []doneEvent // dealt with and not being deleted
	deleting []doneEvent
	due      bool             // what is done is to be deleted, however little it is
	later    <-chan time.Time // a moment to look at done and ready again; nil when none is needed

	wake    chan struct{} // there is something new; buffered 1
	watched chan error    // the session broke
	over    chan *piece
	deleted chan error

	lookBehind bool // a full walk is due, see look
	looking    bool // and is under way
	looked     chan behind
}

// piece is a commit, or a part of a large one, that is taken at once.
type piece struct {
	commit   message.Commit
	ids      map[int]int64 // by number of the event
	bytes    int
	subjects []string
	before   int      // pieces that must be over first
	then     []*piece // pieces that wait for this one
	receipt  message.Receipt
}

const (
	// mostUnderWay bounds the pieces being taken at once. Where they end in the queue, fewer are: there they
	// compete with the commits for which a hub waits.
	mostUnderWay  = 64
	mostIntoQueue = 4
	// mostRead bounds the pieces that are read ahead.
	mostRead = 4 * mostUnderWay
	// mostHeld bounds their events: each read passes over those in hand.
	mostHeld = 2000
	// deleteAt events that are done are deleted together; fewer after deleteWithin.
	deleteAt     = 256
	deleteWithin = 20 * time.Millisecond
)

func newWindow(b *Outbox, session *listener) *window {
	return &window{Outbox: b, session: session, more: true, held: map[int64]bool{}, last: map[string]*piece{},
		most: mostUnderWay, wake: make(chan struct{}, 1), watched: make(chan error, 1),
		deleted: make(chan error, 1), looked: make(chan behind, 1),
		over: make(chan *piece, mostUnderWay)} // so that no goroutine waits for run to look
}

// run takes what is in the outbox until the session breaks, something can be neither taken nor deleted, or
// ctx ends. It returns when nothing is being taken or deleted any more.
func (w *window) run(ctx context.Context) error {
	// within the interval it is to be with a broker
	early := func() time.Duration { return w.o.Interval - w.o.Interval/10 }
	look := time.NewTicker(early())
	defer look.Stop()
	var failed error
	for {
		if failed == nil {
			failed = w.advance(ctx)
		}
		if failed != nil && w.under == 0 && w.deleting == nil && !w.looking {
			return failed
		}
		var err error
		select {
		case p := <-w.over:
			err = w.finish(p)
		case err = <-w.deleted:
			w.settle(err)
		case b := <-w.looked:
			err = w.noteBehind(b)
		case err = <-w.watched:
		case <-w.wake:
			w.more = true
		case <-look.C:
			w.more = true
		case w.o.Interval = <-w.intervals:
			look.Reset(early())
			w.more = true
		case <-w.later:
			w.due, w.later = true, nil
		case <-ctx.Done():
			err = ctx.Err()
			ctx = context.WithoutCancel(ctx)
		}
		if failed == nil {
			failed = err
		}
	}
}

// advance reads, begins and deletes what can be now.
func (w *window) advance(ctx context.Context) error {
	for w.more && !w.full && w.count < mostRead && len(w.held) < mostHeld {
		if err := w.read(ctx); err != nil {
			return err
		}
	}
	w.begin(ctx)
	if w.lookBehind && !w.looking {
		w.look(ctx)
	}
	if len(w.done) > 0 && w.deleting == nil && (len(w.done) >= deleteAt || w.due || w.count == 0) {
		w.delete(ctx)
	}
	if w.later == nil && (len(w.done) > 0 || len(w.ready) > 0 && !w.session.trusted()) {
		w.later = time.After(deleteWithin)
	}
	if w.count == 0 && !w.more {
		w.works()
	}
	return nil
}

// add lets p wait for the pieces before it that share a subject with it.
func (w *window) add(p *piece) {
	earlier := map[*piece]bool{}
	for _, s := range p.subjects {
		if before := w.last[s]; before != nil && !earlier[before] {
			earlier[before] = true
			before.then = append(before.then, p)
		}
		w.last[s] = p
	}
	p.before = len(earlier)
	if p.before == 0 {
		w.ready = append(w.ready, p)
	}
	w.count++
	w.bytes += p.bytes
	for _, id := range p.ids {
		w.held[id] = true
	}
}

// begin takes the pieces that are ready. The session is known to hold the lock when they are begun.
func (w *window) begin(ctx context.Context) {
	for len(w.ready) > 0 && w.under < w.most && ctx.Err() == nil && w.session.trusted() {
		p := w.ready[0]
		w.ready = w.ready[1:]
		w.under++
		go func() {
			failpoint.Hit("before-outbox-take")
			// What was begun is finished, as for a commit of the socket: cut short, it would be sent again.
			p.receipt = w.publisher.Publish(context.WithoutCancel(ctx), p.commit)
			failpoint.Hit("after-outbox-take")
			w.over <- p
		}()
	}
}

// errHeldBack ends a session in which events could be neither sent nor stored; they are tried again after a
// while.
var errHeldBack = errors.New("events of the outbox could be neither sent nor queued")

// finish notes what became of p, and frees the pieces that waited for it. Where events of p are left, they
// wait on: they come after those.
func (w *window) finish(p *piece) error {
	w.full = false
	w.under--
	w.count--
	w.bytes -= p.bytes
	for _, n := range p.receipt.NotTaken {
		delete(p.ids, n)
	}
	for _, id := range p.ids {
		w.done = append(w.done, doneEvent{id, p.commit.ID})
	}
	w.mark(func(st *OutboxStatus) { st.Taken += int64(len(p.ids)) })
	if len(p.receipt.NotTaken) > 0 {
		return fmt.Errorf("%w: %s", errHeldBack, p.receipt.Reason)
	}
	w.most = mostUnderWay
	if p.receipt.Queued > 0 {
		w.most = mostIntoQueue
	}
	for _, s := range p.subjects {
		if w.last[s] == p {
			delete(w.last, s)
		}
	}
	for _, next := range p.then {
		if next.before--; next.before == 0 {
			w.ready = append(w.ready, next)
		}
	}
	return nil
}

// delete deletes what is done, beside what is being taken.
func (w *window) delete(ctx context.Context) {
	w.deleting, w.done, w.due = w.done, nil, false
	done := w.deleting
	go func() { w.deleted <- w.deleteDone(ctx, done) }()
}

// settle notes that a deletion ended. What could not be deleted is dealt with all the same.
func (w *window) settle(err error) {
	done := w.deleting
	w.deleting = nil
	if err != nil {
		w.done = append(w.done, done...)
		return
	}
	for _, e := range done {
		delete(w.held, e.id)
	}
}
