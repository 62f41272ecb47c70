package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// translateRun runs `koji-relay translate` and gives its exit code and outputs.
func translateRun(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"translate"}, args...), strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// commitLine is a commit with the given text between the brackets of events.
func commitLine(events string) string {
	return `{"commit": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", "events": [` + events + `]}` + "\n"
}

const oneTag = `{"callback": "postTag", "kwargs": {"tag": {"name": "f39"}, "build": {"name": "bash", ` +
	`"version": "5.2", "release": "1", "extra": {"a": "é"}}, "user": {"name": "mike"}}}`

func TestTranslatePrintsProtonmsgsMessagesForTheGoldenCommits(t *testing.T) {
	t.Parallel()
	for run, args := range map[string][]string{"extra0": nil, "extra500": {"--extra-limit", "500"}} {
		t.Run(run, func(t *testing.T) {
			t.Parallel()
			golden := filepath.Join("..", "..", "testdata", "golden")
			want, err := os.ReadFile(filepath.Join(golden, "messages."+run+".jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			code, got, stderr := translateRun(t, "",
				append(args, "--topic-prefix", "/topic/koji", filepath.Join(golden, "commits."+run+".jsonl"))...)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, standard error:\n%s", code, stderr)
			}
			wantLines, gotLines := strings.SplitAfter(string(want), "\n"), strings.SplitAfter(got, "\n")
			if len(wantLines) != len(gotLines) {
				t.Fatalf("%d lines, protonmsg sent %d messages", len(gotLines)-1, len(wantLines)-1)
			}
			for i, line := range gotLines[:len(gotLines)-1] {
				// What is new stands between what is compared to the byte.
				before, rest, _ := strings.Cut(line, `"target": `)
				_, after, _ := strings.Cut(rest, `"props": `)
				if compared := before + `"props": ` + after; compared != wantLines[i] {
					t.Errorf("line %d\nours      %.2000s\nprotonmsg %.2000s", i+1, compared, wantLines[i])
				}
				var m struct{ Address, Target, Message_ID string }
				if err := json.Unmarshal([]byte(line), &m); err != nil || m.Target != "/topic/koji."+m.Address ||
					len(m.Message_ID) != 36 {
					t.Errorf("line %d has target %q, message_id %q (%v)", i+1, m.Target, m.Message_ID, err)
				}
			}
		})
	}
}

func TestTranslateLineIsExact(t *testing.T) {
	t.Parallel()
	code, got, stderr := translateRun(t, commitLine(oneTag))
	want := `{"commit": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", "event": 0, "callback": "postTag", ` +
		`"address": "build.tag", ` +
		`"target": "topic://koji.build.tag", "message_id": "92be4b02-b526-50cc-b361-39279f625586", ` +
		`"props": [["type", "string", "Tag"], ["tag", "string", "f39"], ["name", "string", "bash"], ["version", ` +
		`"string", "5.2"], ` +
		`["release", "string", "1"], ["user", "string", "mike"]], ` +
		`"body": "{\"tag\": {\"name\": \"f39\"}, \"build\": {\"name\": \"bash\", \"version\": \"5.2\", ` +
		`\"release\": \"1\", \"extra\": {\"a\": \"\u00e9\"}}, \"user\": {\"name\": \"mike\"}}"}` + "\n"
	if diff := cmp.Diff(want, got); code != exitOK || stderr != "" || diff != "" {
		t.Errorf("exit code %d, standard error %q, output (-want +got):\n%s", code, stderr, diff)
	}
}

func TestTranslateBodyDecodesToTheExactText(t *testing.T) {
	t.Parallel()
	kwargs := "{\"a\": \"é日😀\u2028\x7f\", \"b\":1.50,\t\"c\": \"\\ud800\\u0000\\n\\/\\\"\" }"
	_, got, _ := translateRun(t, commitLine(`{"callback": "postTag", "kwargs": `+kwargs+`}`))
	var m struct{ Body string }
	if err := json.Unmarshal([]byte(got), &m); err != nil {
		t.Fatal(err)
	}
	if m.Body != kwargs {
		t.Errorf("body %q of kwargs %q", m.Body, kwargs)
	}
	for _, b := range []byte(strings.TrimSuffix(got, "\n")) {
		if b < 0x20 || b >= 0x7f {
			t.Errorf("byte %#x is not escaped in %q", b, got)
		}
	}
}

func TestTranslatePrintsEachTypeOfProp(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		`"é\u0000"`:           `["repo_id", "string", "\u00e9\u0000"]`,
		`-5`:                  `["repo_id", "long", -5]`,
		`9223372036854775807`: `["repo_id", "long", 9223372036854775807]`,
		`1.0`:                 `["repo_id", "double", 1.0]`,
		`1E16`:                `["repo_id", "double", 1e+16]`,
		`5e-324`:              `["repo_id", "double", 5e-324]`,
		`-0.0`:                `["repo_id", "double", -0.0]`,
		`true`:                `["repo_id", "boolean", true]`,
		`null`:                `["repo_id", "null", null]`,
		`9223372036854775808`: `["repo_id", "unencodable", 9223372036854775808]`,
		`"\ud800"`:            `["repo_id", "unencodable", "\ud800"]`,
		`{"a": [1, "é"]}`:     `["repo_id", "unencodable", {"a": [1, "é"]}]`,
	} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			_, got, stderr := translateRun(t, commitLine(`{"callback": "postRepoInit", "kwargs": {"repo_id": `+value+
				`}}`))
			if !strings.Contains(got, want) || !json.Valid([]byte(got)) {
				t.Errorf("%s is not in %s%s", want, got, stderr)
			}
		})
	}
}

