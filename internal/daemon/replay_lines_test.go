package daemon

import (
	"io"
	"strings"
	"testing"
)

const replayedLine = `{"message_id": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", ` +
	`"time": "2026-11-26T14:00:00Z", ` +
	`"address": "build.tag", "size": 2, "fate": "accepted", "props": {}, "body": "{}"}`

// endless is a file without an end.
type endless byte

func (b endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func TestLinesOfAFileToReplay(t *testing.T) {
	t.Parallel()
	many := strings.Repeat(replayedLine+"\n", maxLines/512+1)
	for name, c := range map[string]struct {
		file io.Reader
		rows int
		want string // in the error
	}{
		"nothing":         {strings.NewReader(""), 0, ""},
		"one":             {strings.NewReader(replayedLine + "\n"), 1, ""},
		"no last newline": {strings.NewReader(replayedLine + "\n" + replayedLine), 2, ""},
		"of Windows": {strings.NewReader("\uFEFF" + replayedLine + "\r\n\r\n" + replayedLine + "\r\n"), 2,
			""},
		"cut off": {strings.NewReader(replayedLine + "\n" + replayedLine[:90]), 0,
			"line 2 is not of koji-relay history --json: the file ends within it"},
		"damaged": {strings.NewReader(replayedLine[:90] + "\n" + replayedLine), 0,
			"line 1 is not of koji-relay history --json: invalid character"},
		"packed":           {strings.NewReader("\x1f\x8b\x08\x00"), 0, "zcat FILE | koji-relay replay --from -"},
		"an endless line":  {endless('x'), 0, "read line 1: it has more than 64"},
		"more than memory": {strings.NewReader(many), 0, "send the file in parts: split -l "},
	} {
		rows, err := readLines(c.file)
		if len(rows) != c.rows || (err == nil) != (c.want == "") ||
			err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s gives %d messages, %v; want %d, %q", name, len(rows), err, c.rows, c.want)
		}
	}
}
