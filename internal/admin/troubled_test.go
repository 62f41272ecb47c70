package admin

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"koji-relay/internal/inspect"
)

// troubledServer shows one of everything: a broker down, a backlog, dead letters, a failed reload.
func troubledServer(t *testing.T) (*Server, *fakeSource) {
	t.Helper()
	now := time.Now()
	status := runningStatus()
	status.Brokers[1] = inspect.Broker{Name: "broker2.example.com:5671", State: inspect.Down,
		Since: now.Add(-42 * time.Minute), TLS: true, Dialect: "literal",
		Reason: "log in as koji: the broker answers SASL outcome auth (1); look at user_file and password_file"}
	status.Queue = Queue{Enabled: true, Store: "postgres", Usable: true, Known: true,
		MaxAge: 24 * time.Hour, Drainer: &inspect.Holder{This: true},
		Statistics: inspect.Statistics{Depth: 14238, Bytes: 48_300_000,
			Oldest: now.Add(-41 * time.Minute), SetAside: 12, NextAttempt: now.Add(34 * time.Second), DeadLetters: 3,
			DeadLettersByReason: map[string]int64{"rejected": 2, "unencodable": 1},
			ByTopic: []inspect.Topic{
				{Address: "build.tag", Depth: 9120, Bytes: 31_000_000, Oldest: now.Add(-41 * time.Minute)},
				{Address: "task.closed", Depth: 4021, Bytes: 15_000_000, Oldest: now.Add(-40 * time.Minute)},
				{Address: "repo.done", Depth: 1085, Bytes: 2_200_000, Oldest: now.Add(-12 * time.Minute)},
				{Address: "build.complete", Depth: 12, Bytes: 100_000, Oldest: now.Add(-90 * time.Second)}}}}
	status.Outbox = Outbox{Known: true, Depth: 7, Oldest: now.Add(-8 * time.Second),
		Reader: &inspect.Holder{Name: "koji-relay hub2.example.com/2041", Address: "192.0.2.8", PID: 4711}}
	status.Outbox.Readers = []inspect.Reader{{Seen: now, Holder: inspect.Holder{PID: 41}},
		{Name: "new-bus", Seen: now.Add(-2 * time.Hour), Away: true, Depth: 812, Oldest: now.Add(-2 * time.Hour)}}
	status.DeadLetters = []inspect.Item{
		{MessageID: "0a3c1f6e-6a55-5c9e-8a52-8c1f4f0f6d11", Died: now.Add(-7 * time.Minute),
			Address: "build.complete", Attempts: 8, Callback: "postBuildStateChange",
			Reason: "rejected by broker1.example.com:5671: amqp:not-allowed: <b>address</b> is read-only"},
		{MessageID: "c7d9a4b1-41d2-5e0c-9b7e-4f8f3b1f2a90", Died: now.Add(-26 * time.Hour),
			Callback: "postPackageListChange", Reason: "package has no name"},
		{MessageID: "55c0de3a-9b1d-5a2f-b1aa-0e6cb8c4e7d2", Died: now.Add(-50 * time.Hour), Address: "rpm.sign",
			Attempts: 1, Callback: "postRPMSign", Reason: "an integer above 63 bits has no AMQP form"}}
	status.Certificates = append(status.Certificates,
		Certificate{Name: "cacert", Subject: "CN=Example CA", Expires: now.Add(9*24*time.Hour + time.Minute)})
	status.Config.Settings = append(status.Config.Settings,
		inspect.Setting{Section: "broker", Key: "topic_prefix", Value: "topic://VirtualTopic.eng.koji",
			Source: "protonmsg.conf:3"}, inspect.Setting{Section: "queue", Key: "batch_size", Value: "1000",
			Source: "protonmsg.conf:14"}, inspect.Setting{Section: "queue", Key: "max_age", Value: "24",
			Source: "default"},
		inspect.Setting{Section: "message", Key: "extra_keep", Value: "", Source: "default"},
		inspect.Setting{Section: "relay", Key: "log_level", Value: "info", Source: "default"})
	status.Config.Reload = Reload{Time: now.Add(-3 * time.Minute), Errors: []string{
		"protonmsg.conf:14: [queue] batch_size: \"many\" is not a whole number; write one from 1 to 1000000"}}

	s, source, _ := newTestServer(t, status)
	fill(s, now)
	fillDay(s, status, now)
	s.refresh(t.Context())
	return s, source
}

