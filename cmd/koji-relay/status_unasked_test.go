package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Exit code 1 of status says that commits are taken. Where nobody says so, as from a relay that hangs or one
// of another version, it is 2.
func TestStatusOfARelayThatDoesNotSayIsTwo(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"refuses":    func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) },
		"is another": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"babbles":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"hangs":      func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "kr") // a socket's path is short
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			l, err := net.Listen("unix", filepath.Join(dir, "c.sock"))
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: answer, ReadHeaderTimeout: time.Minute}
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { server.Close() })
			conf := filepath.Join(dir, "protonmsg.conf")
			text := "[broker]\nurls = amqp://127.0.0.1:1\ntopic_prefix = /topic/koji\n[relay]\ncontrol = " +
				filepath.Join(dir, "c.sock") + "\n"
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if name == "hangs" {
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond) // an impatient administrator
			}
			defer cancel()
			for _, args := range [][]string{{"status"}, {"status", "--json"}} {
				var out, errs bytes.Buffer
				code := run(ctx, append(args, "--config", conf), strings.NewReader(""), &out, &errs)
				if name == "hangs" && !strings.Contains(errs.String(), "does not answer: it hangs") {
					t.Errorf("%v says %s", args, errs.String())
				}
				if code != statusNotReady || !strings.HasPrefix(errs.String(), "koji-relay: ") || out.Len() > 0 {
					t.Errorf("%v: exit code %d, %q, %q", args, code, errs.String(), out.String())
				}
			}
		})
	}
}
