package postgres

import "time"

// marks remembers how far a walk over ever growing positions had come some time ago. A row gets its position
// before its transaction commits, so that rows may appear behind a walk; walking again from where it was
// lateness ago finds them, without walking over everything that is gone. What appears later still is found by
// a full walk.
type marks[T any] struct {
	at   []mark[T] // oldest first; of those older than lateness only the newest is kept
	full time.Time // when the last full walk began
	cost time.Duration
}

type mark[T any] struct {
	when time.Time
	pos  T
}

const (
	lateness = 10 * time.Second
	// A full walk is made again after fullEvery, or later where walking is slow, so that it takes at most 2 % of
	// the time (an old snapshot, held open by another session, keeps deleted rows in the way).
	fullEvery = time.Minute
	fullShare = 50
)

// start gives the position at which a walk begins, and whether that is a full walk, from zero. Marks from
// before the time same are not believed: it is since when the server has not crashed or failed over for sure.
// It may have lost numbers that were drawn and seen before, and gives them to other rows then.
func (m *marks[T]) start(now, same time.Time, zero T) (from T, full bool) {
	from, known := m.known(now, same)
	if !known || now.Sub(m.full) >= max(fullEvery, fullShare*m.cost) {
		return zero, true
	}
	return from, false
}

// known gives the position at which a walk begins between two full ones, and whether there is one.
func (m *marks[T]) known(now, same time.Time) (from T, known bool) {
	for len(m.at) > 1 && now.Sub(m.at[1].when) >= lateness {
		m.at = m.at[1:]
	}
	if len(m.at) == 0 || m.full.IsZero() {
		return from, false
	}
	return m.at[0].pos, now.Sub(m.at[0].when) >= lateness && !m.at[0].when.Before(same)
}

// back lets walks begin at pos until lateness has passed.
func (m *marks[T]) back(now time.Time, pos T) { m.at = []mark[T]{{now.Add(-lateness), pos}} }

// reached notes that at the time now, everything up to pos had been seen.
func (m *marks[T]) reached(now time.Time, pos T) {
	// One mark each second is fine enough, and keeps the slice short.
	if n := len(m.at); n > 0 && now.Sub(m.at[n-1].when) < time.Second {
		return
	}
	m.at = append(m.at, mark[T]{now, pos})
}

// walked notes a full walk that began at the time began and took cost.
func (m *marks[T]) walked(began time.Time, cost time.Duration) {
	m.full, m.cost = began, cost
}
