package integration

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The relay's surroundings fail here: who reads its log, its port, its file descriptors. The hub is served
// all the same.

// withoutBrokers is the configuration of a relay that has no broker: what it takes goes into its queue.
func withoutBrokers() settings {
	return settings{"broker.urls": "amqp://127.0.0.1:1", "broker.topic_prefix": "koji"}
}

// freePort gives the address of a loopback port that nothing listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// takes fails t unless the relay takes a commit.
func (r *relay) takes(t *testing.T) {
	t.Helper()
	body, _ := tagCommit(1)
	if a, err := r.post(context.Background(), body); err != nil || a.Code != http.StatusOK {
		t.Fatalf("a commit is not taken: %+v, %v", a, err)
	}
}

// get gives what the page's port answers.
func get(t *testing.T, address, path string) (string, error) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

func TestRelayGoesOnWithoutTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*os.File){
		"closed":        func(f *os.File) { f.Close() },
		"stands still":  func(*os.File) {},
		"never started": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			page := freePort(t)
			r := newRelay(t, withoutBrokers().with(settings{"relay.admin": page, "relay.log_level": "debug"}))
			path, err := binary()
			if err != nil {
				t.Fatal(err)
			}
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			if end == nil {
				read.Close()
			}
			cmd := exec.Command(path, "serve", "--config", r.conf)
			cmd.Stderr = write
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			ended := make(chan struct{})
			if err := startOnOwnThread(cmd, ended, func() { write.Close() }); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				<-ended
			}()
			eventually(t, 20*time.Second, "ready", func() error {
				text, err := get(t, page, "/ready")
				if err == nil && !strings.Contains(text, "ready") {
					err = fmt.Errorf("/ready says %s", text)
				}
				return err
			})
			if end != nil {
				end(read)
			}
			// More lines than the pipe and the relay hold.
			eventually(t, 60*time.Second, "lines of the log are lost", func() error {
				for range 200 {
					r.takes(t)
				}
				text, err := get(t, page, "/metrics")
				if err == nil && strings.Contains(text, "koji_relay_log_lines_lost_total 0\n") {
					err = fmt.Errorf("none is lost")
				}
				return err
			})
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(45 * time.Second):
				t.Fatal("the relay does not end")
			}
			if code := cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("the relay ended with %v", cmd.ProcessState)
			}
		})
	}
}

func TestAdminPortInUseDoesNotStopTheRelay(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	page := other.Addr().String()
	r := startRelay(t, withoutBrokers().with(settings{"relay.admin": page}))
	r.takes(t)
	r.await(t, "going on without a listener; trying again", map[string]string{"listener": "admin"})
	other.Close()
	r.await(t, "listening at last", map[string]string{"listener": "admin"})
	if text, err := get(t, page, "/metrics"); err != nil || !strings.Contains(text, "koji_relay_ready") {
		t.Errorf("the port is served: %v, %s", err, text)
	}
	if code := r.stop(t); code != 0 {
		t.Errorf("the relay ended with %d", code)
	}
}

func TestIdleConnectionsToThePageLeaveTheHubAlone(t *testing.T) {
	t.Parallel()
	page := freePort(t)
	r := newRelay(t, withoutBrokers().with(settings{"relay.admin": page}))
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	// 128 file descriptors, and 100 connections that say nothing.
	r.startCommand(t, exec.Command("prlimit", "--nofile=128:128", path, "serve", "--config", r.conf))
	for range 100 {
		c, err := net.Dial("tcp", page)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	r.await(t, "all connections are in use; further ones wait", map[string]string{"listener": "admin"})
	for range 20 {
		r.takes(t)
	}
	// Those that say nothing are let go.
	eventually(t, 60*time.Second, "the page is served", func() error {
		_, err := get(t, page, "/live")
		return err
	})
}

func TestMillionTinyEventsTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	r := startRelay(t, withoutBrokers())
	const event = `{"callback":"a","kwargs":{}},`
	body := `{"commit":"7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55","events":[` + strings.Repeat(event, 999_999) +
		event[:len(event)-1] + `]}`
	for name, reader := range map[string]func() io.Reader{
		"announced": func() io.Reader { return strings.NewReader(body) },
		"chunked":   func() io.Reader { return struct{ io.Reader }{strings.NewReader(body)} },
	} {
		// On a busy machine the relay may have waited for 5 s before all of it was there.
		eventually(t, 2*time.Minute, name+": 413", func() error {
			resp, err := r.client.Post("http://hub/v1/commits", "application/json", reader())
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestEntityTooLarge {
				return errors.New(resp.Status)
			}
			return nil
		})
	}
	// 64 MiB + max_inflight_bytes + 4 x batch_bytes; a relay with the race detector takes several times as much.
	const most = (64 + 128 + 32) << 10
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.process.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	var kB int
	if _, err := fmt.Sscan(peak, &kB); err != nil {
		t.Fatal(err)
	}
	t.Logf("the relay took %d kB at most", kB)
	if kB > most && !raceBinary(t) {
		t.Errorf("the relay took %d kB, want at most %d", kB, most)
	}
	r.takes(t)
}

// raceBinary says whether the relay under test has the race detector in it.
func raceBinary(t *testing.T) bool {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
