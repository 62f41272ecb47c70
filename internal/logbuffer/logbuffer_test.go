package logbuffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// plain writes lines without times.
func plain(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
}

// gate is a reader of the log that can stop reading, or go away.
type gate struct {
	bytes.Buffer
	open   chan struct{} // closed while it reads
	broken bool
}

func (g *gate) Write(line []byte) (int, error) {
	<-g.open
	if g.broken {
		return 0, errors.New("broken pipe")
	}
	return g.Buffer.Write(line)
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

// run starts a Handler in front of g; the function that it returns ends it.
func run(t *testing.T, g *gate) (*Handler, func()) {
	t.Helper()
	h := New(plain(g))
	ctx, cancel := context.WithCancel(t.Context())
	go h.Run(ctx)
	return h, func() {
		cancel()
		synctest.Wait()
	}
}

func TestRecordsComeOutAsTheyWentIn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		h, end := run(t, g)
		log := slog.New(h)
		log.Info("one", "error", errors.New("broken"), "took", time.Second, "n", 3)
		log.With("commit", "c").WithGroup("g").Warn("two", "x", "y")
		end()
		want := "level=INFO msg=one error=broken took=1s n=3\nlevel=WARN msg=two commit=c g.x=y\n"
		if g.String() != want || h.Lost() != 0 {
			t.Errorf("written %q, %d lost; want %q", g.String(), h.Lost(), want)
		}
	})
}

func TestReaderThatStopsReadingHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.open = make(chan struct{})
		h, end := run(t, g)
		log := slog.New(h)
		began := time.Now()
		for i := range 3 * room {
			log.Info("line", "n", i)
		}
		if took := time.Since(began); took > moment {
			t.Errorf("who logs waited for %v, want %v at most, once", took, moment)
		}
		lost := h.Lost()
		if lost < 2*room-2 || lost > 2*room {
			t.Errorf("%d lines are lost, want those that find no room", lost)
		}
		close(g.open)
		synctest.Wait()
		log.Info("last")
		end()
		if want := fmt.Sprintf("msg=\"log lines were lost: nobody took them\" lines=%d\n",
			lost); strings.Count(g.String(), want) != 1 {
			t.Errorf("not told once of what was lost: %s", want)
		}
		if !strings.HasSuffix(g.String(), "msg=last\n") || h.Lost() != lost {
			t.Errorf("%d lines are lost after the reader is back, want %d", h.Lost(), lost)
		}
	})
}

func TestReaderThatIsGoneIsCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		g.broken = true
		h, end := run(t, g)
		log := slog.New(h)
		for range 5 {
			log.Info("line")
		}
		synctest.Wait()
		if h.Lost() != 5 {
			t.Errorf("%d lines are lost, want 5", h.Lost())
		}
		g.broken = false
		log.Info("again")
		end()
		want := "level=INFO msg=again\nlevel=WARN msg=\"log lines were lost: nobody took them\" lines=5\n"
		if g.String() != want {
			t.Errorf("written %q, want %q", g.String(), want)
		}
	})
}

func TestValuesAreThoseOfTheCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		h := New(plain(g))
		value := &changing{"before"}
		slog.New(h).Info("line", "value", value, "error", error(value))
		value.text = "after"
		ctx, cancel := context.WithCancel(t.Context())
		go h.Run(ctx)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if want := "level=INFO msg=line value=before error=before\n"; g.String() != want {
			t.Errorf("written %q, want %q", g.String(), want)
		}
	})
}

type changing struct{ text string }

func (c *changing) String() string { return c.text }
func (c *changing) Error() string  { return c.text }
