package integration

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/google/uuid"
)

// Sites share a RabbitMQ by virtual hosts. Each relay reaches its own, and a refused one is told apart from a
// wrong password.
func TestVirtualHosts(t *testing.T) {
	t.Parallel()
	for _, b := range []brokerKind{rabbitmq310, rabbitmq40} {
		t.Run(b.service, func(t *testing.T) {
			t.Parallel()
			s := startBroker(t, b)
			s.define(t, "vhosts", fmt.Sprintf(`{"vhosts": [{"name": "one"}, {"name": "a/b"}, {"name": "closed"}],
				"permissions": [{"user": %[1]q, "vhost": "one", "configure": ".*", "write": ".*", "read": ".*"},
				{"user": %[1]q, "vhost": "a/b", "configure": ".*", "write": ".*", "read": ".*"}]}`, user))
			part := newPart()
			inOne, inOther, inDefault := subscribeIn(t, s, b, part, "one", tagTopic),
				subscribeIn(t, s, b, part, "a/b", tagTopic), subscribeIn(t, s, b, part, "/", tagTopic)

			byURL := startRelay(t, forBroker(b, part, s).with(settings{"broker.urls": brokerURL(s) + "/one"}))
			byKey := startRelay(t, forBroker(b, part, s).with(settings{"broker.virtual_host": "a/b"}))
			body, first := tagCommit(3)
			byURL.mustPost(t, body)
			body, second := tagCommit(3)
			byKey.mustPost(t, body)
			inOne.waitFor(t, time.Minute, first...)
			inOther.waitFor(t, time.Minute, second...)
			for name, box := range map[string]*inbox{"one": inOne, "a/b": inOther, "/": inDefault} {
				all, err := box.all()
				if want := map[string]int{"one": 3, "a/b": 3, "/": 0}[name]; err != nil || len(all) != want {
					t.Errorf("%d messages in %s, want %d: %v", len(all), name, want, err)
				}
			}
			if text := byURL.command(t, "", "check", "--connect", "--json"); !strings.Contains(text,
				`"virtual_host": "one"`) {
				t.Errorf("check does not name the virtual host:\n%s", text)
			}
			topicPermissions(t, s, byURL, inOne)
			topicPermitted(t, s, byURL, subscribeIn(t, s, b, part, "one", "build.untag"))
			const refused = "the broker took the login and refused the virtual host "
			for urls, want := range map[string]string{
				brokerURL(s) + "/closed":                    refused + `"closed"`,
				brokerURL(s) + "/missing":                   refused + `"missing"`,
				"amqp://koji:wrong@" + s.addr() + "/one":    "the broker refused the credentials",
				"amqp://koji:wrong@" + s.addr() + "/closed": "the broker refused the credentials",
			} {
				r := newRelay(t, forBroker(b, part, s).with(settings{"broker.urls": urls}))
				path, err := binary()
				if err != nil {
					t.Fatal(err)
				}
				out, err := exec.CommandContext(within(t, time.Minute), path, "check", "--connect", "--config",
					r.conf).CombinedOutput()
				if err == nil || !strings.Contains(string(out), want) ||
					strings.Contains(string(out), "topic_prefix, dialect") {
					t.Errorf("want %q, and no other remedy: %v\n%s", want, err, out)
				}
				// The address is not to blame, and is not named beside the remedy.
				if strings.Contains(string(out), "check topic_prefix") {
					t.Errorf("%s: also blames the address:\n%s", urls, out)
				}
			}
		})
	}
}

// topicPermissions takes a topic away from the relay's user. RabbitMQ tells so for each message, by ending
// the session with all that is under way in it.
func topicPermissions(t *testing.T, s *server, r *relay, tags *inbox) {
	t.Helper()
	s.exec(t, runScript, "ctl", "set_topic_permissions", "-p", "one", user, "amq.topic", `\.build\.tag$`, ".*")
	var allowed []string
	handOver := func() {
		t.Helper()
		body, _ := tagCommit(1)
		if a := r.mustPost(t, bytes.ReplaceAll(body, []byte("postTag"), []byte("postUntag"))); a.Queued != 1 {
			t.Errorf("what may not be published: %+v", a)
		}
		body, ids := tagCommit(2)
		r.mustPost(t, body)
		allowed = append(allowed, ids...)
	}
	for range 10 {
		handOver()
	}
	r.await(t, "address in trouble", map[string]string{"address": "build.untag"})
	tags.waitFor(t, time.Minute, allowed...)
	known := strings.Count(r.log.text(), "session ended")
	for range 10 {
		handOver()
	}
	tags.waitFor(t, time.Minute, allowed...)
	if n := strings.Count(r.log.text(), "session ended"); n != known {
		t.Errorf("%d sessions ended although the topic is known not to be allowed", n-known)
	}
}

// topicPermitted gives the topic back, for which messages wait that were turned away so often that their own
// time has not come.
func topicPermitted(t *testing.T, s *server, r *relay, untags *inbox) {
	t.Helper()
	now := time.Now().UTC()
	var lines strings.Builder
	var ids []string
	for n := range 100 {
		ids = append(ids, uuid.NewString())
		fmt.Fprintf(&lines, `{"kind": "message", "message_id": %q, "address": "build.untag", "props": "{}", `+
			`"body": "{\"n\": %d}", "created": %q, "queued": %q, "attempts": 5, "tries": 5, "next_attempt": %q, `+
			`"reason": "not sent by %s: address refused: amqp:unauthorized-access"}`+"\n", ids[n], n,
			now.Format(time.RFC3339), now.Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339), s.addr())
	}
	r.command(t, lines.String(), "queue", "import", "-")
	s.exec(t, runScript, "ctl", "clear_topic_permissions", "-p", "one", user)
	// What was turned away lately finds out, or what the hub hands over: half a minute after the last refusal.
	eventually(t, 2*time.Minute, "the topic is taken again", func() error {
		body, _ := tagCommit(1)
		a, err := r.post(t.Context(), bytes.ReplaceAll(body, []byte("postTag"), []byte("postUntag")))
		if err == nil && a.Sent != 1 {
			err = fmt.Errorf("the relay says %+v", a)
		}
		return err
	})
	untags.waitFor(t, time.Minute, ids...)
}

// subscribeIn is subscribe to a topic in a virtual host.
func subscribeIn(t *testing.T, s *server, b brokerKind, part, virtualHost, topic string) *inbox {
	t.Helper()
	ctx := within(t, time.Minute)
	o := s.dialOptions()
	o.HostName = "vhost:" + virtualHost
	conn, err := amqp.Dial(ctx, "amqp://"+s.addr(), o)
	if err != nil {
		t.Fatalf("connect a subscriber to %s: %v", virtualHost, err)
	}
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf(b.source, part, topic)
	r, err := session.NewReceiver(ctx, address, &amqp.ReceiverOptions{Credit: credit})
	if err != nil {
		t.Fatalf("subscribe to %s in %s: %v", address, virtualHost, err)
	}
	box := newInbox()
	done := make(chan struct{})
	go func() {
		defer close(done)
		box.read(t.Context(), address, r)
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return box
}
