package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"koji-relay/config"
	"koji-relay/history"
	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/queue/drain"
)

// otherValues has, for each key, a value other than that of baseConfig. DIR is a directory of the test.
var otherValues = map[string]string{
	"broker.urls": "amqp://other", "broker.cert": "/other", "broker.key": "/other", "broker.cacert": "/other",
	"broker.legacy_tls":   "on",
	"broker.topic_prefix": "other", "broker.virtual_host": "other",
	"broker.connect_timeout": "11", "broker.send_timeout": "61", "broker.test_mode": "off",
	"broker.test_mode_fail": "1", "broker.url_order": "random", "broker.dialect": "literal",
	"broker.sasl": "plain", "broker.user_file": "/other", "broker.password_file": "/other",
	"broker.unroutable": "drop", "broker.idle_timeout": "31",

	"message.extra_limit": "100", "message.extra_keep": "b", "message.ttl": "60", "message.events": "preTag",
	"message.exclude_tags": "f*", "message.durable": "on", "message.priority": "5",
	"message.body_section": "data",

	"queue.enabled": "off", "queue.store": "postgres", "queue.database": "host=other",
	"queue.path": "DIR/other.db", "queue.batch_size": "7", "queue.batch_bytes": "4096", "queue.max_age": "25",
	"queue.expired": "dead_letter", "queue.dead_max_age": "31", "queue.max_bytes": "1000",
	"queue.preserve_order": "on", "queue.max_attempts": "9", "queue.interval": "31",
	"queue.store_timeout": "0.7", "queue.rate_limit": "5", "history.keep": "8", "history.max_bytes": "2000000",
	"history.store": "file", "history.path": "DIR/other.history",

	"relay.name": "other", "relay.socket": "DIR/other.sock", "relay.socket_group": "other",
	"relay.socket_mode": "0600",
	"relay.control":     "DIR/other-control.sock", "relay.admin": "127.0.0.1:1", "relay.handoff_timeout": "0.9",
	"relay.max_request_bytes": "2048", "relay.max_inflight_bytes": "100000000", "relay.log_level": "debug",
	"relay.log_format": "json",
}

// baseConfig is a file's text with one value replaced; empty name for none.
func baseConfig(dir, name, value string) string {
	values := map[string]string{
		"broker.urls": "amqp://broker", "broker.topic_prefix": "topic://koji", "broker.test_mode": "on",
		"broker.cert": "/cert", "broker.key": "/key", "broker.user_file": "/user",
		"broker.password_file": "/password", "message.events": "postTag", "message.extra_limit": "10",
		"message.extra_keep": "a", "queue.store": "file", "queue.path": dir + "/queue.db",
		// A name changes what these are by default.
		"history.path": dir + "/history", "relay.socket": dir + "/hub.sock", "relay.control": dir + "/control.sock",
		"relay.admin": "127.0.0.1:9763",
	}
	if name != "" {
		values[name] = strings.ReplaceAll(value, "DIR", dir)
	}
	var b strings.Builder
	for _, section := range []string{"broker", "message", "queue", "history", "relay"} {
		fmt.Fprintf(&b, "[%s]\n", section)
		for name, value := range values {
			if key, found := strings.CutPrefix(name, section+"."); found {
				fmt.Fprintf(&b, "%s = %s\n", key, value)
			}
		}
	}
	return b.String()
}

// remembered is a store that remembers its limits.
type remembered struct {
	store
	limits queue.Limits
}

func (r *remembered) SetLimits(l queue.Limits) {
	r.limits = l
	r.store.SetLimits(l)
}

