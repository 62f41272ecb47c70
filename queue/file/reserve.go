package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// reserve is a file beside the queue file that keeps room on the disk. bbolt writes the pages that it changes to another
// place, so that on a full disk nothing could be deleted any more, and what had been sent would be sent again. A delete
// that finds no room gives the reserve up; puts are refused from then on, until as many bytes are free on the disk or
// within the queue file.
type reserve struct {
	path string
	size int
	db   *bbolt.DB

	mu   sync.Mutex // guards the fields below
	held bool
	next time.Time // when it may be tried again to make it
	err  error     // why it could not be made
}

// reserveSize is what a delete of a thousand messages from a queue of a million needs: a page for nearly each of them.
const reserveSize = 8 << 20

// available reports nil when a put may take room: the reserve is there, or the queue file has as much to give.
func (r *reserve) available() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); !r.held && !now.Before(r.next) {
		r.next = now.Add(time.Second)
		r.err = r.fill()
		r.held = r.err == nil
	}
	if r.held || r.db.Stats().FreePageN*r.db.Info().PageSize >= r.size {
		return nil
	}
	return fmt.Errorf("%w; %d bytes are kept for draining: make room on the disk", r.err, r.size)
}

// fill makes the file, unless it is there.
func (r *reserve) fill() error {
	if info, err := os.Stat(r.path); err == nil && info.Size() >= int64(r.size) {
		return nil
	}
	err := os.WriteFile(r.path, bytes.Repeat([]byte("reserve\n"), r.size/8), 0o600)
	if err != nil {
		err = errors.Join(err, os.Remove(r.path))
	}
	return err
}

// release gives the room to the caller; false when there is none to give.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.held {
		return false
	}
	r.held, r.next = false, time.Now().Add(time.Second)
	r.err = syscall.ENOSPC
	return os.Remove(r.path) == nil
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
