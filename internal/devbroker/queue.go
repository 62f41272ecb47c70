package devbroker

import (
	"fmt"
	"slices"

	"koji-relay/internal/devbroker/wire"
)

// queued is one message in a queue. The payload is shared by all queues that hold the message.
type queued struct {
	payload []byte
}

// queue holds the messages of one subscription or one named queue until consumers settle them. Its fields
// are guarded by Broker.mu.
type queue struct {
	name     string
	patterns []string // routing keys that it receives
	lasting  bool     // survives its consumers' connections: a named queue or a durable subscription
	kept     bool     // survives even a consumer that closes its link for good
	ready    []queued
	bytes    int
	// consumers counts the links of each connection that read from the queue.
	consumers map[*conn]int
}

// wake tells every connection that consumes from q that there may be work.
func (q *queue) wake() {
	for c := range q.consumers {
		c.rouse()
	}
}

// routing says what became of a message.
type routing int

const (
	routed routing = iota
	unrouted
	overflow
)

// route puts the message into every queue that wants it, or into none when one of them that lasts is full.
// A subscription that does not last and is full misses the message, so that a stuck viewer hurts only itself.
func (b *Broker) route(to address, payload []byte) routing {
	b.mu.Lock()
	defer b.mu.Unlock()
	var into []*queue
	if to.queue {
		into = append(into, b.queueLocked(to.key))
	} else {
		for _, q := range b.queues {
			if q.wants(to.key) {
				into = append(into, q)
			}
		}
	}
	if len(into) == 0 {
		return unrouted
	}
	for _, q := range into {
		if q.lasting && q.bytes+len(payload) > b.opts.MaxQueueBytes {
			return overflow
		}
	}
	for _, q := range into {
		if q.bytes+len(payload) > b.opts.MaxQueueBytes {
			continue
		}
		q.ready = append(q.ready, queued{payload})
		q.bytes += len(payload)
		q.wake()
	}
	return routed
}

func (q *queue) wants(key string) bool {
	for _, p := range q.patterns {
		if matchKey(p, key) {
			return true
		}
	}
	return false
}

// queueLocked is the named queue, made on first use. Broker.mu is held.
func (b *Broker) queueLocked(name string) *queue {
	id := "queue " + name
	q := b.queues[id]
	if q == nil {
		q = &queue{name: id, lasting: true, kept: true, consumers: map[*conn]int{}}
		b.queues[id] = q
	}
	return q
}

// subscriptionLocked is the durable subscription of that name, made on first use. Broker.mu is held.
func (b *Broker) subscriptionLocked(id, pattern string) *queue {
	q := b.queues[id]
	if q == nil {
		q = &queue{name: id, lasting: true, consumers: map[*conn]int{}}
		b.queues[id] = q
	}
	q.patterns = []string{pattern}
	return q
}

// subscribe finds or makes the queue behind a source and counts c among its consumers.
func (b *Broker) subscribe(c *conn, a wire.Attach, from address) *queue {
	b.mu.Lock()
	defer b.mu.Unlock()
	var q *queue
	switch {
	case from.queue:
		q = b.queueLocked(from.key)
	case slices.Contains(b.opts.DurableUsers, c.user):
		q = b.subscriptionLocked(fmt.Sprintf("subscription of %s to %s", c.user, from.key), from.key)
		q.kept = true
	case a.Source.Durable > 0 || a.Source.Expiry == "never":
		q = b.subscriptionLocked(fmt.Sprintf("subscription %s %s", c.peer.ContainerID, a.Name), from.key)
	default:
		b.serial++
		id := fmt.Sprintf("temporary %d", b.serial)
		q = &queue{name: id, patterns: []string{from.key}, consumers: map[*conn]int{}}
		b.queues[id] = q
	}
	q.consumers[c]++
	return q
}

// unsubscribe ends one consumer's interest and puts back, in front, what it had not settled. A queue that
// does not last goes with its last consumer; forget (the consumer closed its link for good) deletes others
// too, but those that are kept.
func (b *Broker) unsubscribe(c *conn, q *queue, unsettled []queued, forget bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.consumers[c]--; q.consumers[c] <= 0 {
		delete(q.consumers, c)
	}
	if len(q.consumers) == 0 && !q.kept && (!q.lasting || forget) {
		delete(b.queues, q.name)
		return
	}
	q.putBack(unsettled)
}

func (q *queue) putBack(messages []queued) {
	if len(messages) == 0 {
		return
	}
	q.ready = append(append(make([]queued, 0, len(messages)+len(q.ready)), messages...), q.ready...)
	for _, m := range messages {
		q.bytes += len(m.payload)
	}
	q.wake()
}

// requeue puts one unsettled message back in front.
func (b *Broker) requeue(q *queue, m queued) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q.putBack([]queued{m})
}

// next takes the oldest message out of q.
func (b *Broker) next(q *queue) (queued, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(q.ready) == 0 {
		return queued{}, false
	}
	m := q.ready[0]
	q.ready[0] = queued{} // lets the payload go
	q.ready = q.ready[1:]
	q.bytes -= len(m.payload)
	return m, true
}
