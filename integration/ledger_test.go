package integration

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ledger is a hub that remembers what it handed over. Each event has a number of its own, which its body
// carries, so that what arrives can be told by its content alone and its message-id be checked. A commit goes
// to the relay as the hub plugin hands it over: 2 s, and then into the outbox, where there is one, with what
// was not taken.
type ledger struct {
	outbox string // connection string of the hub's database; "" without one
	small  bool   // no event is large

	mu       sync.Mutex        // guards the fields below
	events   map[int]*numbered // by number, as far as the hub announced them
	answered int               // events answered 200
	stored   int               // events in the outbox
	refused  int               // events that nobody took, which the hub was told
	named    int               // events that a relay named as not taken
	more     chan struct{}

	connect sync.Once // guards the fields below
	pool    *pgxpool.Pool
	poolErr error
}

// numbered is one event that was announced.
type numbered struct {
	id     string // the message-id that it must have
	build  int
	topic  string
	props  string
	body   string
	handed bool   // answered 200, or committed in the outbox
	how    string // what the hub was told, and when
}

func newLedger(outbox string) *ledger {
	return &ledger{outbox: outbox, events: make(map[int]*numbered), more: make(chan struct{}, 1)}
}

type ledgerKind struct{ callback, topic, kind string }

var kinds = []ledgerKind{
	{"postTag", "build.tag", "Tag"},
	{"postUntag", "build.untag", "Untag"},
}

var ledgerTopics = []string{kinds[0].topic, kinds[1].topic}

// announce makes a commit of n events of one build.
func (l *ledger) announce(build, n int) (id string, numbers []int, request []byte) {
	id = uuid.NewString()
	request = fmt.Appendf(nil, `{"commit": %q, "events": [`, id)
	l.mu.Lock()
	defer l.mu.Unlock()
	for event := range n {
		number := len(l.events)
		k := kinds[number%len(kinds)]
		filler := ""
		if number%50 == 0 && !l.small {
			filler = strings.Repeat("x", 100_000)
		}
		body := fmt.Sprintf(`{"tag": {"id": 7, "name": "f39-candidate"}, "build": {"build_id": %d, `+
			`"name": "pkg-%d", "version": "1.0", `+
			`"release": "%d.fc39", "extra": {"note": "Žluťoučký \u65e5\u672c %s"}}, "user": {"id": 1, `+
			`"name": "kojiadmin"}, "force": false}`,
			number, build, number, filler)
		l.events[number] = &numbered{id: messageID(id, event), build: build, topic: k.topic, body: body,
			props: ledgerProps(build, number, k.kind)}
		numbers = append(numbers, number)
		request = fmt.Appendf(request, `%s{"event": %d, "callback": %q, "kwargs": %s}`, comma(event), event,
			k.callback, body)
	}
	return id, numbers, append(request, "]}"...)
}

// ledgerProps are the application-properties of an event of a ledger.
func ledgerProps(build, number int, kind string) string {
	return strings.Join([]string{"name string " + quoted("pkg-%d", build),
		"release string " + quoted("%d.fc39", number), "tag string " + quoted("f39-candidate"),
		"type string " + quoted("%s", kind), "user string " + quoted("kojiadmin"),
		"version string " + quoted("1.0")}, "\n")
}

// quoted is a string as prop.String prints it.
func quoted(format string, args ...any) string {
	return fmt.Sprintf("%q <nil>", fmt.Sprintf(format, args...))
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ", "
}

