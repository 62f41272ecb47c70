package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/Azure/go-amqp"
	"go.uber.org/goleak"

	"koji-relay/internal/amqpconn/frame"
	"koji-relay/internal/devbroker/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// frameOf encodes one frame of a peer.
func frameOf(channel uint16, code uint64, list ...any) []byte {
	return wire.AppendFrame(nil, wire.FrameAMQP, channel, code, list, nil)
}

func state(code uint64) wire.Described { return wire.Described{Descriptor: code, Value: []any{}} }

// raw is a peer of a guard: what it writes comes to the guard, and what the guard writes is thrown away.
type raw struct {
	net.Conn
	g *Guard
}

// newRaw gives a guard whose peer has answered one session, on which n deliveries were sent.
func newRaw(t *testing.T, n int) raw {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	go func() { _, _ = io.Copy(io.Discard, there) }()
	r := raw{there, New(here)}
	r.g.header = true
	r.mustWrite(t, frameOf(0, frame.Begin, nil, uint32(0), uint32(5000), uint32(5000)))
	r.mustRead(t, frameOf(3, frame.Begin, uint16(0), uint32(0), uint32(5000), uint32(5000), uint32(7)))
	for i := range n {
		r.mustWrite(t, frameOf(0, frame.Transfer, uint32(0), uint32(i), []byte{1}))
	}
	return r
}

func (r raw) mustWrite(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := r.g.Write(frame); err != nil {
		t.Fatal(err)
	}
}

// read gives what the driver gets when the peer sends frames, and then goes.
func (r raw) read(frames ...[]byte) ([]byte, error) {
	go func() { _, _ = r.Write(bytes.Join(frames, nil)); _ = r.Close() }()
	return io.ReadAll(r.g)
}

func (r raw) mustRead(t *testing.T, frame []byte) {
	t.Helper()
	go func() { _, _ = r.Write(frame) }()
	got := make([]byte, len(frame))
	if _, err := io.ReadFull(r.g, got); err != nil || !bytes.Equal(got, frame) {
		t.Fatalf("%x, %v", got, err)
	}
}

func TestGuardRefusesWhatTheDriverWouldFallFor(t *testing.T) {
	t.Parallel()
	giant := binary.BigEndian.AppendUint32(nil, math.MaxInt32)
	giant = append(giant, 2, 0, 0, 3)
	for _, row := range []struct {
		name  string
		frame []byte
		want  string // part of the reason; empty = it passes
	}{
		{"answer", frameOf(3, frame.Disposition, true, uint32(3), uint32(9), true, state(frame.Accepted)), ""},
		{"answer to one", frameOf(3, frame.Disposition, true, uint32(9), nil, true, state(frame.Accepted)), ""},
		{"no end", frameOf(3, frame.Disposition, true, uint32(0), uint32(math.MaxUint32), true,
			state(frame.Accepted)),
			"deliveries 0 to 4294967295"},
		{"the last number alone", frameOf(3, frame.Disposition, true, uint32(math.MaxUint32), nil, true,
			state(frame.Accepted)), "deliveries 4294967295"},
		{"reversed", frameOf(3, frame.Disposition, true, uint32(9), uint32(3), true, state(frame.Accepted)),
			"deliveries 9 to 3"},
		{"beyond what was sent", frameOf(3, frame.Disposition, true, uint32(0), uint32(10), true,
			state(frame.Accepted)), "and 10 were sent"},
		{"of the peer's own, no end", frameOf(3, frame.Disposition, false, uint32(0), uint32(math.MaxUint32), true),
			"deliveries 0 to"},
		{"of the peer's own, too many", frameOf(3, frame.Disposition, false, uint32(0), uint32(1<<20), true),
			"more than can be outstanding"},
		{"flow", frameOf(3, frame.Flow, uint32(0), uint32(9), uint32(0), uint32(9), uint32(0), uint32(0),
			uint32(5)),
			""},
		{"flow of a session", frameOf(3, frame.Flow, uint32(0), uint32(9), uint32(0), uint32(9)), ""},
		{"flow without credit", frameOf(3, frame.Flow, uint32(0), uint32(9), uint32(0), uint32(9), uint32(0)),
			"without link-credit"},
		{"giant frame", giant, "a frame of 2147483647 bytes"},
		{"frame without room for its header", []byte{0, 0, 0, 7, 2, 0, 0, 0}, "a frame of 7 bytes"},
		{"extended header", []byte{0, 0, 0, 16, 3, 0, 0, 3, 0, 0x53, frame.Flow, 0x45, 0, 0x53, frame.End, 0x45},
			"its body at 12"},
		{"body behind the end", []byte{0, 0, 0, 9, 3, 0, 0, 0, 0}, "its body at 12"},
		{"another session's begin", frameOf(4, frame.Begin, uint16(9), uint32(0), uint32(1), uint32(1)),
			"did not begin"},
		{"small frames", frameOf(0, frame.Open, "x", nil, uint32(100)), "max-frame-size 100"},
		{"described without end", append([]byte{0, 0, 0, 114, 2, 0, 0, 0, 0, 0x53, frame.Open, 0xc0, 101, 1},
			make([]byte, 100)...), "malformed"},
		{"list longer than its frame", []byte{0, 0, 0, 15, 2, 0, 0, 3, 0, 0x53, frame.Flow, 0xc0, 200, 1, 0x40},
			"malformed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			r := newRaw(t, 10)
			got, err := r.read(row.frame)
			var refused *RefusedError
			if row.want == "" {
				if err != nil || !bytes.Equal(got, row.frame) {
					t.Errorf("%x, %v", got, err)
				}
				return
			}
			if len(got) > 0 || !errors.As(err, &refused) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%d bytes and %v, not %q", len(got), err, row.want)
			}
		})
	}
}

