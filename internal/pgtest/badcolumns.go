package pgtest

import (
	"slices"
	"strings"
	"testing"
)

// BadColumn is what an administrator, or an older program, may write into a column of the row beside a good
// one, and what comes of it: part of PostgreSQL's refusal, or of what the store says. Value is SQL.
type BadColumn = struct{ Value, Said string }

// RunBadColumns compares what spoil says of each case. Each column must have one.
func RunBadColumns(t *testing.T, columns []string, cases map[string][]BadColumn,
	spoil func(t *testing.T, column, value string) string) {
	t.Helper()
	for _, column := range columns {
		if len(cases[column]) == 0 {
			t.Errorf("the column %s has no bad case in this table", column)
		}
	}
	for column, all := range cases {
		if !slices.Contains(columns, column) {
			t.Errorf("%s is no column", column)
		}
		for _, bad := range all {
			t.Run(column+" "+bad.Value[:min(20, len(bad.Value))], func(t *testing.T) {
				t.Parallel()
				said := spoil(t, column, bad.Value)
				t.Logf("%.2000s", said)
				if !strings.Contains(said, bad.Said) {
					t.Errorf("%s = %s: it says %.3000q, not %q", column, bad.Value, said, bad.Said)
				}
			})
		}
	}
}
