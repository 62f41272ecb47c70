package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// said is what the relay says of itself, by each way that it has.
type said struct {
	ready   int      // status of GET /ready
	state   string   // of GET /ready
	codes   []string // of its reasons
	gauge   string   // koji_relay_ready
	usable  string   // koji_relay_queue_usable
	command int      // exit code of koji-relay status
	page    string   // the first words of the page
	systemd string   // what systemctl status shows
}

// firstLine is the word and the sentence of the page.
var firstLine = regexp.MustCompile(`<p class="word">(.*)</p>\s*<p class="sentence">(.*)</p>`)

// ask asks the relay in each way; the error says which two contradict each other.
func (r *relay) ask(t testing.TB, admin string) (s said, err error) {
	t.Helper()
	get := func(path string) (int, string) {
		answer, getErr := http.Get("http://" + admin + path)
		if getErr != nil {
			err = getErr
			return 0, ""
		}
		defer answer.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(answer.Body)
		return answer.StatusCode, b.String()
	}
	code, text := get("/ready")
	var ready struct {
		State   string
		Reasons []struct{ Code string }
	}
	if err := json.Unmarshal([]byte(text), &ready); err != nil {
		return s, fmt.Errorf("GET /ready: %w: %q", err, text)
	}
	s.ready, s.state = code, ready.State
	for _, reason := range ready.Reasons {
		s.codes = append(s.codes, reason.Code)
	}
	_, metrics := get("/metrics")
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, "koji_relay_ready "); ok {
			s.gauge = strings.TrimSpace(value)
		}
		if value, ok := strings.CutPrefix(line, "koji_relay_queue_usable "); ok {
			s.usable = strings.TrimSpace(value)
		}
	}
	_, page := get("/")
	first := firstLine.FindStringSubmatch(page)
	if first == nil {
		return s, fmt.Errorf("the page has no first line: %q", page)
	}
	s.page = first[1]
	s.systemd, _ = r.headline.Load().(string)
	path, binaryErr := binary()
	if binaryErr != nil {
		t.Fatal(binaryErr)
	}
	status := exec.Command(path, "status", "--config", r.conf)
	out, _ := status.CombinedOutput()
	s.command = status.ProcessState.ExitCode()
	line := first[1] + ". " + first[2]
	if err == nil && (!strings.HasPrefix(string(out), line+"\n") || s.systemd != line) {
		err = fmt.Errorf("the page says %q, systemd %q, and koji-relay status %q", line, s.systemd, out)
	}
	if taken := !strings.Contains(first[2], "handed back"); err == nil && taken &&
		(s.ready != http.StatusOK || slices.Contains(s.codes, "HANDED_BACK")) {
		err = fmt.Errorf("the page says %q, and /ready %d %q", line, s.ready, s.codes)
	}
	for _, code := range s.codes { // each way names each reason
		shown := strings.Contains(page, "<code>"+code+"</code>") &&
			strings.Contains(string(out), "\n"+code+" since ")
		if err == nil && !shown {
			err = fmt.Errorf("/ready names %s; koji-relay status says\n%s", code, out)
		}
	}
	unusable := slices.Contains(s.codes, "STORE_UNUSABLE") || slices.Contains(s.codes, "QUEUE_FULL")
	if err == nil && s.usable != "" && unusable == (s.usable == "1") { // absent with enabled = off
		err = fmt.Errorf("reasons %q, but koji_relay_queue_usable is %s", s.codes, s.usable)
	}
	return s, err
}

// says waits until all ways say the same: the state, and a reason with that code ("" = none at all).
func (r *relay) says(t testing.TB, admin string, limit time.Duration, state, code string) {
	t.Helper()
	want := map[string]said{
		"ok":        {ready: 200, gauge: "1", command: 0, page: "All is well"},
		"degraded":  {ready: 200, gauge: "1", command: 1, page: "Ready, with problems"},
		"not_ready": {ready: 503, gauge: "0", command: 2, page: "Not ready"},
	}[state]
	eventually(t, limit, "state "+state+" "+code, func() error {
		s, err := r.ask(t, admin)
		if err != nil {
			return err
		}
		if s.state != state || s.ready != want.ready || s.gauge != want.gauge || s.command != want.command ||
			s.page != want.page ||
			(code == "") != (len(s.codes) == 0) || code != "" && !slices.Contains(s.codes, code) {
			return fmt.Errorf("it says %+v", s)
		}
		return nil
	})
}

// quiet waits until no way names that reason any more, and all ways agree.
func (r *relay) quiet(t testing.TB, admin, code string) {
	t.Helper()
	eventually(t, time.Minute, code+" is over", func() error {
		s, err := r.ask(t, admin)
		if err == nil && slices.Contains(s.codes, code) {
			err = fmt.Errorf("it says %+v", s)
		}
		return err
	})
}

