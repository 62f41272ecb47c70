package ingest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/message"
)

// pipes is a listener whose connections live in a synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// sender is a hub that has sent a part of a request.
type sender struct {
	net.Conn
	answers *bufio.Reader
}

// send begins a request with the given headers and the beginning of its body.
func (p *pipes) send(t *testing.T, headers, body string) sender {
	t.Helper()
	ours, theirs := net.Pipe()
	p.conns <- theirs
	if _, err := io.WriteString(ours, "POST /v1/commits HTTP/1.1\r\nHost: hub\r\n"+headers+"\r\n"+
		body); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return sender{ours, bufio.NewReader(ours)}
}

// answer gives the status and the text.
func (s sender) answer(t *testing.T) (int, string) {
	t.Helper()
	resp, err := http.ReadResponse(s.answers, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	return resp.StatusCode, string(text)
}

// inBubble runs f with a server of 1 MiB for a request and 2 MiB in flight.
func inBubble(t *testing.T, f func(t *testing.T, p *pipes)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, func(context.Context, message.Commit) message.Receipt { return message.Receipt{Sent: 1} },
			func(o *Options) {
				o.MaxRequestBytes, o.MaxInflightBytes = 1<<20, 2<<20
				o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
			})
		p := &pipes{make(chan net.Conn), make(chan struct{})}
		done := make(chan error)
		go func() { done <- s.Serve(p) }()
		f(t, p)
		s.Close()
		p.Close()
		<-time.After(time.Second) // the server waits half of it before it closes a connection that it cuts
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

const chunked = "Transfer-Encoding: chunked\r\n"

// chunk is a part of a chunked body.
func chunk(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }

func TestSlowBodiesHoldOnlyWhatHasComeAndEndAfterSeconds(t *testing.T) {
	for name, headers := range map[string]string{
		"length not announced": chunked,
		"length announced":     "Content-Length: 1000000\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, p *pipes) {
				began := time.Now()
				var slow []sender
				for range 10 {
					slow = append(slow, p.send(t, headers, chunk("{")))
				}
				if status, text := p.send(t, "Content-Length: 2\r\n", "{}").answer(t); status != 200 {
					t.Errorf("a commit beside ten slow ones: %d %s, want 200", status, text)
				}
				for _, s := range slow {
					if status, text := s.answer(t); status != 408 || !strings.Contains(text, "TOO_SLOW") {
						t.Errorf("the slow one: %d %s, want 408 TOO_SLOW", status, text)
					}
				}
				if took := time.Since(began); took > 6*time.Second {
					t.Errorf("slow bodies were waited for %v", took)
				}
			})
		})
	}
}

func TestBodiesThatStopHalfWayMakeRoom(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pipes) {
		half := strings.Repeat("x", 700_000) // takes the most that a request may
		stopped := []sender{p.send(t, chunked, chunk(half)), p.send(t, chunked, chunk(half))}
		commit := `"` + strings.Repeat("x", 100_000) + `"`
		post := func() (int, string) {
			return p.send(t, fmt.Sprintf("Content-Length: %d\r\n", len(commit)), "").rest(t, commit)
		}
		if status, text := post(); status != 503 || !strings.Contains(text, "OVERLOADED") {
			t.Errorf("at once: %d %s, want 503 OVERLOADED", status, text)
		}
		<-time.After(patience + time.Millisecond)
		post() // refused, too; it lets go of those that do not go on
		synctest.Wait()
		if status, text := post(); status != 200 {
			t.Errorf("a little later: %d %s, want 200", status, text)
		}
		for _, s := range stopped {
			if status, _ := s.answer(t); status != 408 {
				t.Errorf("the one that stopped: %d, want 408", status)
			}
		}
	})
}

// rest sends what is left of a body, as far as it is read, and gives the answer.
func (s sender) rest(t *testing.T, body string) (int, string) {
	t.Helper()
	go io.WriteString(s, body) // ends with the connection
	return s.answer(t)
}

func TestBodyComesWholeInWhateverPieces(t *testing.T) {
	inBubble(t, func(t *testing.T, p *pipes) {
		body := `"` + strings.Repeat("x", 900_000) + `"`
		var parts strings.Builder
		for text := body; text != ""; {
			n := min(len(text), 10_007)
			parts.WriteString(chunk(text[:n]))
			text = text[n:]
		}
		if status, text := p.send(t, chunked, "").rest(t, parts.String()+"0\r\n\r\n"); status != 200 {
			t.Errorf("chunked: %d %s, want 200", status, text)
		}
		length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
		if status, text := p.send(t, length, "").rest(t, body); status != 200 {
			t.Errorf("with its length: %d %s, want 200", status, text)
		}
	})
}

