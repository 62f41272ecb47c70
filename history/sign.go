package history

import (
	"encoding/json"
	"os"
	"time"

	"koji-relay/internal/inspect"
)

// sign is the path of a file on this host that says what the store may not have heard. Its time of
// modification is the last sign of life, and its text the gaps that the store does not have. An orderly end
// removes it. It is of help only: what cannot be written or read is left out. The empty sign does nothing.
type sign string

// read gives what the process before this one left; the zero time where there is nothing.
func (s sign) read() (seen time.Time, gaps []inspect.Gap) {
	if s == "" {
		return seen, nil
	}
	info, err := os.Stat(string(s))
	if err != nil {
		return seen, nil
	}
	if text, err := os.ReadFile(string(s)); err == nil {
		_ = json.Unmarshal(text, &gaps) // empty where nothing was left
	}
	return info.ModTime(), gaps
}

// renew gives the sign of life at once and then every so often, until stop is called. What was left stays.
func (s sign) renew(every time.Duration) (stop func()) {
	if s == "" {
		return func() {}
	}
	if f, err := os.OpenFile(string(s), os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			now := time.Now()
			_ = os.Chtimes(string(s), now, now)
			select {
			case <-ticker.C:
			case <-ended:
				return
			}
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}

// leave replaces what the next start will find.
func (s sign) leave(gaps []inspect.Gap) {
	if s == "" {
		return
	}
	var text []byte
	if len(gaps) > 0 {
		text, _ = json.Marshal(gaps) // times and words
	}
	_ = os.WriteFile(string(s), text, 0o600)
}

func (s sign) remove() {
	if s != "" {
		_ = os.Remove(string(s))
	}
}