func TestTranslateReportsBadLinesAndGoesOn(t *testing.T) {
	t.Parallel()
	input := commitLine(oneTag) + "\n   \r\n" + "garbage\n" + commitLine(oneTag) +
		commitLine(oneTag+`, {"callback": "postImport", "kwargs": {"type": null}}`) +
		`{"commit": "abc", "events": []}` + "\n" + strings.TrimSuffix(commitLine(oneTag), "\n")
	code, got, stderr := translateRun(t, input)
	if n := strings.Count(got, "\n"); code != exitFailure || n != 4 {
		t.Errorf("exit code %d, %d messages, want %d and 4", code, n, exitFailure)
	}
	want := `koji-relay: line 4: byte 0: found "g" where a commit, which is a JSON object, should be
koji-relay: line 6: event 1 (postImport) of commit 7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55 is undeliverable: ` +
		`no address: "type" is null, not a string
koji-relay: line 7: commit "abc" is not a UUID such as 7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55
`
	if diff := cmp.Diff(want, stderr); diff != "" {
		t.Errorf("standard error (-want +got):\n%s", diff)
	}
}

func TestUndeliverableEventIsNotAFailureOfTranslate(t *testing.T) {
	t.Parallel()
	code, got, stderr := translateRun(t, commitLine(`{"callback": "postTag", "kwargs": []}`), "-")
	if code != exitOK || got != "" || !strings.Contains(stderr, "kwargs are an array") {
		t.Errorf("exit code %d, output %q, standard error %q", code, got, stderr)
	}
}

func TestTranslateTakesRulesFromConfigAndFlags(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	conf := "[broker]\nurls = amqp://localhost:5672\ntopic_prefix = /topic/site\n" +
		"[message]\nevents = *Tag\nextra_limit = 5\nextra_keep = keep\n"
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	input := commitLine(`{"callback": "preTag", "kwargs": {"build": {"extra": {"keep": 1, "drop": 2}}}}, ` +
		`{"callback": "postUntag", "kwargs": {"build": {}}}`)
	for name, row := range map[string]struct {
		args []string
		want string // targets and bodies
	}{
		"defaults": {nil, `topic://koji.build.untag {"build": {}};`},
		"config":   {[]string{"--config", path}, `/topic/site.pre.build.tag {"build": {"extra": {"keep": 1}}};`},
		"flags over config": {
			[]string{"--config", path, "--events", "post* pre*", "--extra-limit", "0", "--topic-prefix", "koji"},
			`topic://koji.pre.build.tag {"build": {"extra": {"keep": 1, ` +
				`"drop": 2}}};topic://koji.build.untag {"build": {}};`,
		},
		"flags": {[]string{"--events", "pre*", "--extra-limit", "-5"}, `topic://koji.pre.build.tag {"build": {}};`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, got, stderr := translateRun(t, input, row.args...)
			if code != exitOK {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			var have strings.Builder
			d := json.NewDecoder(strings.NewReader(got))
			for d.More() {
				var m struct{ Target, Body string }
				if err := d.Decode(&m); err != nil {
					t.Fatal(err)
				}
				have.WriteString(m.Target + " " + m.Body + ";")
			}
			if diff := cmp.Diff(row.want, have.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnusableArgumentsOfTranslateAreRefusedBeforeAnythingIsRead(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`no such file`:               {"/no/such/file"},
		`translate reads one file`:   {"a", "b"},
		`/no/such/protonmsg.conf`:    {"--config", "/no/such/protonmsg.conf"},
		`invalid argument "x"`:       {"--extra-limit", "x"},
		`unknown flag: --extra_keep`: {"--extra_keep", "x"},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			code, got, stderr := translateRun(t, commitLine(oneTag), args...)
			if code != exitUsage || got != "" || !strings.Contains(stderr, want) {
				t.Errorf("exit code %d, output %q, standard error %q", code, got, stderr)
			}
		})
	}
}

// brokenWriter is a full disk.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestTranslateFailsWhereItCannotReadOrPrint(t *testing.T) {
	t.Parallel()
	var errs bytes.Buffer
	code := run(t.Context(), []string{"translate"}, strings.NewReader(commitLine(oneTag)), brokenWriter{}, &errs)
	if code != exitFailure || !strings.Contains(errs.String(), "print messages: no space left") {
		t.Errorf("full disk: exit code %d, %q", code, errs.String())
	}
	errs.Reset()
	input := io.MultiReader(strings.NewReader(commitLine(oneTag)), iotest.ErrReader(errors.New("cable cut")))
	var out bytes.Buffer
	code = run(t.Context(), []string{"translate"}, input, &out, &errs)
	if code != exitFailure || !strings.Contains(errs.String(), "read commits after line 1: cable cut") ||
		strings.Count(out.String(), "\n") != 1 {
		t.Errorf("broken input: exit code %d, %q, output %q", code, errs.String(), out.String())
	}
}

func TestTranslateShowsALineBeforeTheNextArrives(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stdin, feed := io.Pipe()
	shown, stdout := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"translate"}, stdin, stdout, io.Discard)
		stdout.Close()
	}()
	lines := bufio.NewReader(shown)
	for range 3 {
		if _, err := io.WriteString(feed, commitLine(oneTag)); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "build.tag") {
			t.Fatalf("read %q, %v", line, err)
		}
	}
	cancel() // as an interrupt does, while the command waits for input
	if code := <-done; code != exitFailure {
		t.Errorf("exit code after an interrupt is %d", code)
	}
	feed.Close() // lets the goroutine that reads end
}

