package history

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/fnmatch"
	"koji-relay/internal/inspect"
)

// Query is a question with its patterns looked up, so that a store compares words only.
type Query struct {
	inspect.HistoryQuery
	Package   string   // of Build
	Tags      []string // that the pattern Tag matches; nil: any
	Addresses []string // likewise
	none      bool     // nothing can match

	tag, address *fnmatch.Pattern // nil: any
}

// manyWords is where a pattern is no help in finding messages: so many match that most messages do.
const manyWords = 300

// isPattern reports whether s is more than a word.
func isPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// prepare looks up the patterns of q.
func prepare(ctx context.Context, s Store, q inspect.HistoryQuery) (*Query, error) {
	p := &Query{HistoryQuery: q, Package: packageOf(q.Build)}
	if q.ID != "" {
		p.ID, p.none = canonical(q.ID)
	}
	// Row times are in microseconds; a bound that is finer would cut one in two.
	p.Since, p.Until = q.Since.Truncate(time.Microsecond), q.Until.Truncate(time.Microsecond)
	for _, one := range []struct {
		pattern  string
		kind     Kind
		words    *[]string
		compiled **fnmatch.Pattern
	}{{q.Tag, Tags, &p.Tags, &p.tag}, {q.Address, Addresses, &p.Addresses, &p.address}} {
		if one.pattern == "" || one.pattern == "*" {
			continue
		}
		compiled, err := fnmatch.Compile(one.pattern)
		if err != nil {
			return nil, fmt.Errorf("%w: %q is not a pattern: %w", ErrQuery, one.pattern, err)
		}
		*one.compiled = compiled
		if !isPattern(one.pattern) {
			*one.words = []string{one.pattern}
			continue
		}
		words, err := s.Words(ctx, one.kind, compiled.Match)
		if err != nil {
			return nil, err
		}
		p.none = p.none || len(words) == 0
		if len(words) <= manyWords {
			*one.words = words
		}
	}
	return p, nil
}

// canonical gives a message-id as it is stored, however it was written; none: it is no message-id.
func canonical(id string) (stored string, none bool) {
	u, err := uuid.Parse(strings.TrimSpace(id))
	return u.String(), err != nil
}

// Search calls each for the messages that q means, in its order. An error of each ends it and is returned.
// Its cost grows with what is found, hardly with what is stored.
func Search(ctx context.Context, s Store, q inspect.HistoryQuery,
	each func(*inspect.HistoryMessage) error) error {
	p, err := prepare(ctx, s, q)
	if err != nil || p.none {
		return err
	}
	const most = 500
	n := most
	if q.Limit > 0 && q.Limit < most {
		n = q.Limit + 1
	}
	var after Ref
	for found := 0; ; {
		refs, err := s.Find(ctx, p, after, n)
		if err != nil {
			return err
		}
		messages, err := load(ctx, s, p, refs)
		if err != nil {
			return err
		}
		for _, m := range messages {
			if err := each(&m.HistoryMessage); err != nil {
				return err
			}
			if found++; found == q.Limit {
				return nil
			}
		}
		if len(refs) < n {
			return nil
		}
		after, n = refs[len(refs)-1], min(most, 2*n) // hardly more than is asked for
	}
}