// TestWhatItSaysIsTrue leads the built relay through an outage of everything, and asks in every way there is
// what it says of itself: readiness, metrics, page and command agree, and so does what the hub is answered.
func TestWhatItSaysIsTrue(t *testing.T) {
	t.Parallel()
	db := startPostgres(t)
	broker := startBroker(t, rabbitmq40)
	port := freePorts(t)
	admin := "127.0.0.1:" + strconv.Itoa(port)
	part := newPart()
	set := forBroker(rabbitmq40, part, broker).with(newDatabase(t, db, "truth"), settings{"relay.admin": admin})
	box := subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, []string{tagTopic})...)
	r := startRelay(t, set, broker)
	const soon = time.Minute // promised are 5 s; a busy machine gets more

	body, ids := tagCommit(1)
	r.mustPost(t, body)
	box.waitFor(t, soon, ids...)
	r.says(t, admin, soon, "ok", "")

	// A database that can be read and not written, while the broker is up: every commit is taken.
	readOnly := func(on string) { db.alterSystem(t, "default_transaction_read_only", on) }
	readOnly("on")
	r.says(t, admin, soon, "degraded", "STORE_UNUSABLE")
	body, _ = tagCommit(1)
	r.mustPost(t, body)
	// But for what no broker takes: it cannot be stored, and all ways say that it is handed back.
	if a, err := r.post(within(t, time.Minute), unboundCommit()); err != nil ||
		a.Code != http.StatusServiceUnavailable {
		t.Errorf("a message that nobody has bound was answered %+v %v", a, err)
	}
	r.says(t, admin, soon, "degraded", "HANDED_BACK")

	// And no broker: every commit is refused, and all ways say so.
	broker.freeze(t)
	r.says(t, admin, time.Minute, "not_ready", "STORE_UNUSABLE")
	body, _ = tagCommit(1)
	if a, err := r.post(within(t, time.Minute), body); err != nil || a.Code != http.StatusServiceUnavailable {
		t.Errorf("while not ready a commit was answered %+v %v", a, err)
	}
	readOnly("off")
	r.says(t, admin, soon, "degraded", "NO_BROKER")
	body, _ = tagCommit(1)
	r.mustPost(t, body)
	broker.thaw(t)
	r.says(t, admin, time.Minute, "ok", "")

	// Nobody has bound the topic: taken, but not sent.
	r.mustPost(t, unboundCommit())
	r.says(t, admin, soon, "degraded", "TURNED_AWAY")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "queue", "drop", "--config", r.conf, "--all",
		"--yes").CombinedOutput(); err != nil {
		t.Fatalf("drop the queue: %v\n%s", err, out)
	}
	r.says(t, admin, soon, "ok", "")

	// A dead letter is to be decided on; a pause is to be ended.
	now := time.Now().UTC().Format(time.RFC3339)
	r.command(t, fmt.Sprintf(`{"kind": "dead_message", "message_id": %q, "address": "build.tag", `+
		`"props": "{}", "body": "{}", "created": %q, "queued": %q, "reason": "too large"}`,
		uuid.NewString(), now, now)+"\n", "queue",
		"import", "-")
	r.says(t, admin, soon, "degraded", "DEAD_LETTERS")
	r.command(t, "", "dead", "drop", "--all", "--yes")
	r.says(t, admin, soon, "ok", "")
	r.command(t, "", "pause")
	r.says(t, admin, soon, "degraded", "DRAIN_PAUSED")
	r.command(t, "", "resume")
	r.says(t, admin, soon, "ok", "")

	// The log has each cause of an outage once, and its end.
	for begun, ended := range map[string]string{
		"events are refused, the hub keeps them: neither sent nor stored": "events are taken again",
		"the outbox cannot be read":                                       "the outbox can be read again",
	} {
		r.eachCauseOnce(t, begun, ended)
	}
	r.kill(t)
	status := exec.Command(path, "status", "--config", r.conf)
	if out, _ := status.CombinedOutput(); status.ProcessState.ExitCode() != 2 {
		t.Errorf("without a relay status exits %d: %s", status.ProcessState.ExitCode(), out)
	}
}

// unboundCommit is a commit of one event whose topic nobody has bound in these tests.
func unboundCommit() []byte {
	return fmt.Appendf(nil, `{"commit": %q, "events": [{"callback": "postUntag", "kwargs": {
		"tag": {"name": "f39"}, "build": {"name": "pkg", "version": "1.0", "release": "1"},
		"user": {"name": "kojiadmin"}}}]}`, uuid.NewString())
}

// eachCauseOnce fails where a cause is logged twice before its trouble is over, or a trouble or its end not.
func (r *relay) eachCauseOnce(t *testing.T, begun, ended string) {
	t.Helper()
	causes := map[string]bool{}
	troubles, ends := 0, 0
	for _, rec := range r.log.all() {
		cause := rec.text("error")
		switch {
		case rec.matches(ended, nil):
			ends++
			clear(causes)
		case rec.matches(begun, nil) && cause != "" && causes[cause]:
			t.Errorf("%q is logged again with the cause %q", begun, cause)
		case rec.matches(begun, nil):
			troubles++
			causes[cause] = true
		}
	}
	if troubles == 0 || ends == 0 {
		t.Errorf("%q is logged %d times, %q %d times", begun, troubles, ended, ends)
	}
}
