package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"koji-relay/internal/inspect"
)

// ErrNotRunning is in the error of every Client call when nothing answers on the control socket.
var ErrNotRunning = errors.New("koji-relay is not running")

// Client asks a running relay over its control socket. It is safe for concurrent use; calls block until the
// relay has answered or the context ends. What the relay refuses comes back as an *Error.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a Client for the control socket at a path; it connects with its first call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: dial,
		// One connection for each call: commands make one or two, and leave nothing behind.
		DisableKeepAlives: true,
	}}}
}

// statusTime is how long a relay may take to say how it is: it has looked before it is asked.
const statusTime = 10 * time.Second

// Status gives the state of this moment. It waits for 10 s at the most.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	return call[Status](ctx, c, http.MethodGet, "/status", nil)
}

// Reload makes the relay read its configuration again; the result says what came of it.
func (c *Client) Reload(ctx context.Context) (Reload, error) {
	return call[Reload](ctx, c, http.MethodPost, "/v1/reload", nil)
}

// SetLogLevel changes the log level until the next start or reload.
func (c *Client) SetLogLevel(ctx context.Context, level string) error {
	_, err := call[done](ctx, c, http.MethodPost, "/v1/log-level", levelRequest{level})
	return err
}

// Pause halts the drain, or all sending.
func (c *Client) Pause(ctx context.Context, what Pausable) error {
	_, err := call[done](ctx, c, http.MethodPost, "/v1/pause", pauseRequest{what})
	return err
}

// Resume ends a pause.
func (c *Client) Resume(ctx context.Context, what Pausable) error {
	_, err := call[done](ctx, c, http.MethodPost, "/v1/resume", pauseRequest{what})
	return err
}

// List calls each for every item, oldest first. Items that came before an error are good.
func (c *Client) List(ctx context.Context, box inspect.Box, opts inspect.ListOptions,
	each func(inspect.Item) error) error {
	resp, err := c.do(ctx, http.MethodPost, boxPath(box, "list"), opts)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var item inspect.Item
		switch err := dec.Decode(&item); {
		case errors.Is(err, io.EOF):
			return c.result(resp)
		case err != nil:
			return fmt.Errorf("read the relay's list: %w", err)
		}
		if err := each(item); err != nil {
			return err
		}
	}
}

// Show gives one item with props and body.
func (c *Client) Show(ctx context.Context, box inspect.Box, id string) (inspect.Item, error) {
	return call[inspect.Item](ctx, c, http.MethodGet, boxPath(box, url.PathEscape(id)), nil)
}

// Retry makes messages due now; dead letters return to the queue.
func (c *Client) Retry(ctx context.Context, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	return call[inspect.Changed](ctx, c, http.MethodPost, boxPath(box, "retry"), which)
}

// Drop deletes messages or dead letters.
func (c *Client) Drop(ctx context.Context, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	return call[inspect.Changed](ctx, c, http.MethodPost, boxPath(box, "drop"), which)
}

// Export copies queue and dead letters to w as JSON Lines. After an error w holds a part of them.
func (c *Client) Export(ctx context.Context, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/export", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("copy the export: %w", err)
	}
	return c.result(resp)
}

// Import stores the JSON Lines of an export. It is idempotent: after an error the same lines may be given
// again.
func (c *Client) Import(ctx context.Context, r io.Reader) (inspect.Imported, error) {
	return call[inspect.Imported](ctx, c, http.MethodPost, "/v1/import", r)
}

func boxPath(box inspect.Box, last string) string { return "/v1/" + string(box) + "/" + last }

// call makes a request whose answer is one JSON value.
func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, fmt.Errorf("read the relay's answer: %w", err)
	}
	return out, nil
}

// do makes a request. in is sent as it is where it is an io.Reader, else as JSON. The caller closes the body.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	body, ok := in.(io.Reader)
	if !ok && in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("write the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	refusal := &Error{}
	if json.NewDecoder(resp.Body).Decode(refusal) != nil || refusal.Code == "" {
		return nil, fmt.Errorf("the relay answered %s", resp.Status)
	}
	return nil, refusal
}

// explain gives the remedy for a socket that cannot be reached.
func (c *Client) explain(err error) error {
	var wrapped *url.Error // repeats the method and a URL that means nothing here
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing answers on the control socket %s", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("may not use the control socket %s; run this as root or as the relay's own user: %w",
			c.socket, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the relay on %s does not answer: it hangs, or has no processor time; look at "+
			"'systemctl status koji-relay', and restart it", c.socket)
	}
	return fmt.Errorf("ask the relay on %s: %w", c.socket, err)
}

// result says whether a stream came to its end.
func (c *Client) result(resp *http.Response) error {
	text := resp.Trailer.Get(resultTrailer)
	if text == "ok" {
		return nil
	}
	refusal := &Error{}
	if json.Unmarshal([]byte(text), refusal) == nil && refusal.Code != "" {
		return refusal
	}
	return fmt.Errorf("the relay's answer on %s was cut short", c.socket)
}
