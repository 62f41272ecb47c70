package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// consumer is one running example.
type consumer struct {
	name           string
	process        *exec.Cmd
	ended          chan struct{}
	stdout, stderr *journal
}

// startConsumer starts an example and waits until it has subscribed.
func startConsumer(t testing.TB, name string, command []string, args ...string) *consumer {
	t.Helper()
	c := launchConsumer(t, name, command, args...)
	c.awaitSubscribed(t, 1)
	return c
}

// launchConsumer starts an example.
func launchConsumer(t testing.TB, name string, command []string, args ...string) *consumer {
	t.Helper()
	cmd := exec.Command(command[0], append(command[1:len(command):len(command)], args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &consumer{name, cmd, make(chan struct{}), newJournal(), newJournal()}
	err = startOnOwnThread(cmd, c.ended, func() {
		var reading sync.WaitGroup
		reading.Go(func() { c.stderr.read(stderr) })
		c.stdout.read(stdout)
		reading.Wait()
	})
	if err != nil {
		t.Fatalf("start the %s example: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-c.ended
		if t.Failed() {
			t.Logf("the %s example printed %d lines, and said:\n%s", name, len(c.printed()), c.stderr.tail(40))
		}
	})
	return c
}

// awaitSubscribed waits until the example has said n times that it subscribed.
func (c *consumer) awaitSubscribed(t testing.TB, n int) {
	t.Helper()
	eventually(t, 90*time.Second, "the "+c.name+" example subscribes", func() error {
		if said := c.stderr.text(); strings.Count(said, "subscribed to ") < n {
			return fmt.Errorf("it said %q", said)
		}
		return nil
	})
}

func (c *consumer) printed() []string {
	c.stdout.mu.Lock()
	defer c.stdout.mu.Unlock()
	return slices.Clone(c.stdout.lines)
}

func (c *consumer) awaitPrinted(t testing.TB, n int) {
	t.Helper()
	eventually(t, 4*time.Minute, "the "+c.name+" example prints "+strconv.Itoa(n)+" messages", func() error {
		if lines := c.printed(); len(lines) < n {
			return fmt.Errorf("it printed %d", len(lines))
		}
		return nil
	})
}

// awaitEnd waits until the example ended by itself, as it does when --count is reached.
func (c *consumer) awaitEnd(t testing.TB) {
	t.Helper()
	select {
	case <-c.ended:
		if code := c.process.ProcessState.ExitCode(); code != 0 {
			t.Errorf("the %s example ended with %d", c.name, code)
		}
	case <-time.After(4 * time.Minute):
		t.Fatalf("the %s example has not ended after %d messages", c.name, len(c.printed()))
	}
}

// compare checks that the example printed each of the messages once, whole, and nothing else.
func (c *consumer) compare(t testing.TB, b subscription, part, address string, messages []goldenMessage) {
	t.Helper()
	want := make(map[string]goldenMessage)
	for _, m := range messages {
		want[m.id()] = m
	}
	for _, line := range c.printed() {
		var got struct {
			ID      string `json:"message_id"`
			Address string
			Props   map[string]json.RawMessage
			Body    string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Errorf("%s: %v: %.200s", c.name, err, line)
			continue
		}
		m, expected := want[got.ID]
		if !expected {
			t.Errorf("%s printed what was not sent, or was printed before: %.200s", c.name, line)
			continue
		}
		delete(want, got.ID)
		var props []prop
		for _, p := range m.Props {
			value, there := got.Props[p.Key]
			if there && (p.Type == "null") == (string(value) == "null") {
				props = append(props, prop{p.Key, p.Type, value})
			}
		}
		topic := part + "." + m.Address
		if b.silent {
			topic = address
		}
		// ActiveMQ gives addresses with the topic:// in front that one sends to.
		if strings.TrimPrefix(got.Address, "topic://") != topic || got.Body != m.Body ||
			len(got.Props) != len(m.Props) || !slices.Equal(sortedProps(props), sortedProps(m.Props)) {
			t.Errorf("%s printed\n%.400s\nfor\n%s %v %.200s", c.name, line, m.Address, sortedProps(m.Props), m.Body)
			return // one says it all
		}
	}
	if len(want) > 0 {
		t.Errorf("%s did not print %d of %d messages", c.name, len(want), len(messages))
	}
}

// cutter is a way to a broker that can be cut.
type cutter struct {
	listener net.Listener
	mu       sync.Mutex // guards conns
	conns    []net.Conn
}

func newCutter(t testing.TB, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l}
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				copying.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.cut()
		copying.Wait()
	})
	return c
}

// cut ends every connection there is; new ones are possible.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}
