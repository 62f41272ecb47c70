package inspect

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSizesAreWrittenInOneUnit(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 10 << 10: "10 KiB",
		1<<20 - 1: "1.0 MiB", 8 << 20: "8.0 MiB", 64 << 20: "64 MiB", 5 << 30: "5.0 GiB", 2 << 40: "2.0 TiB",
		1 << 60: "1048576 TiB",
	} {
		if got := Size(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
}

func TestOneThingIsSingular(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0 messages", 1: "1 message", 2: "2 messages", -1: "-1 messages"} {
		if got := Count(n, "message"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	if got := Count(int64(1), "dead letter") + " " + Noun(int64(2), "event"); got != "1 dead letter events" {
		t.Errorf("got %q", got)
	}
}

func TestForeignTextIsOneShortPrintableLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"amqp:not-found":              "amqp:not-found",
		"":                            "",
		"Überfüllt é 東京":              "Überfüllt é 東京",
		"\x1b[31mred\x1b[0m":          "\uFFFD[31mred\uFFFD[0m",
		"two\nlines\r\nand a\ttab":    "two lines  and a tab",
		"C1 \u009b31m, bell \a":       "C1 \uFFFD31m, bell \uFFFD",
		"right to left \u202eevil":    "right to left \uFFFDevil",
		"not UTF-8: \xff\xfe":         "not UTF-8: \uFFFD\uFFFD",
		"para\u2029graph \u2028lines": "para graph  lines",
	} {
		if got := Line(in, 0); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	long := Line(strings.Repeat("é", 50_000), 201)
	if len(long) > 201+len("…") || !utf8.ValidString(long) || !strings.HasSuffix(long, "é…") {
		t.Errorf("50,000 characters become %d bytes: %q", len(long), long)
	}
}
