package history

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/semaphore"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// Sink is where a replay sends to: the queue, or brokers that the configuration does not name. Each replay
// has its own; one that does not answer holds up no other.
type Sink interface {
	// Send takes messages. done counts those taken, refused those that will never be. Messages that the sink has
	// anyway are neither. After an error the same messages are given again.
	Send(ctx context.Context, replay *inspect.Replay, messages []message.Message) (done, refused int,
		err error)
	// Waiting counts those of ids that were taken and have not been sent on.
	Waiting(ctx context.Context, ids []string) (int, error)
	// Close ends it.
	Close()
}

// ReplayerOptions configure a Replayer. All are required.
type ReplayerOptions struct {
	Writer string
	// Open gives the sink of a replay.
	Open   func(ctx context.Context, r *inspect.Replay) (Sink, error)
	Note   func(id string, handed time.Time, step inspect.Step) // tells the history; does not block
	Logger *slog.Logger
}

// Replayer works through all replays at once, each at its rate. They take turns at the store, a batch each:
// none of them waits for one that cannot go on. One relay of a fleet works on a replay.
type Replayer struct {
	store Store
	o     ReplayerOptions

	// Each is for one at a time, whoever came first: the store has few connections, and others want them. A
	// search that is slow holds up no saving.
	reading, saving *semaphore.Weighted

	work map[int64]*replayWork // only Run uses it
}

const (
	// replayLease is how long a replay waits for a relay that died. A relay that cannot renew its leases for
	// replayHold stops sending: there is time left for the calls under way to end.
	replayLease = 15 * time.Second
	replayHold  = replayLease / 2
	// replayCall bounds a claim, so that the one after it is in time.
	replayCall = 3 * time.Second
	// replayIdle is how soon a new replay is noticed, and one that was cancelled.
	replayIdle = time.Second
	// replayPiece bounds what is sent at once: a fifth of a second's worth, so that the rate is even.
	replayPiece = 200
	// replayAhead is how many seconds' worth of each may wait in the queue: with no broker up, the history is
	// not copied there.
	replayAhead = 5
)

// NewReplayer prepares a replayer; it starts nothing.
func NewReplayer(s Store, o ReplayerOptions) *Replayer {
	return &Replayer{store: s, o: o, reading: semaphore.NewWeighted(1), saving: semaphore.NewWeighted(1),
		work: map[int64]*replayWork{}}
}

// Run works until ctx ends, and returns nil then. What it had in hand goes on after the next start.
func (r *Replayer) Run(ctx context.Context) error {
	trouble := retry.Trouble{Limit: replayIdle}
	for claimed := time.Now(); ctx.Err() == nil; {
		r.forgetEnded() // before the claim: what it gives is newer than they are
		began := time.Now()
		replays, err := r.claim(ctx)
		wait := replayIdle
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if trouble.Failed(err) {
				r.o.Logger.Warn("replays cannot be looked for", "error", err)
			}
			if wait = trouble.Delay(); time.Since(claimed) > replayHold-wait {
				r.keep(nil)
			}
		default:
			claimed = began
			trouble.Recovered(r.o.Logger, "replays work again")
			r.take(ctx, replays)
		}
		retry.Pause(ctx, wait)
	}
	r.keep(nil)
	for _, w := range r.work {
		<-w.ended
	}
	return nil
}

func (r *Replayer) claim(ctx context.Context) ([]inspect.Replay, error) {
	ctx, cancel := context.WithTimeout(ctx, replayCall)
	defer cancel()
	return r.store.ClaimReplays(ctx, r.o.Writer, replayLease)
}

// take begins to work on what was claimed, and ends the work on what was not: it was cancelled, or another
// relay has it.
func (r *Replayer) take(ctx context.Context, claimed []inspect.Replay) {
	ours := map[int64]bool{}
	for i := range claimed {
		p := &claimed[i]
		ours[p.ID] = true
		if r.work[p.ID] != nil || p.State != inspect.ReplayRuns { // it may be unreadable
			continue
		}
		running, stop := context.WithCancel(ctx)
		w := &replayWork{Replayer: r, replay: p, stop: stop, ended: make(chan struct{})}
		r.work[p.ID] = w
		go func() {
			defer close(w.ended)
			defer stop()
			w.run(running)
		}()
	}
	r.keep(ours)
}

