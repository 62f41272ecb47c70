// Command workers hands over commits as the workers of a hub do, and measures what that costs them: each
// commit over a connection of its own, with a time limit as the hub plugin's. A test puts it where a hub
// would be, such as in a container, as the web server's user. It promises to count every commit that it
// began; it never tries one twice. With -count it ends with 1 unless all were taken.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
)

// report is printed at the end as one JSON object.
type report struct {
	Taken     int            `json:"taken"`     // answered 200
	Fallbacks map[string]int `json:"fallbacks"` // all others, by what happened
	SlowestMS float64        `json:"slowest_ms"`
}

func main() {
	socket := flag.String("socket", "/run/koji-relay/hub.sock", "the relay's socket")
	commit := flag.String("commit", "", "`JSON` of a commit; COMMIT in it is replaced by a new id each time")
	count := flag.Int("count", 0, "how many commits to hand over in all; 0 = until standard input ends")
	number := flag.Int("workers", 1, "how many at the same time")
	pause := flag.Duration("pause", 5*time.Millisecond, "between two commits of a worker")
	timeout := flag.Duration("timeout", 2*time.Second, "for one commit")
	flag.Parse()

	ctx, stop := context.WithCancel(context.Background())
	if *count == 0 {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", *socket)
		},
	}}
	total := report{Fallbacks: make(map[string]int)}
	var mu sync.Mutex // guards total and begun
	begun := 0
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil || *count > 0 && begun == *count {
			return false
		}
		begun++
		return true
	}
	var all sync.WaitGroup
	for range *number {
		all.Go(func() {
			for next() {
				began := time.Now()
				failure := post(client, bytes.ReplaceAll([]byte(*commit), []byte("COMMIT"), []byte(uuid.NewString())))
				took := time.Since(began)
				mu.Lock()
				total.SlowestMS = max(total.SlowestMS, float64(took.Microseconds())/1000)
				if failure == "" {
					total.Taken++
				} else {
					total.Fallbacks[failure]++
				}
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(*pause):
				}
			}
		})
	}
	all.Wait()
	json.NewEncoder(os.Stdout).Encode(total)
	if *count > 0 && total.Taken < *count {
		os.Exit(1)
	}
}

// post says why the commit was not taken; "" if it was.
func post(client *http.Client, body []byte) string {
	answer, err := client.Post("http://koji-relay/v1/commits", "application/json", bytes.NewReader(body))
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %s", answer.StatusCode, text)
	}
	return ""
}
