package drain_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/queue/drain"
	"koji-relay/queue/storetest"
)

// aside fills store with n messages that are set aside for an hour.
func aside(store *fakeStore, n int) {
	store.add(storetest.Unsent(1, n)...)
	for i := range store.entries {
		store.entries[i].next = time.Now().Add(time.Hour)
		store.entries[i].Tries = 5
	}
}

func TestAddressThatWorksAgainGetsWhatWasSetAside(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		aside(store, 1000)
		d, _ := running(t, store, sender, drain.Options{})
		advance(time.Minute)
		storetest.WantNumbers(t, "sent before", sender.numbers())
		d.AddressWorks("build.tag")
		synctest.Wait()
		if n := len(sender.numbers()); n != 16 {
			t.Errorf("%d messages were sent at first, want 16", n)
		}
		advance(10 * time.Second)
		if n := len(store.left()); n != 0 {
			t.Errorf("%d messages are left, whose address works; renewed: %v", n, store.asked())
		}
	})
}

// A broker that comes up may have been mended: one message of each address finds out.
func TestBrokerThatCameUpGetsOneMessageOfEachAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		turnedAway := message.Outcome{State: message.Released, Next: message.Later, Reason: "no queue is bound"}
		sender.outcome = func(m message.Message) message.Outcome {
			if m.Address == "task.open" {
				return turnedAway
			}
			return message.Outcome{State: message.Accepted, Next: message.Done}
		}
		aside(store, 40)
		for i := range 20 {
			store.entries[i].Message.Address = "task.open"
		}
		d, _ := running(t, store, sender, drain.Options{})
		synctest.Wait()
		d.BrokerUp()
		synctest.Wait()
		if got := sender.numbers(); len(got) != 18 || got[0] != 1 || got[1] != 21 {
			t.Errorf("sent were %v, want 1 and 21, and then 16 of the address that takes them", got)
		}
		for range 10 {
			d.BrokerUp() // again and again
			advance(time.Second)
		}
		if got := store.left(); len(got) != 20 || got[19] != 20 {
			t.Errorf("left are %v, want the 20 of the address that is not mended", got)
		}
		// It has waited for its own time, too: 5 s.
		if n := len(sender.numbers()); n > 23 {
			t.Errorf("%d messages were sent, want 23 at the most", n)
		}
	})
}

// Nothing is renewed while nothing is sent, and nothing spins.
func TestNothingIsRenewedWhileNoBrokerIsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{down: true}
		aside(store, 3)
		d, _ := running(t, store, sender, drain.Options{})
		d.AddressWorks("build.tag")
		advance(10 * time.Minute)
		if got := store.asked(); len(got) != 0 {
			t.Errorf("the store was asked for %v", got)
		}
		sender.set(func(f *fakeSender) { f.down = false })
		d.BrokerUp()
		advance(2 * time.Second)
		storetest.WantNumbers(t, "left", store.left())
	})
}

func TestAddressThatTakesOneInTwoIsNotFlooded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		sender.outcome = func(m message.Message) message.Outcome {
			if len(sender.got)%2 == 0 {
				return message.Outcome{State: message.Released, Next: message.Later, Reason: "full"}
			}
			return message.Outcome{State: message.Accepted, Next: message.Done}
		}
		aside(store, 1000)
		d, _ := running(t, store, sender, drain.Options{})
		for range 100 {
			d.AddressWorks("build.tag")
			advance(time.Second)
		}
		if n := len(store.asked()); n < 8 || n > 11 {
			t.Errorf("the store was asked %d times in 100 s, want about 10", n)
		}
		for _, limit := range store.asked() {
			if limit != 16 {
				t.Errorf("%d messages were renewed at once", limit)
			}
		}
		if n := len(sender.numbers()); n > 1000 {
			t.Errorf("%d messages were sent", n)
		}
	})
}

// What cannot be renewed waits for its own time; the drain goes on.
func TestDrainGoesOnWhereNothingCanBeRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{renewErr: errors.New("too slow")}, &fakeSender{}
		d, _ := running(t, store, sender, drain.Options{})
		d.AddressWorks("build.tag")
		synctest.Wait()
		for n := 1; n <= 5; n++ {
			store.add(storetest.Unsent(n, n)...)
			d.Wake()
			advance(time.Second)
		}
		storetest.WantNumbers(t, "sent", sender.numbers(), 1, 2, 3, 4, 5)
		if got := fmt.Sprint(store.asked()); got != "[16]" {
			t.Errorf("the store was asked for %s", got)
		}
		advance(time.Minute)
		if got := fmt.Sprint(store.asked()); got != "[16 16]" {
			t.Errorf("a minute later the store was asked for %s", got)
		}
	})
}

var _ queue.Store = (*fakeStore)(nil)