// keep ends all work but that on some replays.
func (r *Replayer) keep(ours map[int64]bool) {
	for id, w := range r.work {
		if !ours[id] {
			w.stop()
		}
	}
}

func (r *Replayer) forgetEnded() {
	for id, w := range r.work {
		select {
		case <-w.ended:
			delete(r.work, id)
		default:
		}
	}
}

// replayWork is the work on one replay. Only its run uses what is not of the Replayer.
type replayWork struct {
	*Replayer
	replay *inspect.Replay
	stop   func()
	ended  chan struct{} // closed when run has ended

	sink    Sink
	known   bool    // taken has what was taken before the start, too
	taken   []taken // by the sink, and not known to be sent on
	unsaved bool    // the store does not know how far it is
	over    bool    // nothing is left to do here
}

// taken are messages that a sink took at once, and the place in the replay before them.
type taken struct {
	ids    []string
	behind inspect.Ref
}

// run sends until the replay ends, or is no longer ours.
func (w *replayWork) run(ctx context.Context) {
	defer func() {
		if w.sink != nil {
			w.sink.Close()
		}
	}()
	var trouble retry.Trouble
	for !w.over && ctx.Err() == nil {
		wait, err := w.piece(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if trouble.Failed(err) {
				w.o.Logger.Warn("a replay does not go on", "replay", w.replay.ID, "error", err)
			}
			wait = trouble.Delay()
		default:
			trouble.Recovered(w.o.Logger, "a replay goes on", "replay", w.replay.ID)
		}
		if !w.over {
			retry.Pause(ctx, wait)
		}
	}
}

// piece sends the next messages, and gives the time to wait before those after them.
func (w *replayWork) piece(ctx context.Context) (wait time.Duration, err error) {
	began, p := time.Now(), w.replay
	if w.unsaved { // nothing more is sent before: after a kill it would be sent again
		if err := w.save(ctx); err != nil || w.over {
			return 0, err
		}
	}
	if !(p.Rate > 0) {
		return 0, w.stuck(ctx, fmt.Errorf("its rate is %v messages a second; cancel it and begin another one",
			p.Rate))
	}
	if w.sink == nil {
		if w.sink, err = w.o.Open(ctx, p); err != nil {
			w.sink = nil
			return 0, w.stuck(ctx, err)
		}
	}
	if err := w.recall(ctx); err != nil {
		return 0, w.stuck(ctx, err)
	}
	if held, err := w.holdBack(ctx); held || err != nil {
		return replayIdle, err
	}
	if err := w.reading.Acquire(ctx, 1); err != nil {
		return 0, err
	}
	batch, err := next(ctx, w.store, p, w.pieceSize())
	w.reading.Release(1)
	if err != nil {
		return 0, w.stuck(ctx, err)
	}
	if batch.last {
		return replayIdle, w.finish(ctx)
	}
	messages := batch.messages
	if batch.damaged > 0 {
		w.o.Logger.Warn("the history cannot be read in part; this is not replayed", "replay", p.ID,
			"messages", batch.damaged)
	}
	done, refused, err := w.sink.Send(ctx, p, messages)
	if err != nil {
		return 0, w.stuck(ctx, err)
	}
	for i := range messages {
		w.o.Note(messages[i].ID, messages[i].Created, inspect.Step{Kind: inspect.Replayed,
			Reason: fmt.Sprintf("by replay %d", p.ID)})
	}
	w.take(batch)
	p.Done, p.Refused, p.Skipped = p.Done+done, p.Refused+refused, p.Skipped+len(messages)-done-refused
	p.Skipped, p.Cursor = p.Skipped+batch.damaged, batch.cursor
	w.goesOn()
	return pace(len(messages), p.Rate) - time.Since(began), w.save(ctx)
}

// pace is how long n messages take at a rate, a day at most: a rate may be next to nothing.
func pace(n int, rate float64) time.Duration {
	const day = 24 * 60 * 60
	return time.Duration(min(float64(n)/rate, day) * float64(time.Second))
}

// pieceSize is how many messages are sent at once.
func (w *replayWork) pieceSize() int { return min(replayPiece, max(1, int(w.replay.Rate/5))) }