// A range of one million is 30 bytes. The driver walks it, each time.
func TestPeerCannotHaveTheDriverWalkForEver(t *testing.T) {
	t.Parallel()
	r := newRaw(t, 2000)
	all := frameOf(3, frame.Disposition, true, uint32(0), uint32(1999), true, state(frame.Accepted))
	got, err := r.read(bytes.Repeat(all, 1000))
	if walked := len(got) / len(all) * 2000; walked > firstAllowance+2000*allowanceEach || err == nil {
		t.Errorf("%d deliveries were named, and %v", walked, err)
	}
}

func TestPeerThatWantsAnswersWithoutEndIsRefused(t *testing.T) {
	t.Parallel()
	r := newRaw(t, 0)
	echo := frameOf(3, frame.Flow, uint32(0), uint32(9), uint32(0), uint32(9), nil, nil, nil, nil, nil, true)
	if got, err := r.read(bytes.Repeat(echo, 2*maxEchoes)); len(got) > maxEchoes*len(echo) || err == nil {
		t.Errorf("%d frames passed, and %v", len(got)/len(echo), err)
	}
}

// The specification, 3.4.1: received tells how far a receiver has come.
func TestStateThatIsNoOutcomeIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRaw(t, 3)
	accepted := frameOf(3, frame.Disposition, true, uint32(1), nil, true, state(frame.Accepted))
	got, err := r.read(
		frameOf(3, frame.Disposition, true, uint32(0), uint32(2), false,
			wire.Described{Descriptor: uint64(0x23), Value: []any{uint32(0), uint64(0)}}),
		frameOf(3, frame.Disposition, true, uint32(0), nil, false),
		accepted,
	)
	if err != nil || !bytes.Equal(got, accepted) {
		t.Errorf("the driver got %x, %v", got, err)
	}
}

// 700 MB of one frame were 2.7 GB of memory, before max-frame-size was looked at.
func TestGiantFrameCostsNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const most = 700 << 20
	sent := make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_, _ = io.CopyN(io.Discard, nc, 8)
		_, _ = nc.Write([]byte("AMQP\x00\x01\x00\x00"))
		_, _ = nc.Write([]byte{0x7f, 0xff, 0xff, 0xff, 2, 0, 0, 0})
		for part := make([]byte, 1<<20); n < most; n += len(part) {
			if _, err := nc.Write(part); err != nil {
				return
			}
		}
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = amqp.NewConn(t.Context(), New(nc), nil)
	runtime.ReadMemStats(&after)
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("error %v", err)
	}
	_ = nc.Close()
	n := <-sent
	cost := after.TotalAlloc - before.TotalAlloc
	t.Logf("%d MB were sent, %d kB of memory were used", n>>20, cost>>10)
	if n >= most {
		t.Errorf("all of it was taken")
	}
}

func TestLimitsAreReadFromThePeersFrames(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		frame []byte
		want  Limits
	}{
		{frameOf(0, frame.Open, "x"), Limits{frame.Unlimited, math.MaxUint16 + 1}},
		{frameOf(0, frame.Open, "x", "host", uint32(4096), uint16(0)), Limits{4096, 1}},
	} {
		r := newRaw(t, 0)
		r.mustRead(t, row.frame)
		if got := r.g.Allowed(); got != row.want {
			t.Errorf("%+v, not %+v", got, row.want)
		}
		if n := r.g.Links(); n != 8 {
			t.Errorf("%d links in a session, not 8", n)
		}
	}
}

func FuzzGuard(f *testing.F) {
	f.Add(frameOf(3, frame.Disposition, true, uint32(3), uint32(9), true, state(frame.Accepted)))
	f.Add(frameOf(3, frame.Flow, uint32(0), uint32(9), uint32(0), uint32(9), uint32(0)))
	f.Add(frameOf(0, frame.Open, "x", "host", uint32(4096), uint16(0)))
	f.Fuzz(func(t *testing.T, frames []byte) {
		g := New(readOnly{Reader: bytes.NewReader(frames)})
		g.header = true
		g.channels[0] = &channel{sent: 10, outgoing: firstAllowance}
		g.incoming[3] = g.channels[0]
		passed, _ := io.ReadAll(g)
		if len(passed) > len(frames) {
			t.Errorf("%d bytes of %d passed", len(passed), len(frames))
		}
		new(sorter).orderProperties(frames, []string{"type", "id"})
	})
}

// readOnly is a connection that gives some bytes and then ends.
type readOnly struct {
	net.Conn
	*bytes.Reader
}

func (r readOnly) Read(p []byte) (int, error) { return r.Reader.Read(p) }
