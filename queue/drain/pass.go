package drain

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
	"koji-relay/queue"
)

// pass takes the drain lock, stores what is still owed, expires and drains. more says that there may be more
// to drain.
func (d *Drainer) pass(ctx context.Context, o *Options, draining, expiring bool) (more bool, err error) {
	// First of all: what a broker accepted must not be sent again.
	if err := d.save(ctx); err != nil {
		return false, err
	}
	if !draining && !expiring {
		return false, nil
	}
	pass, err := d.store.BeginDrain(ctx)
	if err != nil {
		if expiring && errors.Is(err, queue.ErrBusy) {
			d.nextExpiry = time.Now().Add(expiryEvery) // who holds the lock expires as well
		}
		return false, err
	}
	complete := false
	defer func() { pass.End(complete) }()
	if expiring {
		if err := d.expire(ctx, o, pass); err != nil {
			return false, err
		}
	}
	if !draining {
		complete = true
		return false, nil
	}
	d.mark(func(st *Status) { st.Draining = true })
	defer d.mark(func(st *Status) { st.Draining = false })
	run := &drainRun{Drainer: d, o: o, pass: pass, until: time.Now().Add(passTime)}
	err = run.all(ctx)
	complete = err == nil && !run.skipped.Load()
	return run.more && complete, err
}

func (d *Drainer) expire(ctx context.Context, o *Options, pass queue.Pass) error {
	done, err := pass.Expire(ctx, o.Expiry)
	total := 0
	for _, address := range slices.Sorted(maps.Keys(done.Messages)) {
		total += done.Messages[address]
		level, what := slog.LevelError, "messages are lost: older than max_age, and expired = drop"
		if o.Expiry.ToDead {
			level, what = slog.LevelWarn, "messages older than max_age became dead letters"
		}
		o.Logger.Log(ctx, level, what, "address", address, "messages", done.Messages[address])
	}
	if done.Dead > 0 {
		o.Logger.Info("dead letters aged out", "dead_letters", done.Dead)
	}
	d.mark(func(st *Status) { st.Expired += int64(total) })
	o.ObserveExpired(done, o.Expiry)
	if err == nil {
		d.nextExpiry = time.Now().Add(expiryEvery)
	}
	return err
}

func (d *Drainer) mark(f func(*Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.status)
}

// drainRun is the pipeline of one pass: while one batch is sent, the next is read and the outcomes of the one
// before are stored. Batches are handed over one at a time, so that at most two are in memory beside the one
// being read.
type drainRun struct {
	*Drainer
	o       *Options
	pass    queue.Pass
	until   time.Time
	more    bool        // the pass ended by time; written by read only
	skipped atomic.Bool // something that was read is still in the queue as it was
}

// all runs the pipeline until the queue is empty, the pass is over or something fails.
func (r *drainRun) all(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	reading, stopReading := context.WithCancel(groupCtx)
	defer stopReading()
	batches := make(chan []queue.Entry)
	sent := make(chan struct{})
	group.Go(func() error {
		defer close(batches)
		return r.read(reading, batches)
	})
	group.Go(func() error {
		defer close(sent)
		defer stopReading()
		return r.send(ctx, groupCtx, batches, sent)
	})
	group.Go(func() error {
		for range sent {
			if err := r.save(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
	err := group.Wait()
	if ctx.Err() != nil {
		r.skipped.Store(true)
		return context.Canceled
	}
	return err
}

// read hands over batches until there are none.
func (r *drainRun) read(ctx context.Context, batches chan<- []queue.Entry) error {
	limits := queue.BatchLimits{Messages: r.o.BatchSize, Bytes: r.o.BatchBytes}
	if r.o.RateLimit > 0 {
		limits.Messages = min(limits.Messages, max(1, int(r.o.RateLimit)))
	}
	for {
		if time.Now().After(r.until) {
			r.more = true
			return nil
		}
		entries, err := r.pass.Next(ctx, limits)
		switch {
		case ctx.Err() != nil:
			r.skipped.Store(true)
			return nil
		case err != nil || len(entries) == 0:
			return err
		}
		select {
		case batches <- entries:
		case <-ctx.Done():
			r.skipped.Store(true)
			return nil
		}
	}
}

// send sends batches until there are no more, or no broker takes them. What is being sent is finished even
// when ctx ends or storing outcomes fails: cut short, messages that a broker accepted would be sent again.
func (r *drainRun) send(ctx, group context.Context, batches <-chan []queue.Entry,
	sent chan<- struct{}) error {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		r.awaitAnswers(sending)
		cancel()
	})
	defer stop()
	for entries := range batches {
		switch {
		case group.Err() != nil || r.paused.Load():
			r.skipped.Store(true)
			return nil
		case !r.pass.Held():
			r.skipped.Store(true)
			return queue.ErrLockLost
		}
		began := time.Now()
		taken := r.sendBatch(sending, entries)
		r.tell(false)
		select {
		case sent <- struct{}{}:
		case <-group.Done():
			return nil
		}
		if !taken {
			r.skipped.Store(true)
			if r.sender.Usable() {
				return errNotTaken
			}
			return nil
		}
		if r.o.RateLimit > 0 {
			retry.Pause(group, time.Duration(float64(len(entries))/r.o.RateLimit*float64(time.Second))-
				time.Since(began))
		}
	}
	return nil
}

// awaitAnswers waits for as long as a batch in hand may go on when the drain stops. ctx ends it.
func (r *drainRun) awaitAnswers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, finishTime)
	defer cancel()
	for last := int64(-1); ctx.Err() == nil; {
		now := r.sender.Answers()
		if now == last {
			return
		}
		last = now
		retry.Pause(ctx, silentTime)
	}
}

