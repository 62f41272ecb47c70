package fnmatch

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestPatternsOfKojiSites(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "postTag", true},
		{"post*", "preTag", false},
		{"post*", "postTag", true},
		{"posttag", "postTag", false},
		{"*-rebuild", "f44/sub-rebuild", true}, // Koji takes / in the name of a tag
		{"f[!3]*-x", "f4-x", true},
		{"f[!3]*-x", "f39-x", false},
		{"f[34]?", "f39", true},
		{"f[", "f[", true},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "aXbYbZ", false},
		{"[*]", "*", true},
		{"[*]", "x", false},
		{`\*`, `\x`, true},
		{"", "", true},
		{"", "x", false},
		{"*", "", true},
		{"?", "é", true},
		{"[]a]", "]", true},
		{"[!]a]", "]", false},
		{"[a-]", "-", true},
		{"x\ny*", "x\nyz\n", true},
	} {
		p, err := Compile(c.pattern)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		if got := p.Match(c.name); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.name, got)
		}
	}
}

func TestBackwardsRangeIsRefusedWithTheRemedy(t *testing.T) {
	t.Parallel()
	_, err := Compile("f[9-3]")
	if err == nil || !strings.Contains(err.Error(), "[3-9]") {
		t.Errorf("%v", err)
	}
	if _, err := CompileAll([]string{"*", "[b-a]"}); err == nil {
		t.Error("taken in a list")
	}
}

func TestUnclosedBracketIsFound(t *testing.T) {
	t.Parallel()
	for pattern, want := range map[string]bool{
		"f[3": true, "f[": true, "f[]": true, "f[!]": true, "f[3]": false, "f[]]": false, "f3]": false,
		"[a][": true, "[[]": false,
	} {
		if Unclosed(pattern) != want {
			t.Errorf("%q: %v", pattern, !want)
		}
	}
}

// A pattern of many stars must not take time that grows with its length.
func TestManyStarsEndSoon(t *testing.T) {
	t.Parallel()
	p, err := Compile(strings.Repeat("*a", 200) + "b")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool, 1)
	go func() { done <- p.Match(strings.Repeat("a", 20_000)) }()
	select {
	case matched := <-done:
		if matched {
			t.Error("matches")
		}
	case <-time.After(time.Minute):
		t.Fatal("still matching after a minute")
	}
}

// Python is asked once for all pairs.
func TestMatchAgreesWithPython(t *testing.T) {
	t.Parallel()
	python3, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
			t.Fatalf("python3 is needed to compare with: %v", err)
		}
		t.Skipf("python3 is needed to compare with: %v", err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	word := func(letters []string, most int) string {
		var b strings.Builder
		for range random.IntN(most) {
			b.WriteString(letters[random.IntN(len(letters))])
		}
		return b.String()
	}
	inPattern := []string{"a", "b", "-", "-", "!", "^", "]", "]", "[", "[", "[!", "[!", "*", "*", "*", "*", "?",
		"?", "/", "\\", "é", "&", "|", "a-c", "c-a"}
	inName := []string{"a", "a", "b", "b", "c", "-", "!", "^", "]", "[", "/", "\\", "é", "&", "\n"}
	var pairs [][2]string
	var got []bool
	refused, matched := 0, 0
	for len(pairs) < 50_000 {
		pattern := word(inPattern, 9)
		p, err := Compile(pattern)
		if err != nil {
			refused++
			continue
		}
		for range 5 {
			name := word(inName, 5)
			pairs = append(pairs, [2]string{pattern, name})
			got = append(got, p.Match(name))
			if got[len(got)-1] {
				matched++
			}
		}
	}
	input, err := json.Marshal(pairs)
	if err != nil {
		t.Fatal(err)
	}
	const program = "import fnmatch, json, sys; json.dump([fnmatch.fnmatchcase(n, p) for p, n in " +
		"json.load(sys.stdin)], sys.stdout)"
	cmd := exec.Command(python3, "-c", program)
	cmd.Stdin = strings.NewReader(string(input))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []bool
	if err := json.Unmarshal(out, &want); err != nil || len(want) != len(pairs) {
		t.Fatalf("%d answers: %v", len(want), err)
	}
	for i, pair := range pairs {
		if got[i] != want[i] {
			t.Errorf("pattern %q, name %q: Python says %v", pair[0], pair[1], want[i])
		}
	}
	if matched < len(pairs)/20 {
		t.Errorf("%d of %d pairs match; the mixture proves little", matched, len(pairs))
	}
	t.Logf("%d pairs, %d of them match; %d patterns refused", len(pairs), matched, refused)
}

// FuzzMatch holds for every pattern: no panic, and a name matches the pattern that has each of its characters
// in a set.
func FuzzMatch(f *testing.F) {
	f.Add("f[!3]*-x", "f4-x")
	f.Add("[]-a]", "]")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if p, err := Compile(pattern); err == nil {
			p.Match(name)
		}
		literal := strings.NewReplacer("*", "[*]", "?", "[?]", "[", "[[]").Replace(name)
		p, err := Compile(literal)
		if err != nil || !p.Match(name) {
			t.Errorf("%q does not match itself, written as %q: %v", name, literal, err)
		}
	})
}
