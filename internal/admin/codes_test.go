package admin

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"koji-relay/internal/inspect"
)

// The operations guide has a row for each code of a Reason, and for nothing else.
func TestEveryReasonCodeIsDocumented(t *testing.T) {
	t.Parallel()
	find := func(path, pattern string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all := make(map[string]bool)
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			for _, code := range regexp.MustCompile(`[A-Z_]{5,}`).FindAllString(string(m[1]), -1) {
				all[code] = true
			}
		}
		return slices.Sorted(maps.Keys(all))
	}
	given := find("judge.go", `Code:\s+"([A-Z_]+)"`)
	if len(given) < 15 {
		t.Fatalf("found %d codes only", len(given))
	}
	if rows := find("../../docs/operations.md", "(?m)^\\| (`[A-Z_`, ]+`) \\|"); !slices.Equal(given, rows) {
		t.Errorf("docs/operations.md has the codes\n%v, the relay gives\n%v", rows, given)
	}
}

// A broker that went silent and is connected again is tried by the next message. On a quiet hub that is the
// administrator's.
func TestBrokerThatIsUntriedIsTriedByATest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		broker  inspect.Broker
		command string
	}{
		{inspect.Broker{State: inspect.Stalled, Untried: true}, "koji-relay send-test"},
		{inspect.Broker{State: inspect.Stalled}, "koji-relay check --connect"},
		{inspect.Broker{State: inspect.Down}, "koji-relay check --connect"},
	} {
		s := Status{Brokers: []inspect.Broker{c.broker}}
		got := s.sending(time.Now())
		if len(got) != 1 || got[0].Code != "NO_BROKER" || got[0].Command != c.command {
			t.Errorf("%+v: %+v", c.broker, got)
		}
	}
}

// check --connect looks at a database alone.
func TestFullDiskOfAFileIsLookedAtWithDf(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"":                             "koji-relay check --connect",
		"/var/lib/koji-relay/queue.db": "df -h /var/lib/koji-relay",
	} {
		s := Status{Queue: Queue{Enabled: true, Path: path, Error: "no space left on device"}}
		if got := s.storing(); len(got) != 1 || got[0].Command != want {
			t.Errorf("queue %q: %+v", path, got)
		}
	}
}
