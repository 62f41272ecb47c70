package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// subscriber is `koji-relay tail --json` in a process of its own: all that it shares with the relay is AMQP.
type subscriber struct {
	cmd     *exec.Cmd
	stderr  *os.File
	stopped chan struct{} // closed by stop
	done    chan struct{} // closed when the process has ended and all it wrote is read
}

// startSubscriber starts the process. Every message that it reports goes into the account; when it ends
// before stop, fail learns it.
func startSubscriber(program string, site *site, account *account,
	fail context.CancelCauseFunc) (*subscriber, error) {
	stderr, err := os.Create(site.path(subscriberLog))
	if err != nil {
		return nil, fmt.Errorf("make the subscriber's log: %w", err)
	}
	cmd := exec.Command(program, "tail", "--json", "--config", site.path(subscriberConfig))
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		stderr.Close()
		return nil, fmt.Errorf("start the subscriber: %w", err)
	}
	s := &subscriber{cmd: cmd, stderr: stderr, stopped: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		err := errors.Join(s.read(stdout, account), cmd.Wait())
		select {
		case <-s.stopped:
		default:
			fail(fmt.Errorf("the subscriber ended, see %s: %w", stderr.Name(), err))
		}
	}()
	return s, nil
}

// read feeds the account until the process closes its output.
func (s *subscriber) read(stdout io.Reader, account *account) error {
	for lines := json.NewDecoder(stdout); ; {
		var m struct {
			ID string `json:"message_id"`
		}
		err := lines.Decode(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what the subscriber reports: %w", err)
		}
		account.arrived(m.ID)
	}
}

func (s *subscriber) pid() int { return s.cmd.Process.Pid }

// stop ends the process and waits for it.
func (s *subscriber) stop() {
	close(s.stopped)
	s.cmd.Process.Signal(syscall.SIGTERM) // its error would be that the process has ended
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		s.cmd.Process.Kill()
		<-s.done
	}
	s.stderr.Close()
}
