package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pythonFile is one line of testdata/python/dump.py.
type pythonFile struct {
	Error    string
	Line     int
	Sections []struct {
		Name     string
		Settings map[string]pythonSetting
	}
}

type pythonSetting struct {
	Raw   string
	Value *string // nil: an interpolation error
	Int   string  // Python's repr, or "error"
	Float string
	Bool  string
}

// python runs ConfigParser over all paths in one process.
func python(t *testing.T, paths []string) []pythonFile {
	t.Helper()
	python3, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
			t.Fatalf("python3 is needed to compare with: %v", err)
		}
		t.Skipf("python3 is needed to compare with: %v", err)
	}
	cmd := exec.Command(python3, "testdata/python/dump.py")
	cmd.Env = append(os.Environ(), "PYTHONIOENCODING=utf8")
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\x00"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run dump.py: %v\n%s", err, stderr.String())
	}
	var files []pythonFile
	for decoder := json.NewDecoder(bytes.NewReader(out)); decoder.More(); {
		var f pythonFile
		if err := decoder.Decode(&f); err != nil {
			t.Fatalf("read dump.py's output: %v", err)
		}
		files = append(files, f)
	}
	if len(files) != len(paths) {
		t.Fatalf("dump.py answered for %d of %d files", len(files), len(paths))
	}
	return files
}

