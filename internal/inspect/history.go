package inspect

import (
	"encoding/json"
	"time"
)

// Step is one thing that happened to a message.
type Step struct {
	Time   time.Time `json:"time"`
	Kind   StepKind  `json:"kind"`
	Broker string    `json:"broker,omitempty"`
	Reason string    `json:"reason,omitempty"` // for a person; no secret, no body
}

// StepKind says what happened. Most kinds are also fates: the last of them is what became of the message.
type StepKind string

const (
	Accepted StepKind = "accepted" // a broker has it
	Queued   StepKind = "queued"   // stored, to be sent later
	Dead     StepKind = "dead"     // set aside as a dead letter
	Expired  StepKind = "expired"  // given up after max_age
	Dropped  StepKind = "dropped"  // given up as configured, or by the administrator
	Skipped  StepKind = "skipped"  // an event that makes no message: not asked for, or excluded
	Refused  StepKind = "refused"  // neither sent nor stored; handed back to the hub

	HandedOver StepKind = "handed over" // by the hub
	Attempt    StepKind = "attempt"     // a broker did not take it
	Unreadable StepKind = "unreadable"  // what is stored of it is damaged; the reason says how
	Replayed   StepKind = "replayed"    // put into the queue again, or sent elsewhere, by a replay
)

// Fates are the kinds that say what became of a message.
var Fates = []StepKind{Accepted, Queued, Dead, Expired, Dropped, Skipped, Refused}

// Fate reports whether k says what became of a message.
func (k StepKind) Fate() bool { return k != HandedOver && k != Attempt && k != Replayed }

// The ways by which a message reaches the relay.
const (
	ViaSocket = "socket"
	ViaOutbox = "outbox"
	ViaQueue  = "queue" // found in the queue: written by protonmsg, or put before the history was kept
)

// HistoryQuery says which messages of the history are meant. Conditions that are set must all hold.
type HistoryQuery struct {
	ID      string    `json:"id,omitempty"`
	Build   string    `json:"build,omitempty"`   // NAME-VERSION-RELEASE, or the name of a package
	Tag     string    `json:"tag,omitempty"`     // a pattern
	Task    int64     `json:"task,omitempty"`    // its id
	User    string    `json:"user,omitempty"`    // its name
	Address string    `json:"address,omitempty"` // a pattern of topics without prefix
	Fate    StepKind  `json:"fate,omitempty"`
	Since   time.Time `json:"since,omitzero"`  // handed over at this time or later
	Until   time.Time `json:"until,omitzero"`  // handed over before
	Limit   int       `json:"limit,omitempty"` // 0 = all
	// OldestFirst turns the order around, which is newest first.
	OldestFirst bool `json:"oldest_first,omitempty"`
	// Content asks for properties and bodies.
	Content bool `json:"content,omitempty"`
}

// HistoryMessage is one message, or one event that made none, with what became of it.
type HistoryMessage struct {
	MessageID string    `json:"message_id"`
	Time      time.Time `json:"time"` // handed over; AMQP creation-time
	Via       string    `json:"via"`
	Commit    string    `json:"commit,omitempty"`
	Event     int       `json:"event"`
	Callback  string    `json:"callback,omitempty"`
	Address   string    `json:"address,omitempty"`
	Build     string    `json:"build,omitempty"` // NAME-VERSION-RELEASE
	Package   string    `json:"package,omitempty"`
	Tag       string    `json:"tag,omitempty"`
	Task      int64     `json:"task,omitempty"`
	User      string    `json:"user,omitempty"`
	Size      int       `json:"size"` // of the body, in bytes

	Fate   StepKind  `json:"fate"`
	Since  time.Time `json:"since"` // when it met its fate
	Broker string    `json:"broker,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Steps  []Step    `json:"steps,omitempty"` // oldest first

	// With HistoryQuery.Content only. What is not UTF-8 is replaced in Body.
	Props json.RawMessage `json:"props,omitempty"`
	Body  string          `json:"body,omitempty"`
	// Unreadable says why there are none, where what is stored is damaged.
	Unreadable string `json:"unreadable,omitempty"`
}

// Gap is a time in which messages could not be recorded.
type Gap struct {
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended"`
	Messages int       `json:"messages"` // that were not recorded; 0: not known
	Reason   string    `json:"reason"`
	Writer   string    `json:"writer,omitempty"` // the relay
}

// Reasons of gaps that are told apart. After Killed nothing is missing of what came through the outbox: an
// event leaves that when the history has it.
const (
	Killed       = "the relay was killed"
	KilledBehind = "the relay was killed while the history could not be written"
)

// Replay is messages of the history that are sent again.
type Replay struct {
	ID      int64        `json:"id"`
	Created time.Time    `json:"created"`
	Query   HistoryQuery `json:"query"`          // what is sent; nothing where that is a file
	File    bool         `json:"file,omitempty"` // the messages of a file
	Rate    float64      `json:"rate"`           // messages a second
	// URL and TopicPrefix say where to, if not to the brokers of the configuration. A password in URL is
	// shown as xxxxx.
	URL         string `json:"url,omitempty"`
	TopicPrefix string `json:"topic_prefix,omitempty"`

	State ReplayState `json:"state"`
	Total int         `json:"total"` // messages
	Bytes int64       `json:"bytes"` // of their bodies
	Done  int         `json:"done"`  // put into the queue, or accepted at URL
	// those that waited in the queue anyway, or that cannot be sent
	Skipped int       `json:"skipped,omitempty"`
	Waiting int       `json:"waiting,omitempty"` // of Done: in the queue still
	Refused int       `json:"refused,omitempty"` // by the broker at URL
	Cursor  Ref       `json:"cursor,omitzero"`   // the last message dealt with
	Left    Ref       `json:"left,omitzero"`     // up to here nothing is in the queue any more
	Error   string    `json:"error,omitempty"`   // why it does not go on
	Stands  time.Time `json:"stands,omitzero"`   // since when it does not go on; zero while it does
	Held    bool      `json:"held,omitempty"`    // a relay works on it
	Seen    time.Time `json:"seen,omitzero"`     // when a relay last wrote how far it is
	Ended   time.Time `json:"ended,omitzero"`
}

// Ref names a message and its place in the order of the history.
type Ref struct {
	Handed time.Time `json:"handed,omitzero"`
	ID     string    `json:"id,omitempty"`
	Line   int       `json:"line,omitempty"` // of a file, from 1
}

// Before reports whether r comes before another in a replay.
func (r Ref) Before(other Ref) bool {
	if r.Handed.Equal(other.Handed) {
		return r.Line < other.Line || r.ID < other.ID
	}
	return r.Handed.Before(other.Handed)
}

// ReplayState says how far a replay is.
type ReplayState string

const (
	ReplayRuns      ReplayState = "running"
	ReplayDone      ReplayState = "done"
	ReplayCancelled ReplayState = "cancelled"
	// ReplayUnreadable is one whose record is damaged. It can be cancelled.
	ReplayUnreadable ReplayState = "unreadable"
)

// Plan is what a replay would send.
type Plan struct {
	Messages int            `json:"messages"`
	Bytes    int64          `json:"bytes"`
	Topics   map[string]int `json:"topics"`
	Rate     float64        `json:"rate"` // messages a second
}
