package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"koji-relay/internal/fnmatch"
)

// valueError says what is wrong with a value, and the remedy. part is the piece of the value that is meant,
// already masked, where the whole would hide it.
type valueError struct{ text, part string }

func (e *valueError) Error() string { return e.text }

// valueErrors is several of them, for a value of several parts.
type valueErrors []*valueError

func (e valueErrors) Error() string { return e[0].text }

func bad(format string, args ...any) error { return &valueError{text: fmt.Sprintf(format, args...)} }

// Python's spellings: int() and float() take surrounding space, a sign and single underscores between
// digits; int() takes leading zeros and no exponent. Digits outside ASCII, which Python takes too, are not
// read: nobody writes them, and they look like others.
var (
	pythonInt   = regexp.MustCompile(`^[+-]?[0-9]+(_[0-9]+)*$`)
	pythonFloat = regexp.MustCompile(
		`^[+-]?([0-9]+(_[0-9]+)*(\.([0-9]+(_[0-9]+)*)?)?|\.[0-9]+(_[0-9]+)*)([eE][+-]?[0-9]+(_[0-9]+)*)?$`)
)

func parseInt(text string) (int64, error) {
	text = strings.TrimFunc(text, isSpace)
	if text == "" {
		return 0, bad("empty; give a whole number, or remove the line for the default")
	}
	if !pythonInt.MatchString(text) {
		return 0, bad("not a whole number; write digits only")
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, 64)
	if err != nil { // only the range is left to fail
		return n, nil // the nearest that fits; whoever asked has bounds below it
	}
	return n, nil
}

func parseFloat(text string) (float64, error) {
	text = strings.TrimFunc(text, isSpace)
	if text == "" {
		return 0, bad("empty; give a number, or remove the line for the default")
	}
	if !pythonFloat.MatchString(text) {
		return 0, bad("not a number; write it with digits, such as 10 or 0.5")
	}
	// out of range is an infinity, and out of bounds
	f, _ := strconv.ParseFloat(strings.ReplaceAll(text, "_", ""), 64)
	return f, nil
}

func whole[T int | int64 | uint8](low, high T) func(string) (T, error) {
	return func(text string) (T, error) {
		n, err := parseInt(text)
		if err != nil {
			return 0, err
		}
		if n < int64(low) || n > int64(high) {
			return 0, bad("out of range; give a whole number from %d to %d", low, high)
		}
		return T(n), nil
	}
}

// magnitude is a whole number whose sign protonmsg drops.
func magnitude(text string) (int, error) {
	n, err := parseInt(text)
	if err != nil {
		return 0, err
	}
	if n < -math.MaxInt32 || n > math.MaxInt32 {
		return 0, bad("out of range; give a whole number up to %d", math.MaxInt32)
	}
	return int(max(n, -n)), nil
}

// wholeUnits is a whole number of a unit, as protonmsg's getint wants it.
func wholeUnits(unit time.Duration, low, high int64) func(string) (time.Duration, error) {
	parse := whole(low, high)
	return func(text string) (time.Duration, error) {
		n, err := parse(text)
		return time.Duration(n) * unit, err
	}
}

// seconds may have a fraction.
func seconds(low, high float64) func(string) (time.Duration, error) {
	return func(text string) (time.Duration, error) {
		f, err := parseFloat(text)
		if err != nil {
			return 0, err
		}
		if f < low || f > high { // NaN cannot be written
			return 0, bad("out of range; give seconds from %v to %v", low, strconv.FormatFloat(high, 'f', -1, 64))
		}
		return time.Duration(f * float64(time.Second)), nil
	}
}

func boolean(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "1", "yes", "true", "on":
		return true, nil
	case "0", "no", "false", "off":
		return false, nil
	}
	return false, bad("neither on nor off; write on or off")
}

func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		word := strings.ToLower(text)
		if slices.Contains(words, word) {
			return word, nil
		}
		hint := ""
		if near := nearest(word, words); near != "" {
			hint = fmt.Sprintf(" (did you mean %s?)", near)
		}
		return "", bad("not one of its values; write %s%s", orList(words), hint)
	}
}

func orList(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func anyText(text string) (string, error) { return text, nil }

func someText(text string) (string, error) {
	if text == "" {
		return "", bad("empty; give a value")
	}
	return text, nil
}

// wordList takes words separated by white space. A comma would silently become a part of a word.
func wordList(text string) ([]string, error) {
	words := strings.FieldsFunc(text, isSpace)
	var wrong valueErrors
	for _, w := range words {
		if strings.Contains(w, ",") {
			wrong = append(wrong, &valueError{part: w, text: "a comma in it; separate the words of a list by spaces"})
		}
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return words, nil
}

// patternList takes Python's fnmatch patterns.
func patternList(text string) ([]string, error) {
	words, err := wordList(text)
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		if _, err := fnmatch.Compile(w); err != nil {
			return nil, &valueError{part: w, text: errors.Unwrap(err).Error()}
		}
	}
	return words, nil
}

// warnUnclosed names patterns with a [ without its ], which stands for itself.
func warnUnclosed(text string) valueErrors {
	var warnings valueErrors
	for _, w := range strings.FieldsFunc(text, isSpace) {
		if fnmatch.Unclosed(w) {
			warnings = append(warnings, &valueError{part: w, text: "the [ without its ] stands for itself; close it"})
		}
	}
	return warnings
}

// filePath is an absolute path, or empty for none.
func filePath(text string) (string, error) {
	if text != "" && !filepath.IsAbs(text) {
		return "", bad("not an absolute path; begin it with /")
	}
	return text, nil
}

func someFilePath(text string) (string, error) {
	if text == "" {
		return "", bad("empty; give an absolute path")
	}
	return filePath(text)
}

// maxSocketPath is what fits into sockaddr_un on Linux, its final NUL left out.
const maxSocketPath = 107

func socketPath(text string) (string, error) {
	if len(text) > maxSocketPath {
		return "", bad("too long for a Unix socket; use a path of at most %d bytes", maxSocketPath)
	}
	return filePath(text)
}

func someSocketPath(text string) (string, error) {
	if text == "" {
		return "", bad("empty; give the path of a Unix socket")
	}
	return socketPath(text)
}

func fileMode(text string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 32)
	if err != nil || n > 0o777 {
		return 0, bad("not a file mode; write it in octal, such as 0660")
	}
	return uint32(n), nil
}

// loopback is a host:port that only this machine can reach, or empty for none.
func loopback(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", bad("not host:port; write it like 127.0.0.1:9763")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", bad("no usable port; give a port from 1 to 65535")
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", bad("not a loopback address; use 127.0.0.1 or [::1], and a proxy of your own for other machines")
	}
	return text, nil
}