// take notes what the sink took: what stands behind the cursor.
func (w *replayWork) take(batch replayBatch) {
	t := taken{behind: w.replay.Cursor}
	for i := range batch.messages {
		t.ids = append(t.ids, batch.messages[i].ID)
	}
	w.taken = append(w.taken, t)
}

// recall finds what was taken before this work began, and may be in the queue still.
func (w *replayWork) recall(ctx context.Context) error {
	if w.known {
		return nil
	}
	w.taken = nil
	cursor := w.replay.Cursor
	defer func() { w.replay.Cursor = cursor }()
	for w.replay.Cursor = w.replay.Left; w.replay.Cursor.Before(cursor); {
		if err := w.reading.Acquire(ctx, 1); err != nil {
			return err
		}
		// In the same pieces, so that it ends where those did.
		batch, err := next(ctx, w.store, w.replay, w.pieceSize())
		w.reading.Release(1)
		if err != nil {
			return err
		}
		if batch.last {
			break // the history has let go of them
		}
		w.take(batch)
		w.replay.Cursor = batch.cursor
	}
	w.known = true
	return nil
}

// ids are those of all that was taken.
func (w *replayWork) ids() (all []string) {
	for _, t := range w.taken {
		all = append(all, t.ids...)
	}
	return all
}

// keepLast forgets what was taken but the last pieces, which have as many messages as wait.
func (w *replayWork) keepLast(waiting int) {
	first := len(w.taken)
	for ; first > 0 && waiting > 0; first-- {
		waiting -= len(w.taken[first-1].ids)
	}
	w.taken = w.taken[first:]
	if w.replay.Left = w.replay.Cursor; len(w.taken) > 0 {
		w.replay.Left = w.taken[0].behind
	}
}

// holdBack waits while much of what was sent is in the queue still.
func (w *replayWork) holdBack(ctx context.Context) (held bool, err error) {
	ahead := max(replayPiece, int(w.replay.Rate*replayAhead))
	ids := w.ids()
	if len(ids) < ahead {
		return false, nil
	}
	waiting, err := w.sink.Waiting(ctx, ids)
	if err != nil {
		return false, w.stuck(ctx, err)
	}
	if waiting <= ahead/2 {
		w.keepLast(waiting)
		return false, nil
	}
	w.stands("", waiting)
	return true, w.save(ctx)
}

// finish ends the replay when nothing of it waits any more.
func (w *replayWork) finish(ctx context.Context) error {
	p := w.replay
	waiting, err := w.sink.Waiting(ctx, w.ids())
	if err != nil {
		return w.stuck(ctx, err)
	}
	if waiting > 0 {
		w.stands("", waiting)
		return w.save(ctx)
	}
	w.goesOn()
	p.State, p.Ended = inspect.ReplayDone, time.Now()
	if err := w.save(ctx); err != nil {
		p.State, p.Ended = inspect.ReplayRuns, time.Time{} // it is tried again
		return err
	}
	w.over = true
	w.o.Logger.Info("a replay is done", "replay", p.ID, "messages", p.Done, "skipped", p.Skipped, "refused",
		p.Refused)
	return nil
}

// stuck notes why the replay does not go on, and gives that.
func (w *replayWork) stuck(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err // nothing but that it was stopped
	}
	w.stands(err.Error(), 0)
	if saveErr := w.save(ctx); saveErr != nil {
		return saveErr
	}
	return err
}

// stands notes that nothing goes on: for a reason, or since so many messages wait in the queue.
func (w *replayWork) stands(reason string, waiting int) {
	if w.replay.Stands.IsZero() {
		w.replay.Stands = time.Now()
	}
	w.replay.Error, w.replay.Waiting = reason, waiting
}

func (w *replayWork) goesOn() { w.replay.Error, w.replay.Waiting, w.replay.Stands = "", 0, time.Time{} }

// save stores how far the replay is. The work is over where that is no longer ours to say.
func (w *replayWork) save(ctx context.Context) error {
	if err := w.saving.Acquire(ctx, 1); err != nil {
		return err
	}
	defer w.saving.Release(1)
	w.replay.Seen = time.Now()
	runs, err := w.store.SaveReplay(ctx, w.replay, w.o.Writer)
	w.unsaved, w.over = err != nil, w.over || err == nil && !runs
	return err
}
