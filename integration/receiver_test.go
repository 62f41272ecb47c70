package integration

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
)

// delivery is one message as a subscriber saw it. proton_receiver.py prints the same form.
type delivery struct {
	Link         string    `json:"link"` // the source address it came over
	ID           string    `json:"message_id"`
	To           string    `json:"to"`
	Durable      bool      `json:"durable"`
	Priority     int       `json:"priority"`
	TTL          float64   `json:"ttl"`           // seconds
	CreationTime float64   `json:"creation_time"` // seconds since 1970
	Props        []prop    `json:"properties"`
	Body         *string   `json:"body"`     // nil: not one AMQP value holding a string
	Sections     []section `json:"sections"` // python-proton only
	Arrived      time.Time `json:"-"`
}

// prop is one application-property; in JSON [key, AMQP type, value].
type prop struct {
	Key, Type string
	Value     json.RawMessage // JSON, so that no number loses digits
}

func (p *prop) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&p.Key, &p.Type, &p.Value})
}

// String is the comparable form: JSON has many spellings for one double or string.
func (p prop) String() string {
	value := string(p.Value)
	switch p.Type {
	case "double":
		f, err := strconv.ParseFloat(value, 64)
		value = fmt.Sprint(f, err)
	case "null":
		value = ""
	case "string":
		var s string
		err := json.Unmarshal(p.Value, &s)
		value = fmt.Sprintf("%q %v", s, err)
	}
	return p.Key + " " + p.Type + " " + value
}

// section is [descriptor, hexadecimal bytes].
type section [2]any

// inbox collects deliveries until the test ends.
type inbox struct {
	mu         sync.Mutex // guards the fields below
	deliveries []delivery
	ids        map[string]bool // of the deliveries
	err        error           // why there will be no more
	more       chan struct{}
}

func newInbox() *inbox { return &inbox{ids: make(map[string]bool), more: make(chan struct{}, 1)} }

func (b *inbox) put(d delivery) {
	d.Arrived = time.Now()
	b.mu.Lock()
	b.deliveries = append(b.deliveries, d)
	b.ids[d.ID] = true
	b.mu.Unlock()
	b.wake()
}

func (b *inbox) fail(err error) {
	b.mu.Lock()
	b.err = cmp.Or(b.err, err)
	b.mu.Unlock()
	b.wake()
}

func (b *inbox) wake() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// all is what came so far.
func (b *inbox) all() ([]delivery, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.deliveries), b.err
}

// count is how many came so far, and why there will be no more.
func (b *inbox) count() (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.deliveries), b.err
}

// byID groups what came so far, so that repeats show.
func (b *inbox) byID() map[string][]delivery {
	all, _ := b.all()
	m := make(map[string][]delivery)
	for _, d := range all {
		m[d.ID] = append(m[d.ID], d)
	}
	return m
}

// has reports whether a message with this id came.
func (b *inbox) has(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ids[id]
}

// missing gives those ids that have not come, in a slice of its own, and why there will be no more.
func (b *inbox) missing(ids []string) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return b.ids[id] }), b.err
}

// waitFor waits until every id has come at least once; t fails with the first missing ones when limit has
// passed or the subscription broke.
func (b *inbox) waitFor(t testing.TB, limit time.Duration, ids ...string) {
	t.Helper()
	timeout := time.After(limit)
	for missing := ids; ; {
		var err error
		if missing, err = b.missing(missing); len(missing) == 0 {
			return
		}
		if err != nil {
			t.Fatalf("subscriber: %v; %d of %d messages came", err, len(ids)-len(missing), len(ids))
		}
		select {
		case <-b.more:
		case <-timeout:
			t.Fatalf("%d of %d messages did not come within %v, the first is %s", len(missing), len(ids), limit,
				missing[0])
		}
	}
}

// --- go-amqp ----------------------------------------------------------------------------------------------

// dialOptions are for connections of the tests themselves.
func (s *server) dialOptions() *amqp.ConnOptions {
	return &amqp.ConnOptions{SASLType: amqp.SASLTypePlain(user, password), IdleTimeout: time.Minute}
}

const user, password = "koji", "k0ji-secret"

func (s *server) dial(ctx context.Context) (*amqp.Conn, error) {
	return amqp.Dial(ctx, "amqp://"+s.addr(), s.dialOptions())
}

// credit is more than any test needs: with go-amqp topping it up, RabbitMQ 3.10 now and then stops
// delivering, the rest of its queue still ready.
const credit = 20000

// subscribe attaches a go-amqp receiver to each address; it returns when all links are attached.
func subscribe(t testing.TB, s *server, b brokerKind, addresses ...string) *inbox {
	t.Helper()
	if b.declared {
		declareSources(t, s, addresses)
	}
	return attach(t, s, "", addresses, func(string) *amqp.ReceiverOptions {
		return &amqp.ReceiverOptions{Credit: credit, SourceCapabilities: b.capabilities}
	})
}

