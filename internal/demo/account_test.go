package demo

import (
	"strings"
	"testing"
	"time"
)

func TestAccountComparesById(t *testing.T) {
	t.Parallel()
	a := newAccount()
	a.handedOver([]string{"1", "2", "3"}, 3*time.Millisecond)
	a.handedOver([]string{"4"}, time.Millisecond)
	for _, id := range []string{"1", "3", "3", "3", "stranger"} {
		a.arrived(id)
	}
	b := a.balance()
	if b.commits != 2 || b.handedOver != 4 || b.received != 2 || b.duplicates != 2 || b.strangers != 1 ||
		strings.Join(b.lost, " ") != "2 4" {
		t.Errorf("%+v", b)
	}
	go func() {
		a.arrived("2")
		a.arrived("4")
	}()
	if err := a.waitFor(t.Context(), none, time.Minute, func() {}); err != nil || len(a.balance().lost) != 0 {
		t.Error(err, a.balance().lost)
	}
}

func TestPercentileIsTheValueNotExceeded(t *testing.T) {
	t.Parallel()
	var ds []time.Duration
	for i := 100; i > 0; i-- {
		ds = append(ds, time.Duration(i))
	}
	for percent, want := range map[int]time.Duration{1: 1, 50: 50, 99: 99, 100: 100} {
		if got := percentile(ds, percent); got != want {
			t.Errorf("p%d: %d", percent, got)
		}
	}
	if percentile(nil, 50) != 0 || percentile(ds[:1], 1) != 100 {
		t.Error("of none or one")
	}
}
