package callbacks_test

import (
	"errors"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// withEvents is a commit with the given text between the brackets of events.
func withEvents(events string) string {
	return `{"commit": "` + commitID + `", "events": [` + events + `]}`
}

func TestCommitIsDecodedWithRawKwargs(t *testing.T) {
	t.Parallel()
	event := func(number int, callback, kwargs string) message.Event {
		return message.Event{Number: number, Callback: callback, Kwargs: []byte(kwargs)}
	}
	deep := strings.Repeat(`[{"a":`, 50_000) + `1` + strings.Repeat(`}]`, 50_000)
	for name, row := range map[string]struct {
		text string
		want []message.Event
	}{
		"no events": {withEvents(``), nil},
		"numbers given": {withEvents(
			`{"event": 4, "callback": "a", "kwargs": {}}, {"event": 9, "callback": "b", "kwargs": {}}`),
			[]message.Event{event(4, "a", `{}`), event(9, "b", `{}`)}},
		"numbers absent": {withEvents(`{"callback": "a", "kwargs": {}}, {"callback": "b", "kwargs": {}}`),
			[]message.Event{event(0, "a", `{}`), event(1, "b", `{}`)}},
		"numbers descending": {withEvents(
			`{"event": 9, "callback": "a", "kwargs": {}}, {"event": 0, "callback": "b", "kwargs": {}}`),
			[]message.Event{event(9, "a", `{}`), event(0, "b", `{}`)}},
		"keys in any order": {`{"events": [{"kwargs": {}, "callback": "a"}], "commit": "` + commitID + `"}`,
			[]message.Event{event(0, "a", `{}`)}},
		"unknown keys": {
			`{"method": {"x": [1]}, "commit": "` + commitID +
				`", "Commit": 1, "events": [{"EVENT": null, "callback": "a", "x": "\ud800", "kwargs": {}}], "z": null}`,
			[]message.Event{event(0, "a", `{}`)},
		},
		"white space": {"\r\n\t { \"commit\"\n:\t\"" + commitID +
			"\" , \"events\" : [ { \"callback\" : \"a\" , \"kwargs\" : { \"b\" : 1 } } ] } \n",
			[]message.Event{event(0, "a", `{ "b" : 1 }`)}},
		"upper case UUID": {strings.ReplaceAll(withEvents(``), commitID, strings.ToUpper(commitID)), nil},
		"escaped names": {`{"\u0063ommit": "\u0037` + commitID[1:] +
			`", "events": [{"callb\u0061ck": "post\u0054ag", "kwargs": {"\u0061": 1}}]}`,
			[]message.Event{event(0, "postTag", `{"\u0061": 1}`)}},
		"kwargs of any kind": {withEvents(
			`{"callback": "a", "kwargs": null}, {"callback": "a", "kwargs": [1, "x"]}, ` +
				`{"callback": "a", "kwargs": "s"}, {"callback": "a", "kwargs": -1.5e3}`),
			[]message.Event{event(0, "a", `null`), event(1, "a", `[1, "x"]`), event(2, "a", `"s"`),
				event(3, "a", `-1.5e3`)}},
		"kwargs not UTF-8": {withEvents("{\"callback\": \"a\", \"kwargs\": {\"\xff\": \"\xc3\"}}"),
			[]message.Event{event(0, "a", "{\"\xff\": \"\xc3\"}")}},
		"kwargs nested deeply": {withEvents(`{"callback": "a", "kwargs": ` + deep + `}`),
			[]message.Event{event(0, "a", deep)}},
		"callback not of a hub": {withEvents(`{"callback": "é😀", "kwargs": {}}`),
			[]message.Event{event(0, "é😀", `{}`)}},
		"numbers in their bounds": {withEvents(
			`{"event": 2147483647, "callback": "a", "kwargs": {}}, {"event": -0, "callback": "a", "kwargs": {}}`),
			[]message.Event{event(2147483647, "a", `{}`), event(0, "a", `{}`)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := callbacks.DecodeCommit([]byte(row.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(message.Commit{ID: commitID, Events: row.want}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestKwargsAreNotCopied(t *testing.T) {
	t.Parallel()
	text := []byte(withEvents(`{"callback": "postTag", "kwargs": {"a": 1}}`))
	c, err := callbacks.DecodeCommit(text)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(text), `{"a"`)
	if unsafe.SliceData(c.Events[0].Kwargs) != &text[at] {
		t.Error("kwargs are a copy: a commit of 64 MB would be held twice")
	}
}

func TestWhatIsNotACommitIsRefusedByFieldOrOffset(t *testing.T) {
	t.Parallel()
	e := func(fields string) string { return withEvents(`{"callback": "a", "kwargs": {}}, {` + fields + `}`) }
	table := map[string]struct{ text, want string }{
		"empty":       {``, "byte 0: the text is empty; a commit is a JSON object"},
		"only spaces": {"  \n", "byte 3: the text is empty; a commit is a JSON object"},
		"array":       {`[]`, `byte 0: found "[" where a commit, which is a JSON object, should be`},
		"byte order mark": {"\ufeff{}",
			`byte 0: found "\xef" where a commit, which is a JSON object, should be`},
		"empty object": {`{}`, "commit is missing"},
		"no events":    {`{"commit": "` + commitID + `"}`, "events is missing"},
		"events null":  {`{"commit": "` + commitID + `", "events": null}`, "events is null, not an array"},
		"events object": {`{"commit": "` + commitID + `", "events": {}}`,
			"events is an object, not an array"},
		"commit number": {`{"commit": 5, "events": []}`, "commit is a number, not a string"},
		"commit no UUID": {`{"commit": "abc", "events": []}`,
			`commit "abc" is not a UUID such as 7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55`},
		"commit urn": {`{"commit": "urn:uuid:` + commitID + `", "events": []}`,
			`commit "urn:uuid:` + commitID + `" is not a UUID such as 7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55`},
		"commit long": {`{"commit": "` + strings.Repeat("y", 1<<16) + `", "events": []}`,
			`commit "` + strings.Repeat("y", 64) + `…" is not a UUID such as 7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55`},
		"commit not UTF-8": {"{\"commit\": \"\xff\", \"events\": []}",
			"commit is not text: it holds U+0000, half a surrogate pair or bytes that are not UTF-8"},
		"commit twice": {`{"commit": "` + commitID + `", "commit": "` + commitID + `", "events": []}`,
			"commit is given twice"},
		"events twice": {`{"events": [], "events": [], "commit": "` + commitID + `"}`,
			"events is given twice"},
		"event no object": {withEvents(`5`), "events[0] is a number, not an object"},
		"event empty":     {e(``), "events[1].callback is missing"},
		"kwargs missing":  {e(`"callback": "a"`), "events[1].kwargs is missing"},
		"kwargs twice": {e(`"callback": "a", "kwargs": {}, "kwargs": {}`),
			"events[1].kwargs is given twice"},
		"callback null":  {e(`"callback": null, "kwargs": {}`), "events[1].callback is null, not a string"},
		"callback empty": {e(`"callback": "", "kwargs": {}`), "events[1].callback is empty"},
		"callback half a pair": {e(`"callback": "\ud800", "kwargs": {}`),
			"events[1].callback is not text: it holds U+0000, half a surrogate pair or bytes that are not UTF-8"},
		"callback with U+0000": {e(`"callback": "a\u0000", "kwargs": {}`),
			"events[1].callback is not text: it holds U+0000, half a surrogate pair or bytes that are not UTF-8"},
		"callback not UTF-8": {e("\"callback\": \"\xff\", \"kwargs\": {}"),
			"events[1].callback is not text: it holds U+0000, half a surrogate pair or bytes that are not UTF-8"},
		"callback twice": {e(`"callback": "a", "callback": "a", "kwargs": {}`),
			"events[1].callback is given twice"},
		"number text": {e(`"event": "1", "callback": "a", "kwargs": {}`),
			"events[1].event is a string, not a number"},
		"number null": {e(`"event": null, "callback": "a", "kwargs": {}`),
			"events[1].event is null, not a number"},
		"number negative": {e(`"event": -1, "callback": "a", "kwargs": {}`),
			"events[1].event is -1, not a whole number from 0 to 2147483647"},
		"number fraction": {e(`"event": 1.0, "callback": "a", "kwargs": {}`),
			"events[1].event is 1.0, not a whole number from 0 to 2147483647"},
		"number too large": {e(`"event": 2147483648, "callback": "a", "kwargs": {}`),
			"events[1].event is 2147483648, not a whole number from 0 to 2147483647"},
		"number twice": {e(`"event": 1, "event": 2, "callback": "a", "kwargs": {}`),
			"events[1].event is given twice"},
		"number taken": {e(`"event": 0, "callback": "a", "kwargs": {}`),
			"events[1].event is 0, the number of events[0] already"},
		"position taken": {withEvents(
			`{"event": 1, "callback": "a", "kwargs": {}}, {"callback": "b", "kwargs": {}}`),
			"events[1].event is 1, the number of events[0] already"},
		"taken after a fall": {withEvents(
			`{"event": 5, "callback": "a", "kwargs": {}}, {"event": 3, "callback": "a", "kwargs": {}}, ` +
				`{"event": 9, "callback": "a", "kwargs": {}}, {"event": 9, "callback": "a", "kwargs": {}}`),
			"events[3].event is 9, the number of events[2] already"},
		"text behind":          {withEvents(``) + ` x`, "byte 65: text after the end of the JSON value"},
		"two commits":          {withEvents(``) + withEvents(``), "byte 64: text after the end of the JSON value"},
		"cut off":              {`{"commit": "7f3c`, "byte 16: the text ends inside a string"},
		"cut off in kwargs":    {`{"events": [{"kwargs": {"a"`, "byte 27: the text ends where ':' should be"},
		"comma missing":        {`{"a": 1 "b": 2}`, `byte 8: found "\"" where ',' or '}' should be`},
		"comma too many":       {`{"a": [1,]}`, `byte 9: found "]" where a value should be`},
		"comma at the end":     {`{"a": 1,}`, `byte 8: found "}" where a member's name should be`},
		"key without quotes":   {`{a: 1}`, `byte 1: found "a" where a member's name should be`},
		"colon missing":        {`{"a" 1}`, `byte 5: found "1" where ':' should be`},
		"wrong bracket":        {`{"a": [1}`, `byte 8: found "}" where ',' or ']' should be`},
		"control character":    {"{\"a\": \"\x01\"}", "byte 7: a control character inside a string"},
		"unknown escape":       {`{"a": "\x"}`, "byte 7: an escape that JSON does not have"},
		"short escape":         {`{"a": "\u12"}`, "byte 7: an escape that JSON does not have"},
		"escape at the end":    {`{"a": "\`, "byte 7: an escape that JSON does not have"},
		"NaN":                  {`{"a": NaN}`, `byte 6: found "N" where a value should be`},
		"python word":          {`{"a": True}`, `byte 6: found "T" where a value should be`},
		"half a word":          {`{"a": tru}`, `byte 6: found "t" where a value should be`},
		"leading zero":         {`{"a": 01}`, `byte 7: found "1" where ',' or '}' should be`},
		"plus":                 {`{"a": +1}`, `byte 6: found "+" where a value should be`},
		"point without digits": {`{"a": 1.}`, `byte 8: found "}" where a digit should be`},
		"exponent alone":       {`{"a": 1e}`, `byte 8: found "}" where a digit should be`},
		"minus alone":          {`{"a": -}`, `byte 7: found "}" where a value should be`},
	}
	fields := []string{"commit", "events", "events[1].event", "events[1].callback", "events[1].kwargs"}
	for _, field := range fields {
		n := 0
		for _, row := range table {
			if strings.HasPrefix(row.want, field+" ") {
				n++
			}
		}
		if n == 0 {
			t.Errorf("%s has no bad case", field)
		}
	}
	for name, row := range table {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := callbacks.DecodeCommit([]byte(row.text))
			if err == nil {
				t.Fatalf("accepted as %+v", c)
			}
			if diff := cmp.Diff(row.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(message.Commit{}, c); diff != "" {
				t.Errorf("a commit came back beside the error:\n%s", diff)
			}
		})
	}
}

func TestEventsOfARequestAreBounded(t *testing.T) {
	t.Parallel()
	const event = `{"callback":"a","kwargs":0}`
	most := strings.Repeat(event+",", message.MaxEvents-1) + event
	c, err := callbacks.DecodeCommit([]byte(withEvents(most)))
	if err != nil || len(c.Events) != message.MaxEvents {
		t.Errorf("as many as allowed: %d events, %v", len(c.Events), err)
	}
	// What follows is not read, so that its memory does not count.
	c, err = callbacks.DecodeCommit([]byte(withEvents(most + "," + event + " broken")))
	if !errors.Is(err, message.ErrTooManyEvents) || c.Events != nil {
		t.Errorf("one more: %d events, %v; want %v", len(c.Events), err, message.ErrTooManyEvents)
	}
}

func TestEventsThatTheHubHasToCollect(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		events []string
		want   string
	}{
		"protonmsg's ten by default": {nil,
			"postPackageListChange postTaskStateChange postBuildStateChange postImport " +
				"postRPMSign postTag postUntag postRepoInit postRepoDone postBuildPromote"},
		"patterns as they stand": {[]string{"*"}, "*"},
		"both": {[]string{"pre*", "protonmsg"},
			"pre* postPackageListChange postTaskStateChange postBuildStateChange " +
				"postImport postRPMSign postTag postUntag postRepoInit postRepoDone postBuildPromote"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rules, err := callbacks.New(callbacks.Options{Events: row.events})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(rules.Events(), " "); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
		})
	}
}