// attach opens one connection with one link for each address. containerID may be empty.
func attach(t testing.TB, s *server, containerID string, addresses []string,
	options func(address string) *amqp.ReceiverOptions) *inbox {
	t.Helper()
	ctx := within(t, 30*time.Second)
	o := s.dialOptions()
	o.ContainerID = containerID
	var conn *amqp.Conn
	var session *amqp.Session
	// ActiveMQ knows the last connection of a container for a moment longer, and ends another one.
	err := poll(30*time.Second, func() (err error) {
		if conn, err = amqp.Dial(ctx, "amqp://"+s.addr(), o); err != nil {
			return err
		}
		if session, err = conn.NewSession(ctx, nil); err != nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatalf("connect a subscriber to %s: %v", s.service, err)
	}
	box := newInbox()
	reading, stop := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	for _, address := range addresses {
		var r *amqp.Receiver
		// Artemis knows the last reader of a durable subscription for a moment longer, and takes one only.
		err = poll(30*time.Second, func() (err error) {
			r, err = session.NewReceiver(ctx, address, options(address))
			return err
		})
		if err != nil {
			t.Fatalf("subscribe to %s on %s: %v", address, s.service, err)
		}
		readers.Go(func() { box.read(reading, address, r) })
	}
	t.Cleanup(func() {
		stop()
		conn.Close()
		readers.Wait()
	})
	return box
}

// read receives until ctx ends or the link breaks.
func (b *inbox) read(ctx context.Context, address string, r *amqp.Receiver) {
	for {
		m, err := r.Receive(ctx, nil)
		if err != nil {
			if ctx.Err() == nil {
				b.fail(fmt.Errorf("receive from %s: %w", address, err))
			}
			return
		}
		if err := r.AcceptMessage(ctx, m); err != nil && ctx.Err() == nil {
			b.fail(fmt.Errorf("accept a message of %s: %w", address, err))
			return
		}
		b.put(newDelivery(address, m))
	}
}

func newDelivery(address string, m *amqp.Message) delivery {
	d := delivery{Link: address}
	if h := m.Header; h != nil {
		d.Durable, d.Priority, d.TTL = h.Durable, int(h.Priority), h.TTL.Seconds()
	}
	if p := m.Properties; p != nil {
		if p.MessageID != nil {
			d.ID = fmt.Sprint(p.MessageID)
		}
		if p.To != nil {
			d.To = *p.To
		}
		if p.CreationTime != nil {
			d.CreationTime = float64(p.CreationTime.UnixMilli()) / 1000
		}
	}
	for key, value := range m.ApplicationProperties {
		text, err := json.Marshal(value)
		if err != nil {
			text = []byte(err.Error()) // NaN and infinities, which nobody sends
		}
		d.Props = append(d.Props, prop{key, amqpType(value), text})
	}
	if text, ok := m.Value.(string); ok && m.Data == nil {
		d.Body = &text
	}
	return d
}

// amqpType names the AMQP type that go-amqp decoded to v.
func amqpType(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case int64:
		return "long"
	case int32:
		return "int"
	case float64:
		return "double"
	}
	return fmt.Sprintf("%T", v)
}

// --- python-proton ----------------------------------------------------------------------------------------

// protonPython is a Python that has python-proton.
func protonPython(t testing.TB) string {
	t.Helper()
	python := cmp.Or(os.Getenv("KOJI_RELAY_PROTON_PYTHON"), "/usr/bin/python3")
	if out, err := exec.Command(python, "-c", "import proton").CombinedOutput(); err != nil {
		skipOrFail(t, "%s has no python-proton; install the package python3-qpid-proton or set "+
			"KOJI_RELAY_PROTON_PYTHON (%v: %s)", python, err, out)
	}
	return python
}

// protonJob is what proton_receiver.py reads.
type protonJob struct {
	URL          string   `json:"url"`
	User         string   `json:"user,omitempty"`
	Password     string   `json:"password,omitempty"`
	Addresses    []string `json:"addresses"`
	Capabilities []string `json:"capabilities,omitempty"`
	CACert       string   `json:"cacert,omitempty"`
	Cert         string   `json:"cert,omitempty"`
	Key          string   `json:"key,omitempty"`
	Plain        bool     `json:"plain,omitempty"` // no Sections
}

// subscribeProton is subscribe with python-proton, in a process of its own.
func subscribeProton(t testing.TB, s *server, b brokerKind, addresses ...string) *inbox {
	t.Helper()
	return runProton(t, protonJob{
		URL: "amqp://" + s.addr(), User: user, Password: password, Addresses: addresses,
		Capabilities: b.capabilities,
	})
}

func runProton(t testing.TB, job protonJob) *inbox {
	t.Helper()
	cmd := exec.Command(protonPython(t), "proton_receiver.py")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start python-proton: %v", err)
	}
	box := newInbox()
	ready := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		box.readLines(stdout, ready)
	}()
	t.Cleanup(func() {
		stdin.Close()
		<-done
		cmd.Wait()
	})
	line, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write(append(line, '\n')); err != nil {
		t.Fatalf("give python-proton its job: %v", err)
	}
	select {
	case <-ready:
	case <-done:
		_, err := box.all()
		t.Fatalf("python-proton ended before it had subscribed: %v", err)
	case <-time.After(30 * time.Second):
		_, err := box.all()
		t.Fatalf("python-proton has not subscribed within 30 s: %v", err)
	}
	return box
}

// readLines takes the lines of proton_receiver.py until it ends.
func (b *inbox) readLines(r io.Reader, ready chan<- struct{}) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			b.fail(errors.New("python-proton ended"))
			return
		}
		var event struct {
			delivery
			Ready bool   `json:"ready"`
			Error string `json:"error"`
		}
		if err := json.Unmarshal(line, &event); err != nil {
			b.fail(fmt.Errorf("read python-proton's output: %w", err))
			return
		}
		switch {
		case event.Ready:
			close(ready)
		case event.Error != "":
			b.fail(errors.New("python-proton: " + event.Error))
		default:
			b.put(event.delivery)
		}
	}
}
