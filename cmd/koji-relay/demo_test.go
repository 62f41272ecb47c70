package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/config"
	"koji-relay/internal/devbroker"
)

// TestMain lets the test binary be a process that a test starts: koji-relay where it is called by that name, else a
// subscriber that shares no code with `koji-relay tail`.
func TestMain(m *testing.M) {
	const child = "KOJI_RELAY_TEST_CHILD"
	switch {
	case os.Getenv(child) == "":
		os.Setenv(child, "1") // for the children
		os.Exit(m.Run())
	case filepath.Base(os.Args[0]) == "koji-relay":
		main()
	default:
		subscribeIndependently(os.Args[len(os.Args)-1])
	}
}

// subscribeIndependently reports the id of every message on every broker of the configuration file, until it is
// killed.
func subscribeIndependently(path string) {
	cfg, err := config.Load(path)
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	report := json.NewEncoder(os.Stdout)
	for _, u := range cfg.Broker.URLs {
		go func() {
			for range time.Tick(100 * time.Millisecond) { // an attempt to connect each time
				receiveAll(u.Reveal(), func(m *amqp.Message) {
					mu.Lock()
					defer mu.Unlock()
					report.Encode(map[string]any{"message_id": m.Properties.MessageID})
				})
			}
		}()
	}
	select {}
}

func receiveAll(url string, report func(*amqp.Message)) {
	ctx := context.Background()
	c, err := amqp.Dial(ctx, url, nil)
	if err != nil {
		return
	}
	defer c.Close()
	s, err := c.NewSession(ctx, nil)
	if err != nil {
		return
	}
	r, err := s.NewReceiver(ctx, "topic://koji.#", &amqp.ReceiverOptions{Credit: 100})
	for err == nil {
		var m *amqp.Message
		if m, err = r.Receive(ctx, nil); err == nil {
			report(m)
			err = r.AcceptMessage(ctx, m)
		}
	}
}

func TestDemoCommitsAreTheGoldenOnes(t *testing.T) {
	t.Parallel()
	z, err := gzip.NewReader(bytes.NewReader(demoCommits))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../testdata/golden/commits.extra0.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("run: gzip -9nc testdata/golden/commits.extra0.jsonl > cmd/koji-relay/demo_commits.jsonl.gz")
	}
}

// playDemo runs the demo in a hurry. The subscriber is the independent one or, with tail, koji-relay.
func playDemo(t *testing.T, tail bool, plant func([2]*devbroker.Broker)) (string, error) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	program, err := os.Executable() // see TestMain
	if err != nil {
		t.Fatal(err)
	}
	if tail {
		link := filepath.Join(t.TempDir(), "koji-relay")
		if err := os.Symlink(program, link); err != nil {
			t.Fatal(err)
		}
		program = link
	}
	quiet := 4 * time.Second
	if tail {
		quiet = 15 * time.Second // it may leave ten seconds between two attempts to connect
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	err = runDemo(ctx, &out, demoOptions{pause: 5 * time.Millisecond, quiet: quiet, program: program, plant: plant})
	if t.Failed() || testing.Verbose() {
		t.Log(out.String())
	}
	return out.String(), err
}

func TestDemoLosesNothing(t *testing.T) {
	t.Parallel()
	out, err := playDemo(t, true, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`broker 1 is killed`, `broker 2 is killed`, `handed over +\d+ messages in \d+ commits`, `lost +0\n`,
		`hand-over +\d+\.\d ms p50, +\d+\.\d ms p99`, `Nothing was lost\.\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colour without a terminal")
	}
	if regexp.MustCompile(`://[^/\s]*@`).MatchString(out) {
		t.Error("a password is shown")
	}
	_, after, _ := strings.Cut(out, "its log is ")
	log, _, _ := strings.Cut(after, "\n")
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", log, err)
	}
}

// A broker accepts one message and throws it away: only the account can notice.
func TestDemoFindsAPlantedLoss(t *testing.T) {
	t.Parallel()
	out, err := playDemo(t, false, func(brokers [2]*devbroker.Broker) {
		brokers[1].Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Lost: true}, Skip: 20, Times: 1})
	})
	if !errors.Is(err, errReported) {
		t.Errorf("ended with %v", err)
	}
	if !regexp.MustCompile(`lost +1\n +[0-9a-f]{8}-[0-9a-f-]{27}\n`).MatchString(out) || !strings.Contains(out, "Messages were lost.") {
		t.Errorf("the account:\n%s", out)
	}
	if _, dir, found := strings.Cut(out, "The logs are kept in "); found {
		os.RemoveAll(strings.TrimSpace(dir))
	} else {
		t.Error("no word of the logs")
	}
}

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
