package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"koji-relay/internal/inspect"
)

// HistoryControl looks into the history, and sends from it again.
type HistoryControl interface {
	// History gives the messages that q means. An error of each ends it and comes back.
	History(ctx context.Context, q inspect.HistoryQuery, each func(*inspect.HistoryMessage) error) error
	// HistoryMessage gives one message with properties, body and steps.
	HistoryMessage(ctx context.Context, id string) (*inspect.HistoryMessage, error)
	// HistoryGaps gives what was not recorded.
	HistoryGaps(ctx context.Context, since, until time.Time) ([]inspect.Gap, error)
	// PlanReplay counts what a replay would send.
	PlanReplay(ctx context.Context, r inspect.Replay) (inspect.Plan, error)
	// StartReplay makes a replay of r's query or, where it is of a file, of lines: what History gave.
	StartReplay(ctx context.Context, r inspect.Replay, lines io.Reader) (inspect.Replay, error)
	Replays(ctx context.Context) ([]inspect.Replay, error)
	CancelReplay(ctx context.Context, id int64) error
}

type (
	gapsRequest struct {
		Since time.Time `json:"since,omitzero"`
		Until time.Time `json:"until,omitzero"`
	}
	// replayHeader is the first line of a request that starts a replay; the lines of a file follow.
	replayHeader = inspect.Replay
)

func (s *Server) handleHistory(mux *http.ServeMux, c HistoryControl) {
	mux.HandleFunc("POST /v1/history", func(w http.ResponseWriter, r *http.Request) {
		q, err := decode[inspect.HistoryQuery](r)
		if err != nil {
			refuse(w, asError(err))
			return
		}
		s.stream(w, func(out *bufio.Writer) error {
			lines := json.NewEncoder(out)
			lines.SetEscapeHTML(false)
			return c.History(r.Context(), q, func(m *inspect.HistoryMessage) error { return lines.Encode(m) })
		})
	})
	read := func(path string, do func(*http.Request) (any, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			result, err := do(r)
			if err != nil {
				refuse(w, asError(err))
				return
			}
			answer(w, http.StatusOK, result)
		})
	}
	read("GET /v1/history/{id}", func(r *http.Request) (any, error) {
		return c.HistoryMessage(r.Context(), r.PathValue("id"))
	})
	read("POST /v1/history/gaps", func(r *http.Request) (any, error) {
		in, err := decode[gapsRequest](r)
		if err != nil {
			return nil, err
		}
		gaps, err := c.HistoryGaps(r.Context(), in.Since, in.Until)
		return present(gaps), err
	})
	read("POST /v1/replays/plan", func(r *http.Request) (any, error) {
		in, err := decode[inspect.Replay](r)
		if err != nil {
			return nil, err
		}
		return c.PlanReplay(r.Context(), in)
	})
	read("GET /v1/replays", func(r *http.Request) (any, error) {
		all, err := c.Replays(r.Context())
		return present(all), err
	})
	mux.HandleFunc("POST /v1/replays", s.action(func(r *http.Request) (any, error) {
		lines := bufio.NewReaderSize(r.Body, 64<<10)
		head, err := lines.ReadBytes('\n')
		var in replayHeader
		if err = errors.Join(ignoreEOF(err), json.Unmarshal(head, &in)); err != nil {
			return nil, &Error{Code: CodeBadRequest, Text: "read the request: " + err.Error()}
		}
		return c.StartReplay(r.Context(), in, lines)
	}))
	mux.HandleFunc("POST /v1/replays/{id}/cancel", s.action(func(r *http.Request) (any, error) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		if err != nil {
			return nil, &Error{Code: CodeBadRequest, Text: fmt.Sprintf("%q is not the number of a replay",
				r.PathValue("id"))}
		}
		return done{}, c.CancelReplay(r.Context(), id)
	}))
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// History calls each for every message. Those that came before an error are good.
func (c *Client) History(ctx context.Context, q inspect.HistoryQuery,
	each func(*inspect.HistoryMessage) error) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/history", q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var m inspect.HistoryMessage
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return c.result(resp)
		case err != nil:
			return fmt.Errorf("read the relay's history: %w", err)
		}
		if err := each(&m); err != nil {
			return err
		}
	}
}

// HistoryMessage gives one message whole.
func (c *Client) HistoryMessage(ctx context.Context, id string) (*inspect.HistoryMessage, error) {
	return call[*inspect.HistoryMessage](ctx, c, http.MethodGet, "/v1/history/"+url.PathEscape(id), nil)
}

// HistoryGaps gives what was not recorded.
func (c *Client) HistoryGaps(ctx context.Context, since, until time.Time) ([]inspect.Gap, error) {
	return call[[]inspect.Gap](ctx, c, http.MethodPost, "/v1/history/gaps", gapsRequest{since, until})
}

// PlanReplay counts what a replay would send.
func (c *Client) PlanReplay(ctx context.Context, r inspect.Replay) (inspect.Plan, error) {
	return call[inspect.Plan](ctx, c, http.MethodPost, "/v1/replays/plan", r)
}

// StartReplay makes a replay; lines may be nil.
func (c *Client) StartReplay(ctx context.Context, r inspect.Replay, lines io.Reader) (inspect.Replay, error) {
	head, err := json.Marshal(r)
	if err != nil {
		return r, fmt.Errorf("write the request: %w", err)
	}
	body := io.Reader(bytes.NewReader(append(head, '\n')))
	if lines != nil {
		body = io.MultiReader(body, lines)
	}
	return call[inspect.Replay](ctx, c, http.MethodPost, "/v1/replays", body)
}

// Replays lists the replays, oldest first.
func (c *Client) Replays(ctx context.Context) ([]inspect.Replay, error) {
	return call[[]inspect.Replay](ctx, c, http.MethodGet, "/v1/replays", nil)
}

// CancelReplay ends a replay; what it put into the queue stays there.
func (c *Client) CancelReplay(ctx context.Context, id int64) error {
	_, err := call[done](ctx, c, http.MethodPost, fmt.Sprintf("/v1/replays/%d/cancel", id), nil)
	return err
}