func TestTranslateReadsLinesOfAnyLength(t *testing.T) {
	t.Parallel()
	padded := func(n int) string {
		return strings.TrimSuffix(commitLine(oneTag), "\n") + strings.Repeat(" ", n) + "\n"
	}
	var input strings.Builder
	lengths := []int{0, 64<<10 - 300, 64 << 10, 64<<10 + 1, 300_000, 20 << 20, 0}
	for _, n := range lengths {
		input.WriteString(padded(n))
	}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole":       func(r io.Reader) io.Reader { return r },
		"halves":      iotest.HalfReader,
		"data at EOF": iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			in := wrap(strings.NewReader(strings.TrimSuffix(input.String(), "\n"))) // the last line need not end
			code := run(t.Context(), []string{"translate"}, in, &out, &errs)
			if n := strings.Count(out.String(), `"build.tag"`); code != exitOK || n != len(lengths) {
				t.Errorf("exit %d, %d messages of %d lines: %s", code, n, len(lengths), errs.String())
			}
		})
	}
}

// The promise is 64 MiB and six times the longest line, at any length of input: the line's buffer doubles,
// and the collector lets garbage grow to as much as is in use. It is measured on the real program, for the
// race detector multiplies memory; the full gigabyte is the same to it as these.
func TestTranslateMemoryStaysInBounds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "koji-relay")
	build := exec.CommandContext(t.Context(), "../../packaging/program", program)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build koji-relay: %v\n%s", err, out)
	}
	tag := func(extra string) string {
		return `{"callback": "postTag", "kwargs": {"build": {"extra": [` + extra + `]}}}`
	}
	small := commitLine(tag(`"` + strings.Repeat("x", 10_000) + `"`))
	oneLarge := commitLine(tag(strings.Repeat(`"é", `, 6_000_000) + `""`))
	manySmall := commitLine(strings.Repeat(tag(`"`+strings.Repeat("x", 1000)+`"`)+", ", 36_000) + tag(""))
	for name, row := range map[string]struct {
		line  string
		count int
	}{
		"short lines":           {small, 12_000},
		"one event of 40 MB":    {oneLarge, 4},
		"many events of a kB":   {manySmall, 4},
		"large and small mixed": {oneLarge + small + manySmall + small, 3},
		"events that are no use": {commitLine(`{"callback": "postImport", "kwargs": {"a": "` +
			strings.Repeat("x", 40_000_000) + `"}}`), 3},
	} {
		t.Run(name, func(t *testing.T) {
			longest := 0
			for line := range strings.Lines(row.line) {
				longest = max(longest, len(line))
			}
			var input []io.Reader
			for range row.count {
				input = append(input, strings.NewReader(row.line))
			}
			resident := peakMemory(t, program, io.MultiReader(input...))
			bound := int64(64<<20 + 6*longest)
			t.Logf("resident %d MiB of %d MiB, longest line %d MiB", resident>>20, bound>>20, longest>>20)
			if resident > bound {
				t.Errorf("resident memory is %d bytes, above 64 MiB and six times the longest line: %d", resident, bound)
			}
		})
	}
}

// peakMemory translates input by a process of its own and gives the most bytes it had resident. They are read
// while it lives: what the kernel reports of a child that ended counts the memory of the parent it was forked
// from.
func peakMemory(t *testing.T, program string, input io.Reader) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "translate")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fed := make(chan error, 1)
	go func() {
		_, err := io.Copy(stdin, io.MultiReader(input,
			strings.NewReader(commitLine(`{"callback": "postUntag", "kwargs": {}}`))))
		fed <- err
	}()
	// The last message shows that all before it is done.
	output := bufio.NewReaderSize(stdout, 1<<20)
	for last := []byte(`"callback": "postUntag"`); ; {
		part, err := output.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			t.Fatalf("the program ended early: %v", err)
		}
		if err == nil && bytes.Contains(part, last) {
			break
		}
	}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-fed; err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatalf("no VmHWM in\n%s", status)
	}
	kilobytes, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}
