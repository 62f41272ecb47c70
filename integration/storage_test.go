package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// TestStores runs what an outage does to a queue on the built relay with either store.
func TestStores(t *testing.T) {
	t.Parallel()
	broker, postgres := startBroker(t, rabbitmq40), startPostgres(t)
	for _, store := range []string{"postgres", "file"} {
		open := func(t *testing.T) *lane {
			if store == "file" {
				return newLane(t, broker, nil, 1)
			}
			return newLane(t, broker, postgres, 1)
		}
		t.Run("messages and dead letters expire in "+store, func(t *testing.T) { expire(t, open) })
		t.Run("difficult messages in "+store, func(t *testing.T) { difficult(t, open(t)) })
		t.Run("max_bytes in "+store, func(t *testing.T) { maxBytes(t, open(t)) })
	}
	t.Run("no transaction idles while the drain waits for a broker",
		func(t *testing.T) { idleTransactions(t, newLane(t, broker, postgres, 1)) })
}

// command runs a command of the program and gives what it printed.
func (r *relay) command(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append(args, "--config", r.conf)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("koji-relay %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// kept is what the queue and the dead letters hold, as kind and body.
func kept(t testing.TB, r *relay) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(r.command(t, "", "queue", "export")) {
		var item struct{ Kind, Body string }
		if err := json.Unmarshal([]byte(line), &item); err != nil {
			t.Fatal(err)
		}
		all = append(all, item.Kind+" "+strings.Trim(item.Body, `"`))
	}
	slices.Sort(all)
	return all
}

// expire starts relays with what an outage of a day left: the relay was stopped for as long, or comes up
// while no broker is there.
func expire(t *testing.T, open func(*testing.T) *lane) {
	item := func(kind, name string, since time.Duration) string {
		at := time.Now().Add(-since).Format(time.RFC3339)
		return fmt.Sprintf(`{"kind": %q, "message_id": %q, "address": "build.tag", "props": "{}", `+
			`"body": "\"%s\"", "created": %q, "queued": %q}`,
			kind, uuid.NewString(), name, at, at) + "\n"
	}
	const hour = time.Hour
	left := item("message", "of 23 h", 23*hour) + item("message", "of 25 h", 25*hour) +
		item("message", "of 47 h", 47*hour) +
		item("dead_message", "of 29 days", 29*24*hour) + item("dead_message", "of 31 days", 31*24*hour)
	for _, row := range []struct {
		set  settings
		want []string
	}{
		{settings{"queue.expired": "drop"}, []string{"dead_message of 29 days", "message of 23 h"}},
		{settings{"queue.expired": "dead_letter"},
			[]string{"dead_message of 25 h", "dead_message of 29 days", "dead_message of 47 h", "message of 23 h"}},
		{settings{"queue.expired": "drop", "queue.max_age": "26"},
			[]string{"dead_message of 29 days", "message of 23 h", "message of 25 h"}},
		{settings{"queue.expired": "drop", "queue.max_age": "48", "queue.dead_max_age": "40"},
			[]string{"dead_message of 29 days", "dead_message of 31 days", "message of 23 h", "message of 25 h",
				"message of 47 h"}},
	} {
		l := open(t)
		r := l.relays[0]
		r.configure(t, l.settings.with(row.set, settings{"broker.urls": "amqp://127.0.0.1:1"}))
		r.command(t, left, "queue", "import", "-")
		r.start(t)
		eventually(t, 20*time.Second, fmt.Sprintf("%v leaves %q", row.set, row.want), func() error {
			if got := kept(t, r); !slices.Equal(got, row.want) {
				return fmt.Errorf("there are %q", got)
			}
			return nil
		})
		r.kill(t)
	}
}

// difficult hands over what PostgreSQL's json, UTF-8 or AMQP do not hold, while the broker takes nothing.
func difficult(t *testing.T, l *lane) {
	r := l.relays[0]
	r.configure(t, l.settings.with(settings{"queue.store_timeout": "20", "plugin.timeout": "60"}))
	l.freeze()
	defer l.thaw()
	r.start(t)
	commit := uuid.NewString()
	tagged := func(extra string) string {
		return `{"tag": {"id": 7, "name": "f39"}, "build": {"build_id": 1, "name": "pkg", "version": "1", ` +
			`"release": "1", "extra": ` + extra +
			`}, "user": {"id": 1, "name": "kojiadmin"}, "force": false}`
	}
	bodies := []string{
		tagged(`"before"`),
		tagged(`"a\u0000b"`),
		tagged(`123456789012345678901234567890`),
		tagged(`"` + strings.Repeat("x", 10<<20) + `"`), // too large for this broker
		tagged("\"\xff\xfe\""),
		tagged(`"after"`),
	}
	request := fmt.Sprintf(`{"commit": %q, "events": [`, commit)
	for event, body := range bodies {
		request += fmt.Sprintf(`%s{"event": %d, "callback": "postTag", "kwargs": %s}`, comma(event), event, body)
	}
	// On a busy machine 10 MB may take longer than the store has; the hub hands over again then, under the
	// same ids.
	eventually(t, 2*time.Minute, "all are taken", func() error {
		a, err := r.post(within(t, time.Minute), []byte(request+"]}"))
		if err == nil && a.Queued+a.Dead != len(bodies) {
			err = fmt.Errorf("answer %d: %d were queued and %d are dead letters, of %d; %s", a.Code, a.Queued, a.Dead,
				len(bodies), a.Error)
		}
		return err
	})
	l.thaw()
	box := l.open()
	arrive := []int{0, 1, 2, 5}
	var ids []string
	for _, event := range arrive {
		ids = append(ids, messageID(commit, event))
	}
	box.waitFor(t, 40*time.Second, ids...)
	for i, event := range arrive {
		if d := box.byID()[ids[i]][0]; d.Body == nil || *d.Body != bodies[event] {
			t.Errorf("the body of event %d came as %.200q", event, deref(d.Body))
		}
	}
	eventually(t, 30*time.Second, "the other two are dead letters with a reason", func() error {
		list := r.command(t, "", "dead", "list", "--json")
		for _, event := range []int{3, 4} {
			if !strings.Contains(list, messageID(commit, event)) {
				return fmt.Errorf("event %d is not among %s", event, list)
			}
		}
		return nil
	})
	for event, reason := range map[int]string{3: "large", 4: "UTF-8"} {
		if text := r.command(t, "", "dead", "show", messageID(commit, event)); !strings.Contains(text, reason) {
			t.Errorf("event %d is dead without the reason %q: %.500s", event, reason, text)
		}
	}
	r.kill(t)
}

// maxBytes: a queue that is full hands commits back, and takes them again when it was drained.
func maxBytes(t *testing.T, l *lane) {
	r := l.relays[0]
	l.freeze()
	defer l.thaw()
	r.configure(t, l.settings.with(settings{"queue.max_bytes": "20000"}))
	r.start(t)
	post := func() (int, []string) {
		body, ids := tagCommit(3)
		a, err := r.post(within(t, 10*time.Second), body)
		if err != nil {
			t.Fatal(err)
		}
		if a.Code != http.StatusOK && (a.Code != http.StatusServiceUnavailable ||
			fmt.Sprint(a.NotTaken) != "[0 1 2]" || !strings.Contains(a.Error, "max_bytes")) {
			t.Errorf("answer %d, not taken %v: %s", a.Code, a.NotTaken, a.Error)
		}
		return a.Code, ids
	}
	var taken []string
	for n := 0; ; n++ {
		code, ids := post()
		if code != http.StatusOK {
			break
		}
		if taken = append(taken, ids...); n > 100 {
			t.Fatal("the queue takes more than max_bytes")
		}
	}
	l.thaw()
	box := l.open()
	box.waitFor(t, 40*time.Second, taken...)
	eventually(t, 20*time.Second, "commits are taken again", func() error {
		if code, _ := post(); code != http.StatusOK {
			return fmt.Errorf("answer %d", code)
		}
		return nil
	})
	r.kill(t)
}

// idleTransactions watches the server while the drain holds its lock and the broker does not answer it.
func idleTransactions(t *testing.T, l *lane) {
	r := l.relays[0]
	r.start(t)
	r.awaitConnected(t, l.broker)
	l.freeze()
	defer l.thaw()
	body, ids := tagCommit(50)
	r.mustPost(t, body)
	longest, seen := 0.0, 0
	for began := time.Now(); time.Since(began) < 14*time.Second; <-time.After(100 * time.Millisecond) {
		var idle *float64
		if err := l.postgres.query(t, l.database,
			`SELECT max(extract(epoch FROM clock_timestamp() - state_change))::float8
			FROM pg_stat_activity WHERE datname = current_database()
			AND state LIKE 'idle in transaction%'`, &idle); err != nil {
			t.Fatal(err)
		}
		if idle != nil {
			seen++
			longest = max(longest, *idle)
		}
	}
	if seen == 0 || longest > 10 {
		t.Errorf("%d times a transaction was idle, for at most %.1f s; want some, for the lock, and none above "+
			"10 s", seen, longest)
	}
	t.Logf("account: idle transactions seen %d times, the longest for %.1f s", seen, longest)
	l.thaw()
	l.open().waitFor(t, 60*time.Second, ids...)
	r.kill(t)
}
