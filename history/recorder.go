package history

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// Options configure a Recorder. Zero values mean the defaults named.
type Options struct {
	Writer   string        // names this relay among those of the store
	Keep     time.Duration // days go after this time; 7 days
	MaxBytes int64         // of all days; 1 GiB
	Logger   *slog.Logger
	// Sign is the path of a small file on this host, beside the store; empty: none. See sign.
	Sign string
	// Missed is called with the number of messages that a gap takes in; it must not block.
	Missed func(messages int)
}

const (
	// bufferBytes bounds what waits to be written. As much again may be on its way to the store.
	bufferBytes = 3 << 20
	// flushBytes makes a batch worth writing before flushEvery has passed.
	flushBytes = 1 << 20
	flushEvery = 250 * time.Millisecond
	// aliveEvery is how often the store hears of a relay that has nothing to record, and how often the sign
	// is renewed. It bounds how long a gap after a SIGKILL may seem to be.
	aliveEvery = 2 * time.Second
	tidyEvery  = time.Minute
	// appendTimeout bounds one batch; a store that is slower is away.
	appendTimeout = 10 * time.Second
	// closeTimeout bounds a write under way and the last one together, from the stop on.
	closeTimeout = 4 * time.Second
)

// stoppedBehind is the reason of what an end could not write.
const stoppedBehind = "the relay was stopped while the history could not be written"

// Recorder takes what happens to messages and writes it to a store. Its methods do not block and may be
// called concurrently, also before Run and after it: what comes then is a gap.
type Recorder struct {
	store Store
	log   *slog.Logger
	wake  chan struct{} // buffered 1: one wake-up is enough

	mu      sync.Mutex // guards the fields below
	o       Options    // Keep and MaxBytes; the others do not change
	entries []entry
	bytes   int
	gaps    []inspect.Gap     // what was missed since the last batch
	waiters []chan<- struct{} // closed when what is in entries is in the store
	stats   Stats
	known   time.Time // messages handed over since then have a row

	sign sign

	// Only Run uses these.
	left     bool              // the sign holds gaps that the store does not have
	pending  *Batch            // a batch that could not be written
	written  []chan<- struct{} // the waiters of pending
	trouble  retry.Trouble
	nextTidy time.Time
	wroteAt  time.Time
}

// Stats say what a Recorder has done.
type Stats struct {
	Recorded int64  // messages
	Missed   int64  // messages that are in no store
	Error    string // why the store is away; empty while it is not
	Usage    Usage
}

// entry is one record as it came. What it costs to prepare it for the store is paid by Run.
type entry struct {
	message *message.Message
	row     bool // the first that is known of the message
	via     string
	id      string
	handed  time.Time
	step    inspect.Step
}

// NewRecorder prepares a recorder; it starts nothing.
func NewRecorder(s Store, o Options) *Recorder {
	r := &Recorder{store: s, o: o, log: o.Logger, wake: make(chan struct{}, 1), known: time.Now(),
		sign: sign(o.Sign)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.o.Missed == nil {
		r.o.Missed = func(int) {}
	}
	r.Configure(o.Keep, o.MaxBytes)
	return r
}

// Configure replaces Keep and MaxBytes, at the next Tidy; 0 is the default of each.
func (r *Recorder) Configure(keep time.Duration, maxBytes int64) {
	if keep <= 0 {
		keep = 7 * 24 * time.Hour
	}
	if maxBytes <= 0 {
		maxBytes = 1 << 30
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.o.Keep, r.o.MaxBytes = keep, maxBytes
}

// Stats may be called at any time.
func (r *Recorder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// Message records what became of a message when it was handed over. m is not changed by anyone from then on.
func (r *Recorder) Message(m *message.Message, via string, step inspect.Step) {
	r.add(entry{message: m, row: true, via: via, id: m.ID, handed: m.Created, step: step})
}

// Step records what happened to a message later. handed is its creation-time; zero where that is not known.
func (r *Recorder) Step(id string, handed time.Time, step inspect.Step) {
	r.add(entry{id: id, handed: handed, step: step})
}

// Found is Step for a message of the queue. Where it was put before the history was kept, or by protonmsg,
// the history begins with it.
func (r *Recorder) Found(m *message.Message, step inspect.Step) {
	e := entry{id: m.ID, handed: m.Created, step: step}
	if m.Commit == "" || m.Created.Before(r.known) {
		e.message = m
	}
	r.add(e)
}

func (r *Recorder) add(e entry) {
	if e.step.Time.IsZero() {
		e.step.Time = time.Now()
	}
	size := 256 + len(e.step.Reason)
	if e.message != nil {
		size += e.message.Size()
	}
	r.mu.Lock()
	full := len(r.entries) > 0 && r.bytes+size > bufferBytes
	if full {
		r.miss(e, "the store did not keep up")
	} else {
		r.entries = append(r.entries, e)
		r.bytes += size
	}
	due := r.bytes >= flushBytes
	r.mu.Unlock()
	if due {
		r.hurry()
	}
}

func (r *Recorder) hurry() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Flush blocks until what was recorded before is in the store, or until ctx ends. While the store is away
// it does not wait: whoever asks has something to do.
func (r *Recorder) Flush(ctx context.Context) error {
	done := make(chan struct{})
	r.mu.Lock()
	away := r.stats.Error
	if away == "" {
		r.waiters = append(r.waiters, done)
	}
	r.mu.Unlock()
	if away != "" {
		return errors.New(away)
	}
	r.hurry()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// miss counts what is not recorded. The caller holds mu.
func (r *Recorder) miss(e entry, reason string) {
	if n := len(r.gaps); n == 0 || r.gaps[n-1].Reason != reason {
		r.gaps = append(r.gaps, inspect.Gap{Began: e.step.Time, Reason: reason, Writer: r.o.Writer})
	}
	gap := &r.gaps[len(r.gaps)-1]
	gap.Ended = e.step.Time
	if e.row || e.message != nil {
		gap.Messages++
		r.stats.Missed++
		r.o.Missed(1)
	}
}

// Run writes until ctx ends, then what is left, and returns nil. All together ends within 4 s of ctx, as far
// as the store keeps its promise. What is not written then is a gap, which the next start tells.
func (r *Recorder) Run(ctx context.Context) error {
	// A write under way is not cut off: the store might have it all the same.
	finish, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(closeTimeout, cancel) })()
	seen, gaps := r.sign.read()
	defer r.sign.renew(aliveEvery)()
	r.begin(ctx, seen, gaps)
	timer := time.NewTimer(flushEvery)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.wake:
		}
		if ctx.Err() != nil {
			break
		}
		r.tidy(ctx)
		timer.Reset(r.work(finish))
	}
	r.end(finish)
	return nil
}

