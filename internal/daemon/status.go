package daemon

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/queue"
)

// effective is the configuration in force and how it came to be.
type effective struct {
	config *config.Config
	loaded time.Time
	reload admin.Reload // the last attempt; zero when there was none
}

// shownDeadLetters is how many of the newest dead letters the status has.
const shownDeadLetters = 20

// status is what an administrator can see, asked for by the admin server.
func (d *Daemon) status(ctx context.Context) admin.Status {
	e := d.effective.Load()
	host, _ := os.Hostname() // shown where it is known
	s := admin.Status{
		Version: d.opts.Version, Host: host, Generated: time.Now(), Started: d.started,
		HandOver: admin.HandOver{Path: d.sockets},
		Queue: admin.Queue{Enabled: e.config.Queue.Enabled, Store: e.config.Queue.Store,
			Ordered: e.config.Queue.PreserveOrder, MaxBytes: e.config.Queue.MaxBytes,
			MaxAge: e.config.Queue.MaxAge},
		LogLevel: strings.ToLower(d.opts.Level.Level().String()),

		Certificates: certificates(e.config),
		Config: admin.Config{Path: e.config.Path, Option: configOption(e.config.Path), Loaded: e.loaded,
			Reload: e.reload},
	}
	if name := e.config.Relay.Name; name != "" {
		s.Unit = "koji-relay@" + name
	}
	if s.Queue.Enabled && s.Queue.Store == config.StoreFile {
		s.Queue.Path = e.config.Queue.Path
	}
	s.Config.Settings = e.config.Settings()
	for _, w := range e.config.Warnings {
		s.Config.Warnings = append(s.Config.Warnings, w.String())
	}
	if d.store != nil {
		describeQueue(ctx, d.store, &s)
	}
	d.present(&s)
	var names []string
	used := ""
	for _, b := range s.Brokers {
		names = append(names, b.Name)
		if b.Active {
			used = b.Name
		}
	}
	d.watch.brokerless.look(names, used, s.Queue.Usable && !s.Queue.Full)
	d.describeReaders(ctx, &s)
	d.describeHolders(ctx, &s)
	if d.outbox != nil {
		s.Outbox.Error = cmp.Or(d.outbox.Status().Error, s.Outbox.Error)
	}
	return s
}

// present brings into s what this process knows of now, without asking anybody: it does not block.
func (d *Daemon) present(s *admin.Status) {
	s.Phase, s.Brokers = *d.phase.Load(), d.current.brokers()
	s.Paused.Publish = d.publishPaused.Load()
	if d.store == nil {
		return
	}
	s.Paused.Drain = d.drainer.Status().Paused
	full, err := d.health.failure(s.Queue.Bytes, s.Queue.MaxBytes)
	s.Queue.Full, s.Queue.Usable = s.Queue.Known && full, s.Queue.Known && err == nil || d.health.wrote()
	switch {
	case err != nil:
		s.Queue.Error = err.Error()
	case s.Queue.Known:
		s.Queue.Error = "" // of a write that has worked since
	}
}

// describeReaders adds the readers of the outbox, where there are several; and for a relay with a name, whose
// queue does not know of the outbox, what is in it.
func (d *Daemon) describeReaders(ctx context.Context, s *admin.Status) {
	name := d.opts.Config.Relay.Name
	if d.postgres == nil || name == "" && !d.postgres.Shared() {
		return
	}
	readers, err := d.postgres.Readers(ctx)
	if err != nil {
		s.Outbox.Error = err.Error()
		return
	}
	s.Outbox.Known = true
	for _, r := range readers {
		if r.Name == name {
			s.Outbox.Depth, s.Outbox.Oldest = r.Depth, r.Oldest
			s.Outbox.Reader = &r.Holder
		}
	}
	if len(readers) > 1 {
		s.Outbox.Readers = readers
	}
}

// describeHolders says who drains the queue and who reads the outbox. What this process does it knows by
// itself.
func (d *Daemon) describeHolders(ctx context.Context, s *admin.Status) {
	this := inspect.Holder{This: true}
	if d.drainer != nil && d.drainer.Status().Draining {
		s.Queue.Drainer = &this
	}
	if d.postgres == nil {
		return
	}
	reading := d.outbox.Status().Reading
	if reading {
		s.Outbox.Reader = &this
	}
	if d.opts.Config.Relay.Name != "" { // the queue is nobody else's
		if s.Queue.Drainer == nil {
			s.Queue.Drainer = &inspect.Holder{}
		}
		return
	}
	if reading && s.Queue.Drainer != nil || !s.Queue.Known {
		return
	}
	drain, outbox, err := d.postgres.Holders(ctx)
	if err != nil {
		return // not known; the next look will tell
	}
	if s.Queue.Drainer == nil {
		s.Queue.Drainer = &drain
	}
	if s.Outbox.Reader == nil {
		s.Outbox.Reader = &outbox
	}
}

// configOption is what a command needs to read the file at path, from any directory.
func configOption(path string) string {
	if whole, err := filepath.Abs(path); err == nil {
		path = whole
	}
	if path == config.DefaultPath {
		return ""
	}
	if strings.ContainsFunc(path, func(r rune) bool { return !strings.ContainsRune(plainInShell, r) }) {
		path = "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return "--config " + path
}

// plainInShell are characters that a shell takes as they are.
const plainInShell = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:"

// StoppedStatus is what can be seen of c's queue while no relay runs.
func StoppedStatus(ctx context.Context, c *config.Config, store queue.Inspector) admin.Status {
	s := admin.Status{
		Generated: time.Now(),
		Queue: admin.Queue{Enabled: c.Queue.Enabled, Store: c.Queue.Store, Ordered: c.Queue.PreserveOrder,
			MaxBytes: c.Queue.MaxBytes},
		Config: admin.Config{Path: c.Path},
	}
	describeQueue(ctx, store, &s)
	return s
}

// describeQueue adds what the store knows. A store that does not answer in time leaves its numbers unknown.
func describeQueue(ctx context.Context, store queue.Inspector, s *admin.Status) {
	stats, err := store.Stats(ctx)
	if err != nil {
		s.Queue.Error, s.Outbox.Error = err.Error(), err.Error()
		return
	}
	q := &s.Queue
	q.Usable, q.Known = true, true
	q.Statistics = stats
	if q.Store == config.StorePostgres {
		s.Outbox = admin.Outbox{Known: true, Depth: stats.Outbox, Oldest: stats.OutboxOldest}
	}
	s.DeadLetters = newestDeadLetters(ctx, store)
}

func newestDeadLetters(ctx context.Context, store queue.Inspector) []inspect.Item {
	var newest []inspect.Item
	options := inspect.ListOptions{Newest: true, Limit: shownDeadLetters}
	err := store.List(ctx, inspect.DeadBox, options, func(it queue.Item) error {
		newest = append(newest, it.Shown(inspect.DeadBox))
		return nil
	})
	if err != nil {
		return nil // the next look will tell
	}
	return newest
}

// brokers describes the brokers of the service in force. The first that is up is the one in use.
func (c *current) brokers() []inspect.Broker {
	s := c.acquire()
	defer s.users.Done()
	all := s.relay.Status()
	for i := range all {
		if all[i].State == inspect.Up {
			all[i].Active = true
			break
		}
	}
	return all
}
