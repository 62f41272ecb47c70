package retry

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestCauseIsNewsOnlyOnce(t *testing.T) {
	t.Parallel()
	var trouble Trouble
	for i, row := range []struct {
		cause string
		news  bool
	}{
		{"no route to host", true},
		{"no route to host", false},
		{"read tcp 10.0.0.9:43210->10.0.0.2:5432: i/o timeout", true},
		{"read tcp 10.0.0.9:43212->10.0.0.2:5432: i/o timeout", false},
		{"read tcp 10.0.0.9:43214->10.0.0.3:5432: i/o timeout", true},
		{"no route to host", true},
	} {
		if got := trouble.Failed(errors.New(row.cause)); got != row.news {
			t.Errorf("%d: %q is news: %v, want %v", i, row.cause, got, row.news)
		}
	}
	if !trouble.Over() || trouble.Over() {
		t.Error("success is news once, after failures")
	}
	if !trouble.Failed(errors.New("no route to host")) {
		t.Error("a cause from before a success is news again")
	}
}

func TestDelayDoublesToItsLimitAndIsNeverShorter(t *testing.T) {
	t.Parallel()
	var trouble Trouble
	for _, want := range []time.Duration{200, 400, 800, 1600, 3200, 5000, 5000} {
		trouble.Failed(errors.New("down"))
		least := want * time.Millisecond
		if got := trouble.Delay(); got < least || got > least+least/4 {
			t.Errorf("delay %v, want %v to a quarter more", got, least)
		}
	}
}

func TestPauseEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		Pause(t.Context(), time.Hour)
		if took := time.Since(began); took != time.Hour {
			t.Errorf("paused for %v, want an hour", took)
		}
	})
}
