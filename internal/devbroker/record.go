package devbroker

import (
	"context"
	"fmt"
)

// Received is one complete message as it came from a sender.
type Received struct {
	Conn    int    // number of the connection, from 1
	Link    string // name of the link
	Target  string // address as the sender spelled it: of the link, or of the message on an anonymous link
	Key     string // Target without the spelling: the routing key
	ID      string // message-id, whatever its type, as text; empty when there is none
	Settled bool   // the sender had settled it and awaits no outcome
	// Payload is the encoded message, all sections. It is shared: do not modify.
	Payload []byte
	Verdict Verdict // what the script decided, and whether the queues took it
}

// Stats counts what happened since New. Messages counts those that are no longer recorded, too.
type Stats struct {
	Connections int // accepted TCP connections
	Opened      int // connections that came as far as open
	Sessions    int
	Links       int // attached, refused ones not counted
	Refused     int // refused attaches
	Messages    int
	Bytes       int64
	Dispositions,
	Heartbeats int // received heartbeats
	Live int // connections now
}

// Received gives the recorded messages in order of arrival. The oldest are forgotten above
// Options.MaxRecordBytes.
func (b *Broker) Received() []Received {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Received(nil), b.records...)
}

// Stats gives the counters.
func (b *Broker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Live = len(b.conns)
	return s
}

// Depth is the number of messages that wait in the named queue, those that a consumer holds unsettled not
// counted.
func (b *Broker) Depth(queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.queues["queue "+queue]; q != nil {
		return len(q.ready)
	}
	return 0
}

// Pending is the number of messages in all queues that outlive their consumers, those that a consumer holds
// unsettled not counted.
func (b *Broker) Pending() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, q := range b.queues {
		if q.lasting {
			n += len(q.ready)
		}
	}
	return n
}

// WaitReceived blocks until the broker has received n messages in all, or ctx ends.
func (b *Broker) WaitReceived(ctx context.Context, n int) error {
	return b.Wait(ctx, func(s Stats) bool { return s.Messages >= n })
}

// Wait blocks until the condition holds for the broker's counters, or ctx ends; the error tells the counters.
func (b *Broker) Wait(ctx context.Context, condition func(Stats) bool) error {
	for {
		b.mu.Lock()
		s := b.stats
		s.Live = len(b.conns)
		if condition(s) {
			b.mu.Unlock()
			return nil
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the broker (%+v): %w", s, context.Cause(ctx))
		}
	}
}

// count changes the counters and wakes those who wait for them.
func (b *Broker) count(change func(*Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.stats)
	b.notifyLocked()
}

func (b *Broker) notifyLocked() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (b *Broker) record(r Received) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats.Messages++
	b.stats.Bytes += int64(len(r.Payload))
	if b.opts.MaxRecordBytes > 0 {
		b.records = append(b.records, r)
		b.recordBytes += recordSize(r)
	}
	for b.recordBytes > b.opts.MaxRecordBytes && len(b.records) > 0 {
		b.recordBytes -= recordSize(b.records[0])
		b.records[0] = Received{}
		b.records = b.records[1:]
	}
	b.notifyLocked()
}

func recordSize(r Received) int {
	const overhead = 200
	return overhead + len(r.Payload) + len(r.Target)
}
