package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"koji-relay/internal/inspect"
)

type tailRequest struct {
	Patterns []string `json:"patterns,omitempty"`
}

// tailLine is one line of a tail: a message, or a notice.
type tailLine struct {
	Arrival *inspect.Arrival `json:"arrival,omitempty"`
	Notice  string           `json:"notice,omitempty"`
}

// handleTail adds the stream of what arrives on the bus. It ends with the client, or with the server.
func (s *Server) handleTail(mux *http.ServeMux, c Control) {
	mux.HandleFunc("POST /v1/tail", func(w http.ResponseWriter, r *http.Request) {
		in, err := decode[tailRequest](r)
		if err != nil {
			refuse(w, asError(err))
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.stopping, cancel)()
		s.stream(w, func(out *bufio.Writer) error {
			lines := json.NewEncoder(out)
			push := func(line tailLine) error {
				return errors.Join(lines.Encode(line), out.Flush(), http.NewResponseController(w).Flush())
			}
			return c.Tail(ctx, in.Patterns, func(a inspect.Arrival) error { return push(tailLine{Arrival: &a}) },
				func(text string) error { return push(tailLine{Notice: text}) })
		})
	})
}

// Tail subscribes through the relay, and calls each and notice, until ctx ends, which is no error, or one of
// them returns an error, which is returned.
func (c *Client) Tail(ctx context.Context, patterns []string, each func(inspect.Arrival) error,
	notice func(string) error) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/tail", tailRequest{patterns})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	dec.UseNumber() // integers of 63 bits stay what they are
	for {
		var line tailLine
		switch err := dec.Decode(&line); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return errors.Join(c.result(resp), errors.New("the relay has stopped"))
		case err != nil:
			return fmt.Errorf("read what arrives at the relay: %w", err)
		}
		if line.Arrival != nil {
			err = each(*line.Arrival)
		} else {
			err = notice(line.Notice)
		}
		if err != nil {
			return err
		}
	}
}

// Check asks for a report of the configuration, and decodes it into report.
func (c *Client) Check(ctx context.Context, connecting bool, report any) error {
	text, err := call[json.RawMessage](ctx, c, http.MethodPost, "/v1/check", checkRequest{connecting})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, report); err != nil {
		return fmt.Errorf("read the relay's report: %w", err)
	}
	return nil
}

// SendTest sends a test message through the relay.
func (c *Client) SendTest(ctx context.Context) (inspect.TestSent, error) {
	return call[inspect.TestSent](ctx, c, http.MethodPost, "/v1/send-test", nil)
}