// begin records the gap that a relay left which was killed, or could not write its end. The sign says when it
// was seen last, and the gaps that it left.
func (r *Recorder) begin(ctx context.Context, seen time.Time, gaps []inspect.Gap) {
	for ctx.Err() == nil {
		calling, cancel := context.WithTimeout(ctx, appendTimeout)
		alive, err := r.store.Begin(calling, r.o.Writer)
		cancel()
		if err == nil {
			r.works()
			if len(gaps) == 0 && !alive.IsZero() {
				gaps = []inspect.Gap{killed(alive, seen, time.Now())}
				gaps[0].Writer = r.o.Writer
			}
			r.mu.Lock()
			r.gaps = append(gaps, r.gaps...)
			r.mu.Unlock()
			r.left = true
			return
		}
		r.failed(ctx, err)
		retry.Pause(ctx, r.trouble.Delay())
	}
}

// killed is the gap of a relay that was killed. The store heard of it last at the time alive; its sign was
// renewed until seen, also while the store was slow or away. Without a sign the kill may have been at any
// time until now.
func killed(alive, seen, now time.Time) inspect.Gap {
	gap := inspect.Gap{Began: alive, Ended: now, Reason: inspect.Killed}
	const stale = 5 * aliveEvery
	if seen.Before(alive.Add(-stale)) { // also where there is none
		return gap
	}
	if seen.Sub(alive) > 2*aliveEvery {
		gap.Reason = inspect.KilledBehind
	}
	if seen.Before(alive) {
		seen = alive
	}
	if ended := seen.Add(aliveEvery + time.Second); ended.Before(now) {
		gap.Ended = ended
	}
	return gap
}

// work writes what waits, and gives the time until the next look.
func (r *Recorder) work(ctx context.Context) time.Duration {
	if err := r.flush(ctx); err != nil {
		r.failed(ctx, err)
		return r.trouble.Delay()
	}
	return flushEvery
}

// flush writes the batch that could not be written before, else what waits. A batch that fails is kept as
// it is.
func (r *Recorder) flush(ctx context.Context) error {
	if r.pending == nil {
		entries, gaps := r.take()
		if len(entries) == 0 && len(gaps) == 0 && time.Since(r.wroteAt) < aliveEvery {
			r.tellWaiters()
			return nil
		}
		r.pending = r.prepare(entries, gaps)
	}
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	if err := r.store.Append(ctx, r.pending); err != nil {
		return err
	}
	r.mu.Lock()
	r.stats.Recorded += int64(len(r.pending.Rows))
	r.mu.Unlock()
	r.pending, r.wroteAt = nil, time.Now()
	if r.left {
		r.sign.leave(nil)
		r.left = false
	}
	r.tellWaiters()
	r.works()
	return nil
}

func (r *Recorder) tellWaiters() {
	for _, done := range r.written {
		close(done)
	}
	r.written = nil
}

// take empties the buffer.
func (r *Recorder) take() (entries []entry, gaps []inspect.Gap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, gaps = r.entries, r.gaps
	r.written = append(r.written, r.waiters...)
	r.entries, r.bytes, r.gaps, r.waiters = nil, 0, nil, nil
	return entries, gaps
}

