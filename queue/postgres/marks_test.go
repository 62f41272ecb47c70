package postgres

import (
	"testing"
	"time"
)

func TestMarksGiveAPositionThatIsLateEnough(t *testing.T) {
	t.Parallel()
	var m marks[int]
	began := time.Now()
	same := began
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	want := func(second, pos int, full bool) {
		t.Helper()
		if got, isFull := m.start(at(second), same, -1); got != pos || isFull != full {
			t.Errorf("after %d s a walk begins at %d (full: %v), want %d (%v)", second, got, isFull, pos, full)
		}
	}
	want(0, -1, true)
	m.walked(at(0), time.Second)
	for s := range 30 {
		m.reached(at(s), 100*s)
	}
	m.reached(at(29).Add(time.Millisecond), 9999) // too soon after the last one to be worth a mark
	want(5, -1, true)                             // nothing is known to be late enough
	want(12, 200, false)
	want(29, 1900, false)
	want(39, 2900, false)
	want(59, 2900, false)
	want(60, -1, true)
	m.walked(at(60), 10*time.Second)
	want(61, 2900, false)
	want(60+499, 2900, false) // a full walk that took 10 s is not made again for 500 s
	want(60+500, -1, true)
	m.walked(at(560), time.Second)
	same = at(561) // the server has crashed: what was seen before may be undone
	m.reached(at(562), 2500)
	want(571, -1, true)
	want(572, 2500, false)
}
