package integration

import (
	"testing"
	"time"
)

// Whichever of protonmsg's two forms the prefix has, who subscribes to the address gets the message. Artemis
// itself would accept it at an address that is called topic://, and nobody reads there.
func TestArtemisGetsTheAddressThatIsSubscribedTo(t *testing.T) {
	t.Parallel()
	s := startShared(t, artemis)
	s.awaitBroker(t)
	for _, form := range []string{"", "topic://"} {
		part := newPart()
		box := subscribe(t, s, artemis, artemis.sources(part, []string{tagTopic})...)
		r := startRelay(t, settings{"broker.urls": brokerURL(s), "broker.topic_prefix": form + part}, s)
		body, ids := tagCommit(3)
		r.mustPost(t, body)
		box.waitFor(t, 30*time.Second, ids...)
		r.command(t, "", "check", "--connect") // fails on a complaint
	}
}