// fillDay gives a Server a day in which the second broker was down now and then, and a queue that shrinks.
func fillDay(s *Server, last Status, now time.Time) {
	s.day = day{}
	for m := 23 * 60; m > 5; m -= 5 {
		then := last
		at := now.Add(-time.Duration(m) * time.Minute)
		then.Brokers = slices.Clone(last.Brokers)
		then.Queue.Depth, then.Queue.Oldest, then.Outbox.Depth = 0, time.Time{}, 0
		if m > 42 {
			then.Brokers[1].State = inspect.Up
		}
		if m > 700 && m < 860 { // an outage of all
			then.Brokers[0].State, then.Brokers[1].State = inspect.Down, inspect.Down
			then.Queue.Depth, then.Queue.Oldest = int64(860-m)*130, now.Add(-860*time.Minute)
			then.Outbox.Depth = int64(860-m) * 9
		} else if m > 640 && m <= 700 {
			then.Queue.Depth, then.Queue.Oldest = int64(m-640)*346, now.Add(-800*time.Minute)
		} else if m > 300 && m < 330 {
			then.Brokers[0].State = inspect.Stalled
		} else if m < 42 {
			then.Queue.Depth, then.Queue.Oldest = last.Queue.Depth+int64(m)*200, last.Queue.Oldest
		}
		s.day.add(at, &then)
	}
	for at := sampleFor; at > 0; at -= 10 * time.Second {
		then := last
		then.Queue.Depth += int64(at.Seconds() * 4)
		s.day.add(now.Add(-at), &then)
	}
}

// fill gives a Server an hour of history and some last messages.
func fill(s *Server, now time.Time) {
	s.history = history{}
	var sum totals
	for m := range 60 {
		n := int64(180 + 60*((m*7)%5) + 25*((m*13)%4))
		if m >= 18 && m < 30 {
			sum.queued += n
		} else {
			sum.sent += n
			if m >= 30 && m < 36 {
				sum.sent += 600
				sum.drained += 600
			}
		}
		if m == 19 {
			sum.notTaken += 40
		}
		sum.events += n
		s.history.add(now.Add(time.Duration(m-59)*time.Minute), sum)
	}
	m := s.opts.Metrics
	m.nSent.Store(sum.sent)
	m.nQueued.Store(sum.queued)
	m.nDrained.Store(sum.drained)
	m.nNotTaken.Store(sum.notTaken)
	m.nEvents.Store(sum.events)
	m.handOver.HandOver = HandOver{Socket: sum.events - 57, Outbox: 57, Fallback: 41}
	fates := []Fate{
		{Callback: "postTag", Address: "build.tag", Fate: Drained, Broker: "broker1.example.com:5671"},
		{Callback: "postTaskStateChange", Address: "task.closed", Fate: Sent, Broker: "broker1.example.com:5671"},
		{Callback: "postBuildStateChange", Address: "build.complete", Fate: Dead,
			Broker: "broker1.example.com:5671", Reason: "rejected: amqp:not-allowed: <b>address</b> is read-only"},
		{Callback: "postRepoDone", Address: "repo.done", Fate: Queued, Reason: "no broker is up"},
		{Callback: "postTag", Address: "build.tag", Fate: NotTaken,
			Reason: "neither sent nor stored: the database does not answer"},
		{Callback: "postTag", Address: "build.tag", Fate: Sent, Broker: "broker1.example.com:5671"},
	}
	for i := range 12 {
		f := fates[i%len(fates)]
		f.Time, f.Event = now.Add(time.Duration(i-12)*7*time.Second), i%2
		f.Commit = fmt.Sprintf("7f3c9a5e-0d4b-4a8e-9c1d-%012x", 4096*i+77)
		f.MessageID = fmt.Sprintf("b%x4e1c2d-7a3f-5e6b-8c9d-%012x", i, 65537*i+12345)
		s.opts.Recent.Add(f)
	}
}