// load gives the messages of refs, without those that q does not mean.
func load(ctx context.Context, s Store, q *Query, refs []Ref) ([]*told, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	ids := make([]string, len(refs))
	for i, ref := range refs {
		ids[i] = ref.ID
	}
	slices.Sort(ids)
	rows, steps, err := s.Load(ctx, slices.Compact(ids), q.Content)
	if err != nil {
		return nil, err
	}
	known := assemble(rows, steps)
	var messages []*told
	for i, ref := range refs {
		m := known[ref.ID]
		// A message that was handed over twice is given once, in the place of the first time that q covers.
		if m == nil || i > 0 && refs[i-1] == ref || !ref.Handed.Equal(m.first(q)) ||
			!q.means(&m.HistoryMessage) {
			continue
		}
		if q.Content {
			m.unpack()
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// Show gives one message with all that happened to it; ErrNotFound where there is none.
func Show(ctx context.Context, s Store, id string) (*inspect.HistoryMessage, error) {
	id, none := canonical(id)
	if none {
		return nil, ErrNotFound
	}
	rows, steps, err := s.Load(ctx, []string{id}, true)
	if err != nil {
		return nil, err
	}
	m := assemble(rows, steps)[id]
	if m == nil {
		return nil, ErrNotFound
	}
	m.unpack()
	return &m.HistoryMessage, nil
}

// told is a message put together from its rows and steps.
type told struct {
	inspect.HistoryMessage
	handed  []time.Time
	content []byte
}

// assemble puts messages together. Steps without a row are left out: the days of their messages were dropped.
func assemble(rows []Row, steps []Step) map[string]*told {
	all := make(map[string]*told)
	for i := range rows {
		r := &rows[i]
		m := all[r.ID]
		if m == nil {
			m = &told{}
			m.HistoryMessage = inspect.HistoryMessage{MessageID: r.ID, Time: r.Handed, Via: r.Via,
				Commit: r.Commit, Event: r.Event,
				Callback: r.Callback, Address: r.Address, Build: r.Keys.Build, Package: r.Keys.Package,
				Tag:  r.Keys.Tag,
				Task: r.Keys.Task, User: r.Keys.User, Size: r.Size}
			all[r.ID] = m
		}
		if m.content == nil && r.Content != nil {
			m.content, m.Size, m.Address = r.Content, r.Size, r.Address
		}
		m.handed = append(m.handed, r.Handed)
		if r.Via != inspect.ViaQueue {
			m.Steps = append(m.Steps, inspect.Step{Time: r.Handed, Kind: inspect.HandedOver,
				Reason: "by the " + r.Via})
		}
		m.Steps = append(m.Steps, r.First)
	}
	for i := range steps {
		if m := all[steps[i].ID]; m != nil {
			m.Steps = append(m.Steps, steps[i].Step)
		}
	}
	for _, m := range all {
		m.judge()
	}
	return all
}

// judge sorts the steps, and reads the fate from them.
func (m *told) judge() {
	slices.SortStableFunc(m.Steps, func(a, b inspect.Step) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return cmp.Compare(stepOrder[a.Kind], stepOrder[b.Kind])
	})
	for _, s := range m.Steps {
		if s.Kind.Fate() {
			m.Fate, m.Since, m.Broker, m.Reason = s.Kind, s.Time, s.Broker, s.Reason
		}
	}
}

// stepOrder is for steps of the same microsecond.
var stepOrder = map[inspect.StepKind]int{inspect.HandedOver: -3, inspect.Attempt: -2, inspect.Refused: -1,
	inspect.Accepted: 1, inspect.Expired: 1, inspect.Dropped: 1, inspect.Dead: 1}

// first is the first time that m was handed over within the times of q.
func (m *told) first(q *Query) time.Time {
	for _, t := range m.handed {
		if q.covers(t) {
			return t
		}
	}
	return time.Time{}
}

// unpack fills in properties and body, or says why there are none.
func (m *told) unpack() {
	if m.content == nil {
		return
	}
	props, body, err := Unpack(m.content)
	if err == nil && !json.Valid(props) {
		err = errors.New("the properties are no JSON")
	}
	if err != nil {
		m.Unreadable = fmt.Sprintf("what the history has of message %s is damaged: %v", m.MessageID, err)
		return
	}
	m.Props, m.Body = props, strings.ToValidUTF8(string(body), "\uFFFD")
}

func (q *Query) covers(t time.Time) bool {
	return !t.Before(q.Since) && (q.Until.IsZero() || t.Before(q.Until))
}

// means reports whether all conditions but the times hold.
func (q *Query) means(m *inspect.HistoryMessage) bool {
	return (q.ID == "" || q.ID == m.MessageID) &&
		(q.Build == "" || q.Build == m.Build || q.Build == m.Package) &&
		(q.tag == nil || q.tag.Match(m.Tag)) &&
		(q.Task == 0 || q.Task == m.Task) &&
		(q.User == "" || q.User == m.User) &&
		(q.address == nil || q.address.Match(m.Address)) &&
		(q.Fate == "" || q.Fate == m.Fate)
}
