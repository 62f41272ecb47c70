package integration

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/pgtest"
)

// hub is one process of hub workers (chaos_worker.py): the real plugin, one way of delivery, one relay's
// socket.
type hub struct {
	number   int
	delivery string
	relay    int
	conf     string
	builds   []int // one for each worker

	process *exec.Cmd
	stdin   io.Closer
	ended   chan struct{} // closed when all that it said was read
}

// workerLine is what chaos_worker.py prints.
type workerLine struct {
	Commit string              `json:"commit"` // begun
	Build  int                 `json:"build"`
	Events [][]json.RawMessage `json:"events"` // number, callback, body, whether it counts

	Failed string `json:"failed"` // the same id: a way did not take it
	Way    string `json:"way"`

	Back string `json:"back"` // the same id: the relay answered 503 and took nothing of it

	End   string   `json:"end"` // the same id: what became of it
	State string   `json:"state"`
	Lost  []int    `json:"lost"`
	Ways  []string `json:"ways"`
	Said  []string `json:"said"`
	// Seconds: of the whole request; of it in callbacks; of these in the hub's database; in which the
	// worker's process stood still.
	Took     float64 `json:"took"`
	Spent    float64 `json:"plugin"`
	Database float64 `json:"database"`
	Stopped  float64 `json:"stopped"`
}

const (
	workersOfHub = 2
	hubPace      = 60 * time.Millisecond
	numbersEach  = 1_000_000 // of one build
)

// startHubs starts four processes: each delivery with each relay.
func (c *chaos) startHubs() {
	for i := range c.hubs {
		h := &hub{number: i, delivery: []string{"direct", "outbox"}[i%2], relay: i / 2}
		h.conf = filepath.Join(c.relays[h.relay].dir, "koji_relay-"+h.delivery+".conf")
		text := "[koji_relay]\ndelivery = " + h.delivery + "\nsocket = " + c.relays[h.relay].socket + "\n"
		if err := os.WriteFile(h.conf, []byte(text), 0o600); err != nil {
			c.Fatal(err)
		}
		for w := range workersOfHub {
			h.builds = append(h.builds, 1+i*workersOfHub+w)
		}
		c.hubs[i] = h
		h.start(c)
	}
	c.Cleanup(func() {
		for _, h := range c.hubs {
			h.kill()
		}
	})
}

// start starts the process, whose workers go on behind the last numbers that were begun.
func (h *hub) start(c *chaos) {
	type job struct {
		DSN     string   `json:"dsn"`
		Conf    string   `json:"conf"`
		Seed    uint64   `json:"seed"`
		Pace    float64  `json:"pace"`
		Workers [][2]int `json:"workers"`
	}
	// The hub's way to its database is not disturbed: what happens then is the hub's own affair.
	j := job{twoHosts(databasePort(c.primary), databasePort(c.standby)), h.conf, c.seed, hubPace.Seconds(), nil}
	for _, build := range h.builds {
		j.Workers = append(j.Workers, [2]int{build, c.account.next(build)})
	}
	text, err := json.Marshal(j)
	if err != nil {
		c.Fatal(err)
	}
	python := cmp.Or(os.Getenv("KOJI_RELAY_PYTHON"), "../.cache/venv/bin/python")
	cmd := exec.Command(python, "chaos_worker.py", string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if h.stdin, err = cmd.StdinPipe(); err != nil {
		c.Fatal(err)
	}
	h.process, h.ended = cmd, make(chan struct{})
	if err := startOnOwnThread(cmd, h.ended, func() { h.read(c, stdout) }); err != nil {
		c.Fatalf("start hub workers: %v", err)
	}
}

func (h *hub) read(c *chaos, r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return // what a killed process began to say was not before any COMMIT
		}
		var line workerLine
		if err := json.Unmarshal(text, &line); err != nil {
			c.Errorf("hub %d said %.200q: %v", h.number, text, err)
			continue
		}
		c.account.hear(h, line)
	}
}

func (h *hub) signal(sig syscall.Signal) { _ = h.process.Process.Signal(sig) }

func (h *hub) kill() {
	h.signal(syscall.SIGKILL)
	<-h.ended
}

// stop lets the workers finish what they have begun.
func (h *hub) stop(c *chaos) {
	h.stdin.Close()
	select {
	case <-h.ended:
	case <-time.After(40 * time.Second):
		c.Errorf("the workers of hub %d do not end", h.number)
		h.kill()
	}
}

func (h *hub) String() string { return "hub " + strconv.Itoa(h.number) + " (" + h.delivery + ")" }

// TestChaosHubsFindTheDatabaseAfterEachFailover: a hub that is not restarted knows the two addresses of its
// start, and one of them is the primary's after any number of failovers. Seed 36 has two, with no hub killed
// between them, and found that hubs had lost both.
func TestChaosHubsFindTheDatabaseAfterEachFailover(t *testing.T) {
	t.Parallel()
	c := &chaos{TB: t, primary: pgtest.StartCluster(t, "fsync = off")}
	pgtest.SQL(t, c.primary.ConnString("postgres"), "CREATE DATABASE "+chaosDatabase)
	c.standby = c.primary.Standby(t)
	c.synchronous(c.primary, true)
	hubs := twoHosts(databasePort(c.primary), databasePort(c.standby))
	for n := range 3 {
		failOver(c, step{})
		rebuildStandby(c, step{})
		db, err := pgx.Connect(t.Context(), hubs)
		if err != nil {
			t.Fatalf("a hub after failover %d: %v", n+1, err)
		}
		// The COMMIT waits for the standby.
		if _, err := db.Exec(t.Context(), fmt.Sprintf("CREATE TABLE failover_%d ()", n)); err != nil {
			t.Errorf("write after failover %d: %v", n+1, err)
		}
		db.Close(t.Context())
	}
}
