package integration

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
)

// servePassThrough answers 200 to each request when the broker has accepted a message for each of its lines.
// It gives its socket.
func servePassThrough(t testing.TB, sender plainSender) string {
	dir, err := os.MkdirTemp("", "kr")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "pass.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = sender.sendAll(r.Context(), bytes.Split(body, []byte("\n")))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-done
		os.RemoveAll(dir)
	})
	return socket
}

// sendAll sends all, and then waits for all settlements.
func (s plainSender) sendAll(ctx context.Context, bodies [][]byte) error {
	var receipts []amqp.SendReceipt
	for _, body := range bodies {
		m := tagMessage()
		m.Value = string(body)
		r, err := s.SendWithReceipt(ctx, m, nil)
		if err != nil {
			return err
		}
		receipts = append(receipts, r)
	}
	for _, r := range receipts {
		if _, err := r.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// clientsPost posts requests of 100 messages from so many clients at once, so many in all.
func clientsPost(t testing.TB, socket string, clients, requests int) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	defer client.CloseIdleConnections()
	line := `{"x": "` + strings.Repeat("x", 800) + `"}`
	body := []byte(strings.TrimSuffix(strings.Repeat(line+"\n", 100), "\n"))
	work := make(chan struct{}, requests) // all there will be
	for range requests {
		work <- struct{}{}
	}
	close(work)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range work {
				answer, err := client.Post("http://pass/", "text/plain", bytes.NewReader(body))
				if err != nil {
					t.Errorf("post to the pass-through: %v", err)
					return
				}
				answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					t.Errorf("the pass-through answers %d", answer.StatusCode)
				}
			}
		})
	}
	all.Wait()
}

// senderProcess is set in the environment of this test program where it is to be a plain sender, and nothing
// else.
const senderProcess = "KOJI_RELAY_TEST_SENDER"

// senderProcessorTime is the processor time for each message, in microseconds, of a process that only sends.
func (t *table) senderProcessorTime(messages int) float64 {
	cmd := exec.Command(os.Args[0], "-test.run", "^TestPlainSender$", "-test.v")
	cmd.Env = append(os.Environ(), senderProcess+"="+t.broker40.addr(),
		senderProcess+"_N="+strconv.Itoa(messages))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("plain sender: %v\n%s", err, out)
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return float64(used.Microseconds()) / float64(messages)
}

// TestPlainSender is the plain sender in a process of its own; it is nothing to test elsewhere.
func TestPlainSender(t *testing.T) {
	addr, given := os.LookupEnv(senderProcess)
	if !given {
		return
	}
	n, err := strconv.Atoi(os.Getenv(senderProcess + "_N"))
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{service: "plain sender's broker", host: host}
	if s.port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	rawSender(t, s, "/exchanges/amq.topic/bench."+tagTopic).mustThroughput(t, n)
}