// sendBatch sends entries and notes the outcomes as unsaved. It reports whether each got one that changes
// something: a message that has to wait stays as it is.
func (r *drainRun) sendBatch(ctx context.Context, entries []queue.Entry) bool {
	// An outcome that is known and not stored yet must not be asked for again.
	r.mu.Lock()
	entries = slices.DeleteFunc(entries, func(e queue.Entry) bool {
		_, known := r.unsaved[e.Message.ID]
		return known
	})
	r.mu.Unlock()
	readable := make([]queue.Entry, 0, len(entries))
	messages := make([]message.Message, 0, len(entries))
	for _, e := range entries {
		if e.Unreadable != "" {
			r.note(e, message.Outcome{Next: message.Dead, Reason: e.Unreadable})
			continue
		}
		readable = append(readable, e)
		messages = append(messages, e.Message)
	}
	if len(messages) == 0 {
		return true
	}
	failpoint.Hit("before-drain-send")
	outcomes := r.sender.SendPatiently(ctx, messages)
	failpoint.Hit("after-accept-before-delete")
	taken := true
	for i, e := range readable {
		var o message.Outcome
		if i < len(outcomes) {
			o = outcomes[i]
		}
		taken = r.note(e, o) && taken
	}
	return taken
}

// note keeps the settlement of one outcome until it is saved; false when nothing changes.
func (r *drainRun) note(e queue.Entry, o message.Outcome) bool {
	s, changed := queue.Decide(e, o, r.o.MaxAttempts)
	r.o.Observe(e, o, s)
	if !changed {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unsaved[s.ID] = s
	if e.Tries > 0 {
		r.retaken(e.Message.Address, s)
	}
	switch s.Action {
	case queue.Forget:
		r.status.Accepted++
	case queue.SetAside:
		r.status.SetAside++
	case queue.Bury:
		r.status.Dead++
	}
	return true
}

func (d *Drainer) owesOutcomes() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.unsaved) > 0
}

// save stores the unsaved outcomes. It is not called by two goroutines at once. What could not be stored is
// kept.
func (d *Drainer) save(ctx context.Context) error {
	d.mu.Lock()
	todo := slices.Collect(maps.Values(d.unsaved))
	d.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	if err := d.store.Settle(ctx, todo); err != nil {
		return err
	}
	failpoint.Hit("after-settle")
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range todo {
		delete(d.unsaved, s.ID)
	}
	return nil
}

// saveAtEnd tries once more to store what a failed pass left.
func (d *Drainer) saveAtEnd(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
	defer cancel()
	if err := d.save(ctx); err != nil {
		d.options.Load().Logger.Error(
			"outcomes could not be stored; these messages will be sent again after the next start",
			"messages", d.Status().Unsaved, "error", err)
	}
}
