package demo

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/config"
	"koji-relay/internal/daemon"
	"koji-relay/internal/devbroker"
)

// TestMain lets the test binary be the demo's subscriber, one that shares no code with `koji-relay tail`.
func TestMain(m *testing.M) {
	const child = "KOJI_RELAY_TEST_CHILD"
	if os.Getenv(child) != "" {
		subscribeIndependently(os.Args[len(os.Args)-1])
	}
	os.Setenv(child, "1") // for the children
	os.Exit(m.Run())
}

// subscribeIndependently reports the id of every message on every broker of the configuration file, until it
// is killed.
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

func TestCommitsAreTheGoldenOnes(t *testing.T) {
	t.Parallel()
	z, err := gzip.NewReader(bytes.NewReader(packedCommits))
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
		t.Error("run: gzip -9nc testdata/golden/commits.extra0.jsonl > internal/demo/commits.jsonl.gz")
	}
}

// serve runs the relay as cmd/koji-relay does.
func serve(ctx context.Context, path string, out io.Writer) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	load := func() (*config.Config, error) { return config.Load(path) }
	log := slog.New(slog.NewTextHandler(out, nil))
	return daemon.New(daemon.Options{Config: cfg, Load: load, Logger: log, Level: new(slog.LevelVar)}).Run(ctx,
		context.Background())
}

// A broker accepts one message and throws it away: only the account can notice.
func TestAPlantedLossIsFound(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	program, err := os.Executable() // see TestMain
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var screen bytes.Buffer
	err = Run(ctx, &screen, Options{
		Pause: 5 * time.Millisecond, quiet: 4 * time.Second, Program: program, Serve: serve,
		plant: func(brokers [2]*devbroker.Broker) {
			brokers[1].Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Lost: true}, Skip: 20, Times: 1})
		},
	})
	out := screen.String()
	if !errors.Is(err, ErrReported) {
		t.Errorf("ended with %v", err)
	}
	if !regexp.MustCompile(`lost +1\n +[0-9a-f]{8}-[0-9a-f-]{27}\n`).MatchString(out) ||
		!strings.Contains(out, "Messages were lost.") {
		t.Errorf("the account:\n%s", out)
	}
	if _, dir, found := strings.Cut(out, "The logs are kept in "); found {
		os.RemoveAll(strings.TrimSpace(dir))
	} else {
		t.Error("no word of the logs")
	}
}