func TestParserAgreesWithPythonOnAwkwardFiles(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/python/*.conf")
	if err != nil || len(paths) < 30 {
		t.Fatalf("found %d awkward files: %v", len(paths), err)
	}
	example := filepath.Join("..", "protonmsg.conf.example")
	if _, err := os.Stat(example); err == nil {
		paths = append(paths, example)
	}
	paths = append(paths, "testdata/python/conf.d")
	for i, want := range python(t, paths) {
		t.Run(filepath.Base(paths[i]), func(t *testing.T) {
			t.Parallel()
			compareWithPython(t, paths[i], want)
		})
	}
}

// Lines that meet in every order find what nobody thought of writing into a file.
func TestParserAgreesWithPythonOnRandomFiles(t *testing.T) {
	t.Parallel()
	const files = 1500
	random := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	paths := make([]string, files)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf("%04d.conf", i))
		if err := os.WriteFile(paths[i], []byte(randomFile(random)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused, stricter := 0, 0
	for i, want := range python(t, paths) {
		if want.Error != "" {
			refused++
		}
		if compareWithPython(t, paths[i], want) {
			stricter++
		}
		if t.Failed() {
			text, _ := os.ReadFile(paths[i])
			t.Fatalf("the first file that differs:\n%q", text)
		}
	}
	if refused < files/20 || refused > files*19/20 {
		t.Errorf("Python refused %d of %d files; the mixture proves little", refused, files)
	}
	// Of what is picked at random here much more is awkward than of what people write.
	if stricter == 0 || stricter > files/10 {
		t.Errorf("%d of %d files are refused by us alone", stricter, files)
	}
	t.Logf("of %d files Python refuses %d and we alone %d; none is read differently", files, refused, stricter)
}

// The library cuts off a value that does not fit into its buffer.
func TestLongValueIsReadWhole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "long.conf")
	text := "[broker]\nurls =\n" + strings.Repeat("  amqp://broker.example.com\n", 3000) +
		"topic_prefix = topic://koji\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if compareWithPython(t, path, python(t, []string{path})[0]) {
		t.Error("refused")
	}
}

func randomFile(random *rand.Rand) string {
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	var b strings.Builder
	if random.IntN(10) > 0 {
		b.WriteString("[broker]\n")
	}
	for range random.IntN(12) {
		b.WriteString(pick("", "", "", " ", "  ", "\t", "\x0c", "\u00a0", "\x1f"))
		switch random.IntN(24) {
		case 0: // what the library would take otherwise
			b.WriteString(pick("\"k\" = v", "`k` = v", "- = v", "[k = v", "[] = v", "É = v", "k\x1f = v", "k = `v",
				"k = \"\"\"v\"\"\""))
		case 1, 2:
			b.WriteString(pick("[queue]", "[broker]", "[DEFAULT]", "[ x ]", "[a] = b", "[]", "[a] # b", "[c"))
		case 3, 4:
			b.WriteString(pick("#", ";", "#x = 1", "; y"))
		case 5, 6:
		case 7, 8:
			b.WriteString(pick("stray", "= v", ": v", "=", "%"))
		default:
			b.WriteString(pick("a", "B", "b", "c d", "é", "urls", "x", "y", "z", "w", "v", "u") +
				pick("=", " = ", ":", " : ", "\t=") +
				pick("", "1", "v # w", "on", "'a", "\"b\"", "v\\", "[v]", "- w", "%%", "%(a)s", "%(b)s %(B)s", "%",
					"a = b", "'q'", "a\"\"\"", "a`", "\\", "1_0", "ü", "x\x00y", "%(c d)s"))
		}
		b.WriteString(pick("", "", " ", "\t"))
		b.WriteString(pick("\n", "\n", "\n", "\r\n", "\r"))
	}
	return b.String()
}

// compareWithPython holds the promise: the same as ConfigParser, or refused with file and line. It reports
// whether the file is refused by us alone.
func compareWithPython(t *testing.T, path string, want pythonFile) (stricter bool) {
	t.Helper()
	doc, err := readDocument(path)
	if err != nil {
		t.Fatal(err)
	}
	if want.Error == "" && len(doc.problems) > 0 {
		known := []string{openBracket, separatorChar, oddName, foreignName, quotedValue}
		for _, p := range doc.problems {
			if p.Line == 0 || !slices.Contains(known, p.Text) {
				t.Errorf("%s: Python takes it; we say %v", path, p)
			}
		}
		return true
	}
	if want.Error != "" {
		lines := make([]int, len(doc.problems))
		for i, p := range doc.problems {
			lines[i] = p.Line
		}
		if len(lines) == 0 || want.Line > 0 && !slices.Contains(lines, want.Line) {
			t.Errorf("%s: Python says %q on line %d; we say %v", path, want.Error, want.Line, doc.problems)
		}
		return false
	}
	var names, wantNames []string
	for _, s := range doc.sections {
		names = append(names, s.name)
	}
	for _, s := range want.Sections {
		wantNames = append(wantNames, s.Name)
		if doc.section(s.Name) == nil {
			continue // reported below
		}
		got := map[string]pythonSetting{}
		for _, name := range slices.Concat(doc.section(s.Name).order, doc.defaults.order) {
			got[name] = asPython(doc, s.Name, doc.lookup(s.Name, name))
		}
		for name, setting := range s.Settings {
			s.Settings[name] = comparable(setting)
		}
		if diff := cmp.Diff(s.Settings, got); diff != "" {
			t.Errorf("%s: section %q (-Python +ours):\n%s", path, s.Name, diff)
		}
	}
	if diff := cmp.Diff(wantNames, names); diff != "" {
		t.Errorf("%s: sections (-Python +ours):\n%s", path, diff)
	}
	return false
}

// asPython writes what our parsers make of an entry the way dump.py does.
func asPython(doc *document, section string, e *entry) pythonSetting {
	s := pythonSetting{Raw: e.raw, Int: "error", Float: "error", Bool: "error"}
	value, err := doc.expand(section, e)
	if err != nil {
		return s
	}
	s.Value = &value
	if n, err := parseInt(value); err == nil {
		s.Int = strconv.FormatInt(n, 10)
	}
	if f, err := parseFloat(value); err == nil {
		s.Float = strconv.FormatFloat(f, 'g', -1, 64)
	}
	if b, err := boolean(value); err == nil {
		s.Bool = map[bool]string{true: "True", false: "False"}[b]
	}
	return s
}

// comparable gives Python's floats Go's spelling, and takes out what we refuse on purpose: nan and inf in
// letters.
func comparable(s pythonSetting) pythonSetting {
	if s.Float == "error" {
		return s
	}
	f, _ := strconv.ParseFloat(s.Float, 64)
	switch {
	case s.Value != nil && strings.Trim(strings.ToLower(*s.Value), "+-infaty") == "":
		s.Float = "error"
	default:
		s.Float = strconv.FormatFloat(f, 'g', -1, 64)
	}
	if math.Abs(f) >= math.MaxInt64 && s.Int != "error" {
		n, _ := strconv.ParseInt(s.Int, 10, 64) // Python's integers have no end; ours saturate
		s.Int = strconv.FormatInt(n, 10)
	}
	return s
}
