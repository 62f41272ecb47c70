package main

import (
	"errors"
	"strings"
	"testing"

	"koji-relay/internal/inspect"
)

func TestTimesThatCannotBeMeantAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ since, until, want string }{
		{"2h", "", ""}, {"", "2h", ""}, {"2h", "1h", ""}, {"2026-11-26", "2126-11-27", ""},
		{"2126-11-26", "", "has not come yet"}, {"1h", "2h", "not after --since"},
		{"2026-11-26", "2026-11-26", "not after --since"}, {"-5h", "", "give how long ago it was"},
	} {
		err := historyTimes{&c.since, &c.until}.set(&inspect.HistoryQuery{})
		var usage usageError
		if (err != nil) != (c.want != "") || err != nil &&
			(!errors.As(err, &usage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("--since %q --until %q: %v, want %q", c.since, c.until, err, c.want)
		}
	}
}
