package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"koji-relay/internal/message"
)

const (
	// firstRead is how much room a body gets before more of it has come than that.
	firstRead = 64 << 10
	// eventBytes is what one decoded event takes, while the list of them grows and with the index of numbers.
	eventBytes = 160
	// shortestEvent is the length of {"callback":"a","kwargs":0}.
	shortestEvent = 27
)

// read gives the commit of a request. Memory is counted before it is taken: for the body as it comes, for the
// events, and for the messages of the piece under way with what the store makes of them.
func (s *Server) read(r *http.Request, hold *share) (message.Commit, *refusal) {
	body, refused := s.readBody(r, hold)
	hold.arrived()
	if refused != nil {
		return message.Commit{}, refused
	}
	events := min(bytes.Count(body, []byte("{")), len(body)/shortestEvent, message.MaxEvents)
	if !hold.hold(int64(cap(body) + events*eventBytes)) {
		return message.Commit{}, s.overloaded()
	}
	commit, err := s.opts.Decode(body)
	switch {
	case errors.Is(err, message.ErrTooManyEvents):
		return commit, &refusal{http.StatusRequestEntityTooLarge, "TOO_LARGE", nil,
			"the request holds " + err.Error() + "; post the commit in several requests with event numbers"}
	case err != nil:
		return commit, badRequest(err.Error())
	}
	piece := min(len(body), message.PieceBytes)
	for _, event := range commit.Events {
		piece = max(piece, len(event.Kwargs))
	}
	if !hold.hold(int64(cap(body) + len(commit.Events)*eventBytes + 2*piece)) {
		return commit, s.overloaded()
	}
	return commit, nil
}

// readBody reads the whole body into one slice, which grows as it comes.
func (s *Server) readBody(r *http.Request, hold *share) ([]byte, *refusal) {
	most := s.opts.MaxRequestBytes
	if r.ContentLength > most {
		return nil, s.tooLarge()
	}
	most++ // one more byte shows that it is too large
	if r.ContentLength >= 0 {
		most = r.ContentLength
	}
	var body []byte
	for {
		if int64(len(body)) == int64(cap(body)) && int64(len(body)) < most {
			room := min(max(firstRead, 4*int64(len(body))), most)
			if !hold.hold(room) {
				return nil, s.overloaded()
			}
			grown := make([]byte, len(body), room)
			copy(grown, body)
			body = grown
		}
		if int64(len(body)) == r.ContentLength {
			return body, nil
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > s.opts.MaxRequestBytes:
			return nil, s.tooLarge()
		case err == io.EOF:
			return body, nil
		case err != nil:
			return nil, brokenOff(err)
		}
	}
}

func (s *Server) tooLarge() *refusal {
	return &refusal{http.StatusRequestEntityTooLarge, "TOO_LARGE", nil, fmt.Sprintf(
		"the request is larger than max_request_bytes (%d); post the commit in several requests with event numbers",
		s.opts.MaxRequestBytes)}
}

func (s *Server) overloaded() *refusal {
	return &refusal{http.StatusServiceUnavailable, "OVERLOADED", nil, fmt.Sprintf(
		"commits at work would take more than max_inflight_bytes (%d) of memory; try again, or raise it",
		s.account.max())}
}

func badRequest(text string) *refusal {
	return &refusal{http.StatusBadRequest, "BAD_REQUEST", nil, text}
}

// brokenOff is for a body that did not come whole.
func brokenOff(err error) *refusal {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return &refusal{http.StatusRequestTimeout, "TOO_SLOW", nil,
			"the body took too long to arrive: send it at once, within " + bodyTimeout.String()}
	}
	return badRequest("read the request body: " + err.Error())
}
