package inspect

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Size writes bytes for a person, in the binary units in which the limits of the configuration are set.
func Size(n int64) string {
	const step = 1024
	f, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for len(units) > 1 && f >= step-0.5 {
		f, units = f/step, units[1:]
	}
	if units[0] != "B" && f < 9.95 {
		return fmt.Sprintf("%.1f %s", f, units[0])
	}
	return fmt.Sprintf("%.0f %s", f, units[0])
}

// Count writes a number with its noun: 1 message, 2 messages.
func Count[N int | int64](n N, noun string) string { return fmt.Sprintf("%d %s", n, Noun(n, noun)) }

// Noun gives a noun as it stands beside a number: with an s, unless there is one.
func Noun[N int | int64](n N, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// Duration writes a duration in the units that suit it.
func Duration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 3*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= day:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d >= 10*time.Second || d%time.Second == 0:
		return fmt.Sprintf("%d s", d/time.Second)
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// Age writes how long ago t was, and "-" for a time that is not known.
func Age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Duration(max(0, now.Sub(t).Truncate(time.Second)))
}

// Time writes a moment in UTC to the second, and nothing for one that is not known.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// Line makes one line of text that came from elsewhere: what is not printable could steer a terminal or break
// a log, and becomes a space or U+FFFD. Beyond max bytes it is cut; 0 is no limit.
func Line(s string, max int) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r', r == '\u2028', r == '\u2029':
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return utf8.RuneError
	}, s)
	if max <= 0 || len(clean) <= max {
		return clean
	}
	cut := max
	for !utf8.RuneStart(clean[cut]) {
		cut--
	}
	return clean[:cut] + "…"
}
