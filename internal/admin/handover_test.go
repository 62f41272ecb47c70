package admin

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// TestOutboxIsTheOnlyWay: ten minutes of commits that the hub could not hand over by the socket are a reason,
// with the hub's words; one that comes by the socket, or was never meant for it, ends it.
func TestOutboxIsTheOnlyWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics("1", "")
		s := New(Options{Source: (&fakeSource{status: runningStatus()}).get, Metrics: m, Recent: NewRecent(1),
			Control: &fakeControl{}, Logger: discard})
		taken := func(via, fallback string, notTaken ...int) {
			m.CommitTaken(via, message.Commit{Events: make([]message.Event, 1), Fallback: fallback},
				message.Receipt{NotTaken: notTaken}, 0)
		}
		reason := func() string {
			s.refresh(t.Context())
			all := s.Status().Reasons
			i := slices.IndexFunc(all, func(r Reason) bool { return r.Code == "OUTBOX_ONLY" })
			if i < 0 {
				return ""
			}
			return all[i].Text
		}
		const why = "PermissionError: [Errno 13] Permission denied"
		taken(inspect.ViaSocket, "")
		taken(inspect.ViaOutbox, why)
		time.Sleep(time.Hour)
		if got := reason(); got != "" {
			t.Errorf("after one commit it says %q", got)
		}
		taken(inspect.ViaOutbox, why+"\x1b[31m")
		got := reason()
		if !strings.Contains(got, "1 h 0 min") || !strings.Contains(got, why) || strings.Contains(got, "\x1b") {
			t.Errorf("it says %q", got)
		}
		taken(inspect.ViaOutbox, why, 0) // stays in the outbox, and will come again
		if h := s.Status().HandOver; h.Socket != 1 || h.Outbox != 2 || h.Fallback != 2 {
			t.Errorf("it counts %+v", h)
		}
		for _, via := range []string{inspect.ViaSocket, inspect.ViaOutbox} {
			if taken(via, ""); reason() != "" {
				t.Errorf("after a commit by the %s it still says %q", via, reason())
			}
			taken(inspect.ViaOutbox, why)
			time.Sleep(time.Hour)
			taken(inspect.ViaOutbox, why)
			if reason() == "" {
				t.Error("a second time goes unnoticed")
			}
		}
	})
}

func TestCertificatesOfBrokersAreJudgedToo(t *testing.T) {
	t.Parallel()
	soon := time.Now().Add(24 * time.Hour)
	s := runningStatus()
	s.Generated = time.Now()
	s.Brokers[0].CertExpires = soon
	s.Brokers[1].ClientCertExpires = soon
	s.Certificates[0].Expires = soon // the file of the latter
	s.judge(time.Now())
	var texts []string
	for _, r := range s.Reasons {
		texts = append(texts, r.Text)
	}
	if len(texts) != 2 || !strings.Contains(texts[1], s.Brokers[0].Name) {
		t.Errorf("it says %q", texts)
	}
}

// TestCommitsThatAreHandedBackAreSaid: a broker is up and the queue cannot be used. What nobody takes is
// handed back, and nothing says that every commit is taken.
func TestCommitsThatAreHandedBackAreSaid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{status: runningStatus()}
		m := NewMetrics("1", "")
		s := New(Options{Source: source.get, Metrics: m, Recent: NewRecent(1), Control: &fakeControl{},
			Logger: discard})
		say := func(want State, sentence string, codes ...string) {
			t.Helper()
			s.refresh(t.Context())
			now := s.Status()
			var got []string
			for _, r := range now.Reasons {
				got = append(got, r.Code)
			}
			if _, said := now.Summary(); now.State != want || said != sentence || !slices.Equal(got, codes) {
				t.Errorf("it is %s for %q, and says %q; want %s for %q and %q", now.State, got, said, want, codes,
					sentence)
			}
		}
		taken := func(notTaken ...int) {
			time.Sleep(time.Second)
			source.change(func(s *Status) { s.Generated = time.Now() })
			m.CommitTaken(inspect.ViaSocket, message.Commit{Events: make([]message.Event, 1)},
				message.Receipt{NotTaken: notTaken}, 0)
		}
		usable := func(yes bool) { source.change(func(s *Status) { s.Queue.Usable = yes }) }
		source.change(func(s *Status) { s.Generated = time.Now() })
		say(OK, "Every commit is taken and sent.")
		usable(false)
		const rest = "What a broker takes is taken; the rest is handed back to the hub."
		say(Degraded, rest, "STORE_UNUSABLE")
		taken(0)
		say(Degraded, "Some commits are handed back to the hub.", "STORE_UNUSABLE", "HANDED_BACK")
		taken() // by a broker
		say(Degraded, "Some commits are handed back to the hub.", "STORE_UNUSABLE", "HANDED_BACK")
		usable(true)
		say(OK, "Every commit is taken and sent.")
		taken(0) // too slow, though it can be used
		say(Degraded, "Some commits are handed back to the hub.", "HANDED_BACK")
		time.Sleep(handedBackFor + time.Second)
		source.change(func(s *Status) { s.Generated = time.Now() })
		say(OK, "Every commit is taken and sent.")
		source.change(func(s *Status) { s.Queue = Queue{} })
		say(OK, rest)
	})
}