// runningParts is a daemon whose parts are there and wait for work.
func runningParts(t *testing.T, path string) *Daemon {
	t.Helper()
	load := func() (*config.Config, error) { return config.Load(path) }
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	d := New(Options{Config: c, Load: load, Logger: slog.New(slog.DiscardHandler), Level: new(slog.LevelVar)})
	parts := &stops{log: d.log}
	t.Cleanup(func() {
		if err := parts.runAll(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	if err := d.openQueue(t.Context(), parts); err != nil {
		t.Fatal(err)
	}
	d.store = &remembered{store: d.store, limits: limits(c)}
	d.history = history.NewRecorder(nil, d.historyOptions(c)) // it is not run
	s, err := d.newService(c)
	if err != nil {
		t.Fatal(err)
	}
	d.current.exchange(s, s.run(d.fatal))
	d.serve(nil, parts)
	d.setLevel(c)
	return d
}

// effects is what the parts work by, taken from the parts themselves.
func effects(d *Daemon) string {
	s := d.current.acquire()
	defer s.users.Done()
	inside := func(part any, field string) reflect.Value {
		return reflect.ValueOf(part).Elem().FieldByName(field)
	}
	var b strings.Builder
	for _, v := range []reflect.Value{
		inside(d.history, "o"),
		inside(s.relay, "opts"),
		reflect.ValueOf((*drain.Options)(inside(d.drainer, "options").FieldByName("v").UnsafePointer())).Elem(),
		reflect.ValueOf(d.store.(*remembered).limits),
	} {
		printPlain(&b, v)
	}
	fmt.Fprintln(&b, inside(d.hubAPI, "account").Elem().FieldByName("limit").Int(), d.opts.Level.Level())
	fmt.Fprintln(&b, s.hub.storeTimeout, s.hub.order != nil)
	const kwargs = `{"tag": {"name": "f39"}, "build": {"extra": {"a": "aaaa", "b": "bbbb"}}}`
	for _, callback := range []string{"postTag", "preTag"} {
		event := message.Event{Callback: callback, Kwargs: []byte(kwargs)}
		t := s.rules.Translate(message.Commit{ID: "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55",
			Events: []message.Event{event}})
		fmt.Fprintf(&b, "%d %+v\n", len(t.Skipped), t.Messages)
	}
	return b.String()
}

// printPlain writes the fields of a struct that have no identity.
func printPlain(b *strings.Builder, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fmt.Fprintf(b, "%s ", v.Type().Field(i).Name)
			printPlain(b, v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			printPlain(b, v.Index(i))
		}
	case reflect.Func, reflect.Pointer, reflect.Interface, reflect.Chan, reflect.Map:
	default:
		fmt.Fprintln(b, v)
	}
}

// For each key in turn: what a reload says of it is what it does. A key takes effect, or it waits for a
// restart and the status shows what is in force.
func TestReloadSaysOfEachKeyWhatItDoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "protonmsg.conf")
	write := func(name, value string) {
		if err := os.WriteFile(path, []byte(baseConfig(dir, name, value)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("", "")
	d := runningParts(t, path)
	shown := func(name string) string {
		for _, s := range d.status(t.Context()).Config.Settings {
			if s.Section+"."+s.Key == name {
				return s.Value
			}
		}
		return "(missing)"
	}
	for _, s := range d.opts.Config.Settings() {
		name := s.Section + "." + s.Key
		value, found := otherValues[name]
		if !found {
			t.Errorf("%s has no other value in this test; add one", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			write("", "")
			if err := d.reload(); err != nil {
				t.Fatal(err)
			}
			before, showed := effects(d), shown(name)
			write(name, value)
			if err := d.reload(); err != nil {
				t.Fatal(err)
			}
			said := d.effective.Load().reload
			changed, waits := slices.Contains(said.Changed, name), slices.Contains(said.NeedRestart, name)
			if changed == waits || len(said.Changed)+len(said.NeedRestart) != 1 {
				t.Errorf("changed %v, need a restart %v", said.Changed, said.NeedRestart)
			}
			if took := effects(d) != before; took != changed {
				t.Errorf("it is said to be changed: %v; it took effect: %v", changed, took)
			}
			if now := shown(name); (now != showed) != changed {
				t.Errorf("the status shows %q, before %q", now, showed)
			}
		})
	}
}

// The key has two parts that follow it; the test above is content with one.
func TestReloadChangesTheMemoryOfTheHubAPI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "protonmsg.conf")
	write := func(value string) {
		if err := os.WriteFile(path, []byte(baseConfig(dir, "relay.max_inflight_bytes", value)),
			0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("90000000")
	d := runningParts(t, path)
	write("100000000")
	if err := d.reload(); err != nil {
		t.Fatal(err)
	}
	account := reflect.ValueOf(d.hubAPI).Elem().FieldByName("account").Elem()
	if got := account.FieldByName("limit").Int(); got != 100_000_000 {
		t.Errorf("the hub API takes %d bytes", got)
	}
}

func TestReloadNamesAChangeThatIsNotShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "protonmsg.conf")
	write := func(password string) {
		text := baseConfig(dir, "broker.urls", "amqp://user:"+password+"@broker")
		text = strings.ReplaceAll(strings.ReplaceAll(text, "user_file = /user\n", ""),
			"password_file = /password\n", "")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	d := runningParts(t, path)
	write("two")
	if err := d.reload(); err != nil {
		t.Fatal(err)
	}
	if said := d.effective.Load().reload; !slices.Equal(said.Changed, []string{"broker.urls"}) {
		t.Errorf("changed %v", said.Changed)
	}
}

func TestRefusedReloadChangesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "protonmsg.conf")
	if err := os.WriteFile(path, []byte(baseConfig(dir, "", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	d := runningParts(t, path)
	before := effects(d)
	if err := os.WriteFile(path, []byte(baseConfig(dir, "queue.batch_size", "many")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.reload(); err == nil {
		t.Fatal("taken")
	}
	said := d.effective.Load().reload
	if effects(d) != before || said.OK || len(said.Errors) == 0 ||
		!strings.Contains(strings.Join(said.Errors, ""), "batch_size = many") {
		t.Errorf("%+v", said)
	}
}