// prepare makes a batch. What cannot be prepared for the store is a gap of one message.
func (r *Recorder) prepare(entries []entry, gaps []inspect.Gap) *Batch {
	b := &Batch{Writer: r.o.Writer, Gaps: gaps}
	rows := 0
	for i := range entries {
		if entries[i].row {
			rows++
		}
	}
	b.Rows, b.Steps = make([]Row, 0, rows), make([]Step, 0, len(entries)-rows)
	for i := range entries {
		if err := b.add(&entries[i]); err != nil {
			r.log.Warn("a message cannot be recorded in the history", "message_id", entries[i].id, "error",
				err)
			r.mu.Lock()
			r.miss(entries[i], "not recordable: "+err.Error())
			r.mu.Unlock()
		}
	}
	return b
}

// add prepares one entry for the store.
func (b *Batch) add(e *entry) error {
	if _, err := uuid.Parse(e.id); err != nil {
		return fmt.Errorf("message-id %q is not a UUID", e.id)
	}
	e.step.Time = e.step.Time.Truncate(time.Microsecond)
	if e.row {
		row, err := NewRow(e.message, e.via, e.step)
		if err == nil {
			b.Rows = append(b.Rows, row)
		}
		return err
	}
	b.Steps = append(b.Steps, Step{Step: e.step, ID: e.id, Handed: e.handed.Truncate(time.Microsecond),
		Message: e.message})
	return nil
}

// NewRow gives m as it is stored.
func NewRow(m *message.Message, via string, first inspect.Step) (Row, error) {
	row := Row{Handed: m.Created.Truncate(time.Microsecond), ID: m.ID, Commit: m.Commit, Event: m.Event,
		Callback: m.Callback, Address: m.Address, Via: via, Keys: KeysOf(m), Size: len(m.Body), First: first}
	if row.Handed.IsZero() {
		row.Handed = first.Time
	}
	if _, err := uuid.Parse(row.Commit); err != nil {
		row.Commit = ""
	}
	if first.Kind == inspect.Skipped {
		return row, nil
	}
	var err error
	row.Content, err = Pack(m)
	return row, err
}

func (r *Recorder) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	r.stats.Error = err.Error()
	r.mu.Unlock()
	if r.trouble.Failed(err) {
		r.log.Warn("the history cannot be written; what does not fit into memory will be a gap", "error", err)
	}
}

func (r *Recorder) works() {
	r.mu.Lock()
	r.stats.Error = ""
	r.mu.Unlock()
	r.trouble.Recovered(r.log, "the history is written again")
}

// tidy drops old days once a minute.
func (r *Recorder) tidy(ctx context.Context) {
	if time.Now().Before(r.nextTidy) {
		return
	}
	r.nextTidy = time.Now().Add(tidyEvery)
	r.mu.Lock()
	keep, maxBytes := r.o.Keep, r.o.MaxBytes
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	usage, err := r.store.Tidy(ctx, keep, maxBytes)
	for _, day := range usage.Dropped {
		r.log.Info("a day of the history was dropped", "day", day)
	}
	r.mu.Lock()
	r.stats.Usage = usage
	r.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) {
		r.log.Warn("old days of the history could not be dropped", "error", err)
	}
}

// end writes what is left. What it cannot write becomes a gap.
func (r *Recorder) end(ctx context.Context) {
	err := r.flush(ctx) // perhaps what could not be written before
	if err == nil {
		r.wroteAt = time.Time{}
		err = r.flush(ctx)
	}
	if err == nil {
		err = r.store.End(ctx, r.o.Writer)
	}
	if err == nil {
		r.sign.remove()
		return
	}
	gaps, missed := r.unwritten()
	r.sign.leave(gaps)
	r.log.Warn("the end of the history could not be written; the next start records the gap", "messages", missed,
		"error", err)
}

// unwritten gives all that the store does not have as gaps, and the number of messages in the last.
func (r *Recorder) unwritten() (gaps []inspect.Gap, missed int) {
	entries, later := r.take()
	b := r.pending
	if b == nil {
		b = &Batch{}
	}
	gap := inspect.Gap{Began: time.Now(), Ended: time.Now(), Reason: stoppedBehind, Writer: r.o.Writer}
	note := func(at time.Time, message bool) {
		if at.Before(gap.Began) {
			gap.Began = at
		}
		if message {
			gap.Messages++
		}
	}
	for i := range b.Rows {
		note(b.Rows[i].First.Time, true)
	}
	for i := range b.Steps {
		note(b.Steps[i].Time, b.Steps[i].Message != nil)
	}
	for i := range entries {
		note(entries[i].step.Time, entries[i].row || entries[i].message != nil)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Missed += int64(gap.Messages)
	r.o.Missed(gap.Messages)
	return append(append(b.Gaps, later...), gap), gap.Messages
}
