package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"koji-relay/history/audit"
)

func TestAuditListsAFewHolesOfMany(t *testing.T) {
	t.Parallel()
	const all = 50_000
	begin := time.Now().Add(-24 * time.Hour)
	account := audit.Account{Kind: "taggings", Happened: all}
	for i := range all {
		account.Holes = append(account.Holes, audit.Hole{Time: begin.Add(time.Duration(i) * time.Second),
			What: fmt.Sprintf("a-1-%d was tagged into t", i)})
	}
	report := &auditReport{Accounts: []audit.Account{account}, Holes: all}
	for limit, want := range map[int]int{20: 20, 3: 3, all: all, 0: all} {
		var out bytes.Buffer
		if err := printAudit(&out, report, limit); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(out.String(), "hole: "); got != want {
			t.Errorf("--limit %d lists %d holes, want %d", limit, got, want)
		}
		rest := fmt.Sprintf("holes: %d more of the taggings, from ", all-want)
		if want < all != strings.Contains(out.String(), rest) || strings.Contains(out.String(), "no hole") {
			t.Errorf("--limit %d ends with\n%s", limit, out.String()[max(0, out.Len()-300):])
		}
	}
}

func TestAuditOfNoTimeIsRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--since", "1h", "--until", "2h"}, {"--since", "30s"}} {
		var out, text bytes.Buffer
		code := run(t.Context(), append([]string{"audit"}, args...), strings.NewReader(""), &out, &text)
		if code != exitUsage || !strings.Contains(text.String(), "what is looked at ends at") {
			t.Errorf("audit %q ends with %d and says %q", args, code, &text)
		}
	}
}
