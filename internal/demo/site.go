package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"koji-relay/internal/devbroker"
)

// Files in the demo's directory.
const (
	socketFile       = "hub.sock"
	relayConfig      = "protonmsg.conf"
	relayLog         = "relay.log"
	subscriberLog    = "subscriber.log"
	subscriberConfig = "subscriber.conf"
)

// The accounts on the demo's brokers. The viewer's subscription survives the brokers' deaths, which its
// administrator would see to on a real broker.
const (
	publisherName = "relay"
	viewerName    = "subscriber"
)

// site is where the demo happens: a directory, two brokers and the relay.
type site struct {
	dir     string
	users   map[string]string // and their passwords
	brokers [2]*devbroker.Broker
	log     *os.File
	page    string // where the status page is; empty = nowhere

	stopRelay context.CancelFunc
	relayDone chan error // has the relay's result when it has ended; nil before startRelay
}

// configuration is like protonmsg.conf.example: the same keys set to the same values, but for addresses and
// the queue's store.
var configuration = template.Must(template.New(relayConfig).Parse(`[broker]
urls = {{.URLs}}
topic_prefix = topic://koji

[message]
events = *
durable = on

[queue]
store = file
path = {{.Dir}}/queue.db
batch_size = 1000
expired = dead_letter

[relay]
socket = {{.Dir}}/hub.sock
control = {{.Dir}}/control.sock
admin ={{with .Page}} {{.}}{{end}}
log_format = text
`))

func openSite(withPage bool) (*site, error) {
	dir, err := os.MkdirTemp("", "koji-relay-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the demo: %w", err)
	}
	s := &site{dir: dir, users: map[string]string{publisherName: rand.Text(), viewerName: rand.Text()}}
	err = s.fill(withPage)
	if err != nil {
		s.close(true)
		return nil, err
	}
	return s, nil
}

func (s *site) fill(withPage bool) error {
	for i := range s.brokers {
		b, err := devbroker.New(devbroker.Options{
			Mechanisms: []string{"PLAIN"}, Users: s.users, DurableUsers: []string{viewerName},
			Product: "koji-relay demo broker", TopicPrefix: "topic://", FillTo: true, MaxRecordBytes: -1,
		})
		if err != nil {
			return fmt.Errorf("make broker %d: %w", i+1, err)
		}
		s.brokers[i] = b
		if err := b.Start(); err != nil {
			return fmt.Errorf("start broker %d: %w", i+1, err)
		}
	}
	var err error
	if withPage {
		if s.page, err = freePort(); err != nil {
			return err
		}
	}
	if s.log, err = os.Create(s.path(relayLog)); err != nil {
		return fmt.Errorf("make the relay's log: %w", err)
	}
	if err := s.configure(relayConfig, publisherName); err != nil {
		return err
	}
	return s.configure(subscriberConfig, viewerName)
}

// freePort finds a loopback port that nobody uses now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a port for the status page: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// configure writes a configuration file with the user's name in its URLs.
func (s *site) configure(name, user string) error {
	var urls []string
	for _, b := range s.brokers {
		urls = append(urls, fmt.Sprintf("amqp://%s:%s@%s", user, s.users[user], b.Addr()))
	}
	f, err := os.OpenFile(s.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the configuration: %w", err)
	}
	err = configuration.Execute(f, struct{ URLs, Dir, Page string }{strings.Join(urls, " "), s.dir, s.page})
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the configuration %s: %w", f.Name(), err)
	}
	return nil
}

// startRelay runs the relay as `koji-relay serve` does, but in this process and with its log in a file. When
// it ends by itself, fail learns why.
func (s *site) startRelay(serve func(context.Context, string, io.Writer) error,
	fail context.CancelCauseFunc) {
	intake, stop := context.WithCancel(context.Background())
	s.stopRelay = stop
	s.relayDone = make(chan error, 1)
	go func() {
		err := serve(intake, s.path(relayConfig), s.log)
		if err != nil {
			err = fmt.Errorf("the relay ended: %w", err)
			fail(err)
		}
		s.relayDone <- err
	}()
}

// close stops the relay, then the brokers, and removes the directory when tidy.
func (s *site) close(tidy bool) {
	if s.relayDone != nil {
		s.stopRelay()
		<-s.relayDone
	}
	for _, b := range s.brokers {
		if b != nil {
			b.Close()
		}
	}
	if s.log != nil {
		s.log.Close()
	}
	if tidy {
		os.RemoveAll(s.dir)
	}
}
