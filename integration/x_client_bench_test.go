package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// leanClient stands for a hub worker that keeps its connection: one write for each commit, and a reader for
// just this answer. Clients share the processors with the relay, and sixteen of net/http took as long as it.
type leanClient struct {
	conn   net.Conn
	answer *bufio.Reader
	events []byte // of each commit, behind its id
	size   int    // events of a commit
	buf    []byte
}

// newLeanClient prepares commits of so many events.
func newLeanClient(t testing.TB, r *relay, events int) *leanClient {
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := tagCommit(events)
	return &leanClient{conn: conn, answer: bufio.NewReader(conn), size: events,
		events: body[len(`{"commit": "`)+len(uuid.Nil.String()):]}
}

// post hands over a commit with an id of its own, which must be taken.
func (c *leanClient) post() error {
	c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	id := uuid.NewString()
	c.buf = append(c.buf[:0], "POST /v1/commits HTTP/1.1\r\nHost: koji-relay\r\n"+
		"Content-Type: application/json\r\n"...)
	c.buf = fmt.Appendf(c.buf, "Content-Length: %d\r\n\r\n", len(`{"commit": "`)+len(id)+len(c.events))
	c.buf = append(append(append(c.buf, `{"commit": "`...), id...), c.events...)
	if _, err := c.conn.Write(c.buf); err != nil {
		return err
	}
	status, text, err := c.read()
	if err != nil {
		return err
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil || status != http.StatusOK || a.Sent+a.Queued != c.size {
		return fmt.Errorf("answer %d %s, %v; want %d taken", status, text, err, c.size)
	}
	return nil
}

// read reads one answer. The relay says how long it is.
func (c *leanClient) read() (status int, body []byte, err error) {
	length := 0
	for {
		line, err := c.answer.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		text := strings.TrimSpace(string(line))
		switch name, value, _ := strings.Cut(text, " "); {
		case text == "":
			body = make([]byte, length)
			_, err = io.ReadFull(c.answer, body)
			return status, body, err
		case name == "HTTP/1.1":
			status, err = strconv.Atoi(value[:3])
		case name == "Content-Length:":
			length, err = strconv.Atoi(value)
		}
		if err != nil {
			return 0, nil, err
		}
	}
}
