package retry

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestCauseIsNewsOnlyOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, causeIsNewsOnlyOnce)
}

func causeIsNewsOnlyOnce(t *testing.T) {
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
		{"no route to host", false}, // it comes back: one trouble, whose cause alternates
		{"read tcp 10.0.0.9:43210->10.0.0.2:5432: i/o timeout", false},
	} {
		time.Sleep(time.Second)
		if got := trouble.Failed(errors.New(row.cause)); got != row.news {
			t.Errorf("%d: %q is news: %v, want %v", i, row.cause, got, row.news)
		}
	}
	if failures, after := trouble.Over(); failures != 7 || after != 6*time.Second {
		t.Errorf("over after %d failures and %v, want 7 and 6s", failures, after)
	}
	if failures, after := trouble.Over(); failures != 0 || after != 0 {
		t.Errorf("the second success is news: %d failures, %v", failures, after)
	}
	if !trouble.Failed(errors.New("no route to host")) {
		t.Error("a cause from before a success is news again")
	}
	trouble.Forget()
	if !trouble.FailedBy("no route to host") || trouble.FailedBy("no route to host") {
		t.Error("a cause that was forgotten is news once")
	}
	news := 0
	for i := range 1000 {
		if trouble.FailedBy("attempt " + strconv.Itoa(i)) {
			news++
		}
	}
	if news > maxCauses {
		t.Errorf("%d of 1000 causes of one trouble are news", news)
	}
}

func TestDelayDoublesToItsLimitAndIsNeverShorter(t *testing.T) {
	t.Parallel()
	for limit, delays := range map[time.Duration][]time.Duration{
		0:                {200, 400, 800, 1600, 3200, 5000, 5000},
		10 * time.Second: {200, 400, 800, 1600, 3200, 6400, 10000, 10000},
	} {
		trouble := Trouble{Limit: limit}
		for range 2 {
			for _, want := range delays {
				trouble.Failed(errors.New("down"))
				least := want * time.Millisecond
				if got := trouble.Delay(); got < least || got > least+least/4 {
					t.Errorf("limit %v: delay %v, want %v to a quarter more", limit, got, least)
				}
			}
			trouble.Over()
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