func TestMemoryIsCountedForAllThatARequestBecomes(t *testing.T) {
	t.Parallel()
	const kB = 1000
	events := func(n, size int) (list []message.Event) {
		for range n {
			list = append(list, message.Event{Kwargs: make([]byte, size)})
		}
		return list
	}
	for name, tc := range map[string]struct {
		body   int
		events []message.Event
		want   int64 // at the end
	}{
		"a small commit: its body, and twice for its messages": {30 * kB, events(1, 30*kB),
			30*kB + eventBytes + 60*kB},
		"tiny events: the list of them on top": {30 * kB, events(1000, 1), 30*kB + 1000*eventBytes + 60*kB},
		"a large commit: its messages piece by piece": {20 << 20, events(20, 1<<20),
			20<<20 + 20*eventBytes + 2*message.PieceBytes},
		"one event that is larger than a piece": {20 << 20, events(1, 20<<20), 20<<20 + eventBytes + 2*20<<20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, nil, func(o *Options) {
				o.MaxRequestBytes, o.MaxInflightBytes = 64<<20, 128<<20
				o.Decode = func([]byte) (message.Commit, error) { return message.Commit{Events: tc.events}, nil }
			})
			r, err := http.NewRequest("POST", "/", strings.NewReader(strings.Repeat(" ", tc.body)))
			if err != nil {
				t.Fatal(err)
			}
			hold := s.account.open(nil)
			if _, refused := s.read(r, hold); refused != nil {
				t.Fatalf("refused: %+v", refused)
			}
			if hold.held != tc.want || s.account.used != tc.want {
				t.Errorf("%d bytes are counted, and %d for all; want %d", hold.held, s.account.used, tc.want)
			}
			if hold.close(); s.account.used != 0 || len(s.account.arriving) != 0 {
				t.Errorf("%d bytes are left after the end", s.account.used)
			}
		})
	}
}

func TestAccount(t *testing.T) {
	t.Parallel()
	a := newAccount(100)
	one, two := a.open(nil), a.open(nil)
	for i, step := range []struct {
		share *share
		bytes int64
		want  bool
	}{
		{one, 150, true}, // alone: more than the limit
		{two, 1, false},
		{one, 60, true},
		{two, 40, true},
		{two, 41, false}, // and it keeps what it had
		{one, 61, false},
		{one, 59, true},
		{two, 41, true},
		{one, 0, true},
		{two, 300, true},
		{two, 200, true}, // less is always possible
	} {
		if got := step.share.hold(step.bytes); got != step.want {
			t.Errorf("step %d: hold(%d) is %v, want %v", i, step.bytes, got, step.want)
		}
	}
	a.setLimit(300)
	if !one.hold(100) {
		t.Error("a raised limit has no effect")
	}
}

func TestTooManyEventsAreRefusedWithTheRemedy(t *testing.T) {
	t.Parallel()
	client := serveUnix(t, newServer(t, nil, func(o *Options) {
		o.Decode = func([]byte) (message.Commit, error) { return message.Commit{}, message.ErrTooManyEvents }
	}))
	want := `{"code":"TOO_LARGE","error":"the request holds more than 100000 events; post the commit in ` +
		`several requests with event numbers"}`
	if status, text := post(t, client, strings.NewReader("{}")); status != 413 || text != want {
		t.Errorf("%d %s, want 413 %s", status, text, want)
	}
}

func TestEveryAnswerSaysWhichEventsMakeMessages(t *testing.T) {
	t.Parallel()
	client := serveUnix(t, newServer(t,
		func(context.Context, message.Commit) message.Receipt { return message.Receipt{} },
		func(o *Options) { o.Events = func() string { return "postTag pre*" } }))
	for body, want := range map[string]int{`{}`: 200, `{"x"`: 400, strings.Repeat(" ", 1001): 413} {
		resp, err := client.Post("http://hub/v1/commits", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Koji-Relay-Events"); resp.StatusCode != want || got != "postTag pre*" {
			t.Errorf("status %d with Koji-Relay-Events: %q; want %d with postTag pre*", resp.StatusCode, got, want)
		}
	}
	resp, err := client.Get("http://hub/v1/commits") // only to learn that
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Koji-Relay-Events"); resp.StatusCode != 204 || got != "postTag pre*" {
		t.Errorf("GET: status %d with Koji-Relay-Events: %q; want 204 with postTag pre*", resp.StatusCode, got)
	}
}

func TestRefusalsOfOneKindAreToldOnceAndCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := newServer(t, nil, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		for range 100 {
			s.tell(s.overloaded())
		}
		s.tell(s.tooLarge())
		<-time.After(tellEvery + time.Second)
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 3 || strings.Count(log.String(), "commits=99") != 1 {
			t.Errorf("%d lines are logged, want one for each kind and one with commits=99:\n%s", n, &log)
		}
		log.Reset()
		s.tell(s.overloaded())
		<-time.After(tellEvery + time.Second)
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines are logged for one request, want one:\n%s", n, &log)
		}
	})
}
