package file

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"koji-relay/internal/inspect"
)

// reserve is a file beside the queue file that keeps room on the disk. bbolt writes the pages that it changes
// to another place, so that on a full disk nothing could be deleted any more, and what had been sent would be
// sent again. A delete that finds no room gives the reserve up; puts are refused from then on, until as many
// bytes are free on the disk or within the queue file.
//
// It also decides whether puts are taken at all, so that what the relay says of its store holds for each put:
// none is, where a put or a probe found no room, until probeRoom is free.
type reserve struct {
	path string
	size int
	db   *bbolt.DB
	page int // bytes of a page of db; its Info may not be asked while db grows

	mu   sync.Mutex // guards the fields below
	held bool
	next time.Time // when it may be tried again to make it
	err  error     // why it could not be made

	short  error     // why the disk had no room at the last look; nil when it had
	looked time.Time // the last look
}

// reserveSize is what a delete of a thousand messages from a queue of a million needs: a page for nearly each
// of them.
const reserveSize = 8 << 20

// available reports nil when a put may take room: the reserve is there, or the queue file has as much to
// give.
func (r *reserve) available() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.short != nil && time.Since(r.looked) >= time.Second {
		r.look()
	}
	inside := r.db.Stats().FreePageN * r.page
	if r.short != nil && inside < r.size+probeRoom {
		return fmt.Errorf("%w: make room on the disk", r.short)
	}
	if now := time.Now(); !r.held && !now.Before(r.next) {
		r.next = now.Add(time.Second)
		r.err = r.fill()
		r.held = r.err == nil
	}
	if r.held || inside >= r.size {
		return nil
	}
	return fmt.Errorf("%w; %s is kept for draining: make room on the disk", r.err, inspect.Size(int64(r.size)))
}

// probe is available after a look at the disk.
func (r *reserve) probe() error {
	r.mu.Lock()
	r.look()
	r.mu.Unlock()
	return r.available()
}

// look sees whether the disk has room. r.mu is held.
func (r *reserve) look() {
	r.short, r.looked = roomBeside(r.db.Path()), time.Now()
}

// refused notes that a put found no room.
func (r *reserve) refused(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.short, r.looked = err, time.Now()
}

// fill makes the file, unless it is there. Whatever else stands in its place is left alone: a symbolic link
// could lead to any file of the relay's user.
func (r *reserve) fill() error {
	info, err := os.Lstat(r.path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("make %s: there is something else of that name: remove it", r.path)
	case err == nil && info.Size() >= int64(r.size):
		return nil
	case err == nil: // the relay was stopped while it was made
		if err := os.Remove(r.path); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Repeat([]byte("reserve\n"), r.size/8))
	if err = errors.Join(err, f.Close()); err != nil {
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

// probeRoom is what must be free on the disk beside the reserve.
const probeRoom = 2 << 20

// roomBeside reports nil when the disk of path has room. It takes the room, writing nothing, and gives it
// back.
func roomBeside(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".probe-*")
	if err != nil {
		return err
	}
	removed := os.Remove(f.Name()) // at once: a kill would leave it behind
	err = os.NewSyscallError("fallocate", syscall.Fallocate(int(f.Fd()), 0, 0, probeRoom))
	if errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil // not every file system can say
	}
	if err != nil {
		err = fmt.Errorf("take %s on the disk: %w", inspect.Size(probeRoom), err)
	}
	return errors.Join(err, f.Close(), removed)
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
