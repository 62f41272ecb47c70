package demo

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"koji-relay/callbacks"
	"koji-relay/internal/inspect"
)

// packedCommits are commits of a real hub, as JSON Lines: testdata/golden/commits.extra0.jsonl, compressed.
//
//go:embed commits.jsonl.gz
var packedCommits []byte

// handOver is one commit in the form of the hub API.
type handOver struct {
	Commit string          `json:"commit"`
	Events json.RawMessage `json:"events"`
}

// receiptAnswer is what the hub API answers; which fields are set depends on the status.
type receiptAnswer struct {
	Sent, Queued, Skipped, Dead int
	Code, Error                 string
	NotTaken                    []int `json:"not_taken"`
}

// standInHub hands over commits as a hub worker's plugin does: one request on a new connection to the Unix
// socket, and no more than two seconds of patience.
type standInHub struct {
	client  http.Client
	rules   *callbacks.Rules
	commits []handOver
	account *account
	next    int
}

func newStandInHub(socket string, account *account) (*standInHub, error) {
	commits, err := readCommits()
	if err != nil {
		return nil, err
	}
	rules, err := callbacks.New(callbacks.Options{Events: []string{"*"}})
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &standInHub{
		client: http.Client{
			Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
			Timeout:   2 * time.Second, // the plugin's
		},
		rules: rules, commits: commits, account: account,
	}, nil
}

func readCommits() ([]handOver, error) {
	z, err := gzip.NewReader(bytes.NewReader(packedCommits))
	if err != nil {
		return nil, fmt.Errorf("unpack the demo's commits: %w", err)
	}
	var all []handOver
	for lines := json.NewDecoder(z); ; {
		var h handOver
		err := lines.Decode(&h)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the demo's commits: %w", err)
		}
		all = append(all, h)
	}
}

// handOver hands over the next commit. When the list is through it begins again, with new commit ids.
func (h *standInHub) handOver(ctx context.Context) error {
	c := h.commits[h.next%len(h.commits)]
	if round := h.next / len(h.commits); round > 0 {
		id, err := callbacks.MessageID(c.Commit, 1_000_000+round) // a new UUID, the same in each run
		if err != nil {
			return err
		}
		c.Commit = id
	}
	h.next++
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode commit %s: %w", c.Commit, err)
	}
	expected, err := h.expected(body)
	if err != nil {
		return err
	}
	answer, took, err := h.insist(ctx, body)
	if err != nil {
		return fmt.Errorf("hand over commit %s: %w", c.Commit, err)
	}
	if answer.Sent+answer.Queued != len(expected) {
		return fmt.Errorf("commit %s makes %s, and the relay answered that %d are sent and %d queued",
			c.Commit, inspect.Count(len(expected), "message"), answer.Sent, answer.Queued)
	}
	h.account.handedOver(expected, took)
	return nil
}

// insist posts until the answer is 200: what the hub's outbox is for. The time is that of the last try.
func (h *standInHub) insist(ctx context.Context, body []byte) (receiptAnswer, time.Duration, error) {
	const tries = 5
	for try := 1; ; try++ {
		start := time.Now()
		answer, err := h.post(ctx, body)
		took := time.Since(start)
		if err == nil || try == tries || ctx.Err() != nil {
			return answer, took, err
		}
		h.account.notTaken()
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// expected gives the ids of the messages that the commit makes.
func (h *standInHub) expected(body []byte) ([]string, error) {
	commit, err := callbacks.DecodeCommit(body)
	if err != nil {
		return nil, fmt.Errorf("read the demo's own commit: %w", err)
	}
	var ids []string
	for _, m := range h.rules.Translate(commit).Messages {
		id, err := callbacks.MessageID(commit.ID, m.Event)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// post gives the answer of the hub API; anything but 200 is an error.
func (h *standInHub) post(ctx context.Context, body []byte) (receiptAnswer, error) {
	var answer receiptAnswer
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://hub/v1/commits", bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := h.client.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return answer, fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("answered %d %s: %s (events not taken: %v)",
			resp.StatusCode, answer.Code, answer.Error, answer.NotTaken)
	}
	return answer, nil
}
