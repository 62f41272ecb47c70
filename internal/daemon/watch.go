package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/relay"
)

// rememberedFates is how many of the last messages the status page shows.
const rememberedFates = 200

// watch tells the administrator's side what the stages report. Its methods do not block and may be called
// concurrently.
type watch struct {
	metrics *admin.Metrics
	recent  *admin.Recent
	log     *slog.Logger
	history recorder // set before anything is recorded

	refusals   *refusals
	brokerless *brokerless

	mu   sync.Mutex
	seen map[string]bool // brokers that were up before; guarded by mu
}

func newWatch(version, name string, log *slog.Logger) *watch {
	return &watch{
		log: log,

		refusals:   &refusals{log: log},
		brokerless: &brokerless{log: log},

		metrics: admin.NewMetrics(version, name),
		recent:  admin.NewRecent(rememberedFates),
		seen:    make(map[string]bool),
		history: noHistory{},
	}
}

// taken accounts for a commit that has its answer.
func (w *watch) taken(via string, c message.Commit, r message.Receipt, took time.Duration) {
	w.metrics.CommitTaken(via, c, r, took)
}

// message takes note of what became of one message.
func (w *watch) message(m *message.Message, o message.Outcome, fate admin.FateKind) {
	if w.log.Enabled(context.Background(), slog.LevelDebug) {
		w.log.Debug("message dealt with", "fate", fate, "commit", m.Commit, "event", m.Event, "address", m.Address,
			"message_id", m.ID, "broker", o.Broker, "reason", o.Reason)
	}
	w.recent.Add(admin.Fate{
		Time: time.Now(), Commit: m.Commit, Event: m.Event, Callback: m.Callback, Address: m.Address,
		MessageID: m.ID, Fate: fate, Broker: o.Broker, Reason: o.Reason,
	})
}

// sent is for a message that was handed over and may be forgotten.
func (w *watch) sent(m *message.Message, via string, o message.Outcome) {
	fate, kind := admin.Sent, inspect.Accepted
	if o.State != message.Accepted {
		fate, kind = admin.Dropped, inspect.Dropped
	}
	w.message(m, o, fate)
	w.history.Message(m, via, step(kind, o))
}

// skipped takes note of events that make no message.
func (w *watch) skipped(events []message.Skipped, via string, at time.Time) {
	for i := range events {
		events[i].Message.Created = at
		w.history.Message(&events[i].Message, via, inspect.Step{Kind: inspect.Skipped, Reason: events[i].Reason})
	}
}

// put takes note of what was handed over and stored for later.
func (w *watch) put(unsent []message.Unsent, bad []message.Undeliverable, via string) {
	queued := 0
	for i := range unsent {
		u := &unsent[i]
		if u.Outcome.Next == message.Dead {
			w.metrics.DeadLetters(u.Outcome.Failed(), 1)
			w.message(&u.Message, u.Outcome, admin.Dead)
			w.history.Message(&u.Message, via, step(inspect.Dead, u.Outcome))
			continue
		}
		queued++
		w.message(&u.Message, u.Outcome, admin.Queued)
		w.history.Message(&u.Message, via, step(inspect.Queued, u.Outcome))
	}
	w.metrics.QueuePut(queued)
	if len(bad) > 0 {
		w.metrics.DeadLetters(message.FailedUnencodable, len(bad))
	}
	w.undeliverable(bad, admin.Dead)
	for i := range bad {
		w.history.Message(event(&bad[i]), via, inspect.Step{Kind: inspect.Dead, Reason: bad[i].Reason})
	}
}

// refused takes note of what was neither sent nor stored. What came by the outbox stays there, and will come
// again.
func (w *watch) refused(unsent []message.Unsent, bad []message.Undeliverable, via string, cause error) {
	if via == inspect.ViaOutbox {
		return
	}
	refused := inspect.Step{Kind: inspect.Refused, Reason: cause.Error()}
	for i := range unsent {
		w.message(&unsent[i].Message, unsent[i].Outcome, admin.NotTaken)
		w.history.Message(&unsent[i].Message, via, refused)
	}
	w.undeliverable(bad, admin.NotTaken)
	for i := range bad {
		w.history.Message(event(&bad[i]), via, refused)
	}
}

func (w *watch) undeliverable(bad []message.Undeliverable, fate admin.FateKind) {
	for _, b := range bad {
		w.recent.Add(admin.Fate{
			Time: time.Now(), Commit: b.Commit, Event: b.Event, Callback: b.Callback, MessageID: b.ID,
			Fate: fate, Reason: b.Reason,
		})
	}
}

// relayObserver counts what brokers answer and how their connections do.
func (w *watch) relayObserver() relay.Observer {
	return relay.Observer{
		Accepted: func(broker string, m *message.Message, took time.Duration) {
			w.metrics.MessageSent(m.Address, broker, took)
		},
		NotAccepted: func(broker string, m *message.Message, o message.Outcome) {
			w.metrics.SendFailed(broker, o.Failed())
			o.Broker = broker
			w.history.Step(m.ID, m.Created, step(inspect.Attempt, o))
		},
		BrokerState: func(broker string, s relay.BrokerState) {
			if s != relay.Up {
				return
			}
			w.mu.Lock()
			again := w.seen[broker]
			w.seen[broker] = true
			w.mu.Unlock()
			if again {
				w.metrics.Reconnected(broker)
			}
		},
		Failed: w.metrics.SendFailed,
	}
}

// drained accounts for one message that the drain dealt with.
func (w *watch) drained(e queue.Entry, o message.Outcome, s queue.Settlement) {
	switch {
	case s.Action == queue.Bury:
		m := &e.Message
		w.log.Warn("message set aside as a dead letter", "commit", m.Commit, "event", m.Event, "address", m.Address,
			"message_id", m.ID, "reason", o.Reason)
		w.metrics.DeadLetters(o.Failed(), 1)
		w.message(m, o, admin.Dead)
		w.history.Found(m, step(inspect.Dead, o))
	case o.State == message.Accepted:
		w.metrics.QueueDrained(1)
		w.message(&e.Message, o, admin.Drained)
		w.history.Found(&e.Message, step(inspect.Accepted, o))
	case s.Action == queue.Forget:
		w.message(&e.Message, o, admin.Dropped)
		w.history.Found(&e.Message, step(inspect.Dropped, o))
	}
}

// expiredOne takes note of one message that the drain gave up.
func (w *watch) expiredOne(id string, created time.Time) {
	w.history.Step(id, created, inspect.Step{Kind: inspect.Expired, Reason: "older than max_age"})
}

// expired accounts for what grew older than max_age.
func (w *watch) expired(done queue.Expired, by queue.Expiry) {
	for address, n := range done.Messages {
		w.metrics.QueueExpired(address, n)
		if by.ToDead {
			w.metrics.DeadLetters(message.FailedExpired, n)
		}
	}
}
