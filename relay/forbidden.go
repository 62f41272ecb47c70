package relay

import (
	"sync"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/failure"
)

// forbiddenTime is when a topic is tried like any other again, for the case that nobody calls SendPatiently,
// which finds out earlier.
const forbiddenTime = 10 * time.Minute

// forbidden are the topics that a broker does not let us publish. RabbitMQ tells for each message only, and
// ends the session with all that is under way in it. So a topic that was told of a message alone is turned
// away here. One of its messages is sent every refusalTime, alone again.
type forbidden struct {
	mu     sync.Mutex // guards topics
	topics map[string]refusal
}

func (f *forbidden) add(topic string, r result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.topics == nil || len(f.topics) >= 4*maxLinks { // forgetting one costs a session
		f.topics = map[string]refusal{}
	}
	f.topics[topic] = refusal{result: r, until: time.Now().Add(refusalTime)}
}

func (f *forbidden) clear(topic string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.topics, topic)
}

// get gives what the broker said of a topic. due: it is time to ask again.
func (f *forbidden) get(topic string) (r result, known, due bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of, known := f.topics[topic]
	late := time.Since(of.until)
	if late > forbiddenTime {
		return result{}, false, false
	}
	return of.result, known, known && late >= 0
}

// askAgain reports whether a broker that forbids the topic is to be asked again.
func (r *Relay) askAgain(topic string) bool {
	for _, b := range r.brokers {
		if _, _, due := b.forbidden.get(topic); due {
			return true
		}
	}
	return false
}

// forbids gives what a broker says that ends a link or session since we may not publish there; else "".
func forbids(err *amqp.Error) string {
	if err.Condition != amqp.ErrCondUnauthorizedAccess {
		return ""
	}
	return failure.Condition(err)
}
