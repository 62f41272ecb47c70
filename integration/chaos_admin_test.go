package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// clerk runs koji-relay as an administrator does, while everything fails. Commands run beside the schedule.
type clerk struct {
	c       *chaos
	running sync.WaitGroup

	mu    sync.Mutex     // guards the fields below
	ended map[string]int // commands by how they ended
}

// commandLimit is more than any command takes that gets an answer from its relay. One that is frozen, or
// waits for a database, may take longer; then the command is ended, as by an administrator.
const commandLimit = 15 * time.Second

func newClerk(c *chaos) *clerk { return &clerk{c: c, ended: make(map[string]int)} }

// command runs one command for relay i, and does not wait for it.
func (k *clerk) command(i int, args ...string) {
	k.running.Go(func() { k.run(i, args...) })
}

// run runs one command for relay i and gives what it printed. In such times it may fail; but then it says
// why, and it does not fall over.
func (k *clerk) run(i int, args ...string) (stdout []byte, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.c.binary, append(args, "--config", k.c.relays[i].conf)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if slices.Contains(args, "check") { // it tells on standard output what is wrong
		said.Write(out.Bytes())
	}
	how := args[0] + ": "
	switch text := said.String(); {
	case strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic:"):
		how += "fell over"
		k.c.Errorf("koji-relay %s:\n%s", strings.Join(args, " "), text)
	case err == nil:
		how, ok = how+"done", true
	case ctx.Err() != nil:
		how += "no answer in 15 s"
	case args[0] == "status" && errors.As(err, new(*exec.ExitError)):
		how, ok = how+"done", true // its exit code is part of the answer
	case strings.TrimSpace(text) == "":
		how += "failed, silently"
		k.c.Errorf("koji-relay %s: %v, and it says nothing", strings.Join(args, " "), err)
	default:
		how += "failed, with a reason"
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended[how]++
	return out.Bytes(), ok
}

// account is how the commands ended.
func (k *clerk) account() string {
	k.running.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	var lines []string
	for _, how := range slices.Sorted(maps.Keys(k.ended)) {
		lines = append(lines, fmt.Sprintf("%s %d", how, k.ended[how]))
	}
	return strings.Join(lines, ", ")
}

func pause(c *chaos, s step)  { c.clerk.command(s.draw(2), "pause") }
func resume(c *chaos, s step) { c.clerk.command(s.draw(2), "resume") }

// looks are commands that change nothing but when a message is tried again.
var looks = [][]string{
	{"status"}, {"status", "--json"}, {"queue", "status"}, {"queue", "list"}, {"check", "--connect"},
	{"queue", "retry", "--all"}, {"queue", "retry", "--all", "--dry-run"},
	{"queue", "drop", "--all", "--dry-run"},
	{"queue", "drop", "--address", "build.tag", "--older-than", "0s", "--dry-run"},
	{"dead", "list"}, {"dead", "retry", "--all"}, {"dead", "drop", "--all", "--dry-run"},
	{"history", "--limit", "20"}, {"history", "--fate", "accepted", "--since", "1m", "--limit", "20"},
	{"history", "--fate", "queued", "--json", "--limit", "20"}, {"history", "--build", "pkg-1", "--limit", "20"},
	{"outbox", "readers"}, {"replay", "list"}, {"replay", "--since", "1m", "--dry-run"},
}

func look(c *chaos, s step) { c.clerk.command(s.draw(2), looks[s.draw(len(looks))]...) }

// replayedTopic is the topic of what is replayed. A replay would hide a loss, so that half of the messages
// has none.
const replayedTopic = "build.untag"

// replay sends some seconds of the history again: by the queue, to a broker of its own, or from a file. Some
// replays are cancelled.
func replay(c *chaos, s step) {
	relay, rate := s.draw(2), fmt.Sprint(50+s.draw(200))
	since := fmt.Sprintf("%ds", 3+s.draw(15))
	conditions := []string{"--address", replayedTopic, "--since", since}
	start := []string{"replay", "--yes", "--background", "--rate", rate}
	switch s.draw(5) {
	case 0: // to one broker, by its disturbed way
		url := "amqp://" + user + ":" + password + "@" + c.ways[s.draw(3)].Listen
		c.clerk.command(relay, slices.Concat(start, conditions, []string{"--url", url})...)
	case 1: // from a file
		c.clerk.running.Go(func() {
			lines, ok := c.clerk.run(relay, slices.Concat([]string{"history", "--json"}, conditions)...)
			if !ok || len(lines) == 0 {
				return
			}
			file := filepath.Join(c.relays[relay].dir, fmt.Sprintf("replay-%d.jsonl", s.dice))
			if err := os.WriteFile(file, lines, 0o600); err != nil {
				c.Errorf("write what is replayed: %v", err)
				return
			}
			c.clerk.run(relay, append(start, "--from", file)...)
		})
	case 2: // and cancelled by the other relay's administrator
		c.clerk.running.Go(func() {
			out, ok := c.clerk.run(relay, slices.Concat(start, conditions, []string{"--json"})...)
			var begun struct {
				ID int `json:"id"`
			}
			if ok && json.Unmarshal(out, &begun) == nil && begun.ID > 0 {
				c.clerk.run(1-relay, "replay", "cancel", fmt.Sprint(begun.ID))
			}
		})
	default:
		c.clerk.command(relay, slices.Concat(start, conditions)...)
	}
}

// replaysStand is how long no replay may go on. What a killed relay had is another one's long before.
const replaysStand = 2 * time.Minute

// awaitReplays waits until each replay has ended, and counts what they sent. How long that takes grows with
// the run, since each keeps to its rate; so they are given as long again as the run, and must go on.
func (c *chaos) awaitReplays() {
	c.clerk.running.Wait() // they may begin some
	var last progress
	since := time.Now()
	eventually(c, c.length+replaysStand, "all replays have ended", func() error {
		out, ok := c.clerk.run(0, "replay", "list", "--json")
		p, err := progressOf(out)
		if !ok || err != nil {
			return fmt.Errorf("replay list: %s, %v", out, err)
		}
		if p.ended != last.ended || p.sent != last.sent {
			last, since = p, time.Now()
		}
		c.replays, c.replayed = p.ended, p.sent
		if p.running != "" && time.Since(since) > replaysStand {
			c.Fatalf("no replay goes on, for %v: %s", replaysStand, p.running)
		}
		if p.running != "" {
			return errors.New(p.running)
		}
		return nil
	})
	c.Logf("%d replays sent %d messages again; commands: %s", c.replays, c.replayed, c.clerk.account())
}

// progress is how far all replays are together.
type progress struct {
	ended, sent int
	running     string // those that go on, in words; "" without one
}

// progressOf reads what `replay list --json` prints.
func progressOf(list []byte) (p progress, err error) {
	for line := range bytes.Lines(list) {
		var r struct {
			ID    int    `json:"id"`
			State string `json:"state"`
			Done  int    `json:"done"`
			Error string `json:"error"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			return p, fmt.Errorf("%q: %w", line, err)
		}
		p.sent += r.Done
		if r.State == "running" {
			p.running += fmt.Sprintf("replay %d has sent %d messages and goes on: %s\n", r.ID, r.Done, r.Error)
		} else {
			p.ended++
		}
	}
	return p, nil
}