// handOver posts a commit of n events to r, and puts into the outbox what was not taken. It gives the status
// of the answer, 0 without one.
func (l *ledger) handOver(r *relay, build, n int) (status int) {
	commit, numbers, request := l.announce(build, n)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	left := make([]int, n) // events by their number in the commit
	for i := range left {
		left[i] = i
	}
	began := time.Now()
	a, err := r.post(ctx, request)
	switch {
	case err != nil:
	case a.Code == http.StatusOK:
		left = nil
	case a.Code == http.StatusServiceUnavailable && len(a.NotTaken) > 0:
		left = a.NotTaken
	}
	var stored bool
	if len(left) > 0 && l.outbox != "" {
		stored = l.store(commit, numbers, left) == nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.named += len(a.NotTaken)
	for i, number := range numbers {
		switch {
		case !slices.Contains(left, i):
			l.answered++
		case stored:
			l.stored++
		default:
			l.refused++
			continue
		}
		l.events[number].handed = true
		l.events[number].how = fmt.Sprintf("at %s for %v %s: %d sent, %d queued, not taken %v, %v",
			began.Format("05.000"), time.Since(began).Round(time.Millisecond), filepath.Base(r.dir), a.Sent, a.Queued,
			left, err)
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
	return a.Code
}

// namedSoFar is how many events relays named as not taken.
func (l *ledger) namedSoFar() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.named
}

// insert puts a commit of n events into the outbox, as a hub with delivery = outbox does.
func (l *ledger) insert(t testing.TB, build, n int) {
	t.Helper()
	commit, numbers, _ := l.announce(build, n)
	events := make([]int, n)
	for i := range events {
		events[i] = i
	}
	if err := l.store(commit, numbers, events); err != nil {
		t.Fatalf("insert into the outbox: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stored += n
	for _, number := range numbers {
		l.events[number].handed = true
	}
}

// store inserts events into the outbox, by their number in the commit, over a connection that is kept as a
// hub's process keeps its own. Where PostgreSQL was killed meanwhile it takes a new one.
func (l *ledger) store(commit string, numbers, events []int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	l.connect.Do(func() { l.pool, l.poolErr = pgxpool.New(context.Background(), l.outbox) })
	if l.poolErr != nil {
		return l.poolErr
	}
	send := func() error {
		batch := &pgx.Batch{} // one transaction
		for _, event := range events {
			e := l.event(numbers[event])
			callback := kinds[slices.Index(ledgerTopics, e.topic)].callback
			batch.Queue(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES ($1, $2, $3, $4)
				ON CONFLICT DO NOTHING`, commit, event, callback, e.body)
		}
		batch.Queue("SELECT pg_notify('koji_relay', 'outbox')")
		return l.pool.SendBatch(ctx, batch).Close()
	}
	err := send()
	if err != nil {
		l.pool.Reset()
		err = send()
	}
	return err
}

// close ends what store keeps.
func (l *ledger) close() {
	if l.pool != nil {
		l.pool.Close()
	}
}

// underWay reports whether something that was handed over has not come, by its message-id alone.
func (l *ledger) underWay(box *inbox) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.handed && !box.has(e.id) {
			return true
		}
	}
	return false
}

func (l *ledger) event(number int) numbered {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.events[number]
}

// work starts hub workers, each with a build of its own, that hand over one commit after the other to the
// relays in turn until the function it gives is called.
func (l *ledger) work(t testing.TB, workers int, relays ...*relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for build := range workers {
		running.Go(func() {
			pace := time.NewTicker(30 * time.Millisecond)
			defer pace.Stop()
			for turn := 0; ; turn++ {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
					l.handOver(relays[(build+turn)%len(relays)], build, 1+turn%4/3*2)
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// awaitMore waits until n more events were answered 200, and reports whether that was before limit and before
// ended was closed.
func (l *ledger) awaitMore(n int, limit time.Duration, ended <-chan struct{}) bool {
	l.mu.Lock()
	want := l.answered + n
	l.mu.Unlock()
	timeout := time.After(limit)
	for {
		l.mu.Lock()
		enough := l.answered >= want
		l.mu.Unlock()
		if enough {
			return true
		}
		select {
		case <-l.more:
		case <-ended:
			return false
		case <-timeout:
			return false
		}
	}
}

// await waits until n more events were answered 200, which must be soon.
func (l *ledger) await(t testing.TB, n int) {
	t.Helper()
	if !l.awaitMore(n, 30*time.Second, nil) {
		t.Fatalf("less than %d events were answered 200 within 30 s", n)
	}
}

var buildID = regexp.MustCompile(`"build_id": (\d+)`)

// verdict is what became of the events of a ledger.
type verdict struct {
	arrived    int
	duplicates int
	lost       []int
	wrong      []string // what came altered, or under another message-id
	disorder   []string // first arrivals of a build that were overtaken
}

// judge compares what arrived with what was announced.
func (l *ledger) judge(deliveries []delivery) (v verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := make(map[int]bool, len(l.events))
	last := make(map[int]int)
	for _, d := range deliveries {
		number := bodyNumber(deref(d.Body))
		e, known := l.events[number]
		if !known {
			v.wrong = append(v.wrong, fmt.Sprintf("message %s is of no event: %.200q", d.ID, deref(d.Body)))
			continue
		}
		switch {
		case *d.Body != e.body:
			v.wrong = append(v.wrong, fmt.Sprintf("event %d came with another body", number))
		case d.ID != e.id:
			v.wrong = append(v.wrong, fmt.Sprintf("event %d came with the message-id %s, not %s", number, d.ID, e.id))
		case strings.Join(sortedProps(d.Props), "\n") != e.props:
			v.wrong = append(v.wrong, fmt.Sprintf("event %d came with the properties %s", number,
				sortedProps(d.Props)))
		}
		if seen[number] {
			v.duplicates++
			continue
		}
		seen[number] = true
		v.arrived++
		if before, ok := last[e.build]; ok && before > number {
			v.disorder = append(v.disorder, fmt.Sprintf("event %d of build %d (%s) came after %d (%s)", number,
				e.build, e.how, before, l.events[before].how))
		}
		last[e.build] = max(last[e.build], number)
	}
	for number, e := range l.events {
		if e.handed && !seen[number] {
			v.lost = append(v.lost, number)
		}
	}
	slices.Sort(v.lost)
	return v
}

// bodyNumber is the number of the event that a body carries; -1 without one.
func bodyNumber(body string) int {
	if m := buildID.FindStringSubmatch(body); m != nil {
		number, _ := strconv.Atoi(m[1])
		return number
	}
	return -1
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// awaitArrival waits until every event that was handed over has arrived in box, or nothing came for quiet.
func (l *ledger) awaitArrival(box *inbox, quiet time.Duration) (v verdict, err error) {
	arrived, since := -1, time.Now()
	for {
		n, err := box.count()
		// To judge thousands of messages takes as long as a few seconds of the broker's work.
		if err != nil || !l.underWay(box) || n == arrived && time.Since(since) > quiet {
			deliveries, err := box.all()
			return l.judge(deliveries), err
		}
		if n != arrived {
			arrived, since = n, time.Now()
		}
		<-time.After(200 * time.Millisecond)
	}
}

// report fails t for what must not be, and gives the account in one line.
func (v verdict) report(t testing.TB, l *ledger, ordered bool) string {
	t.Helper()
	complain := func(what string, list []string) {
		if len(list) > 0 {
			t.Errorf("%s: %d times, for example %s", what, len(list), list[0])
		}
	}
	complain("altered", v.wrong)
	if ordered {
		complain("out of order", v.disorder)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, number := range v.lost[:min(3, len(v.lost))] {
		e := l.events[number]
		t.Errorf("lost: event %d of build %d, message-id %s", number, e.build, e.id)
	}
	if l.answered == 0 || v.arrived == 0 {
		t.Error("nothing was handed over, or nothing arrived: this proves nothing")
	}
	return fmt.Sprintf("%d events announced, %d answered 200, %d in the outbox, %d taken by nobody; %d "+
		"arrived, %d duplicates, %d lost",
		len(l.events), l.answered, l.stored, l.refused, v.arrived, v.duplicates, len(v.lost))
}

// sum prints counts by name, in the order of names.
func sum(counts map[string]int) string {
	var parts []string
	for name, n := range counts {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.SortFunc(parts, cmp.Compare)
	return strings.Join(parts, ", ")
}
