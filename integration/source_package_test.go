package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSourcePackage makes the source package from the last commit and builds it without network, as a build
// system of a distribution would. Its packages have the files and scripts of those that packaging/build
// makes. The tests in its %check are left out: make test has run them.
func TestSourcePackage(t *testing.T) {
	t.Parallel()
	if _, err := where(); err != nil {
		skipOrFail(t, "the packages are tried where servers are: %v", err)
	}
	_, newer := built(t)
	out, top := t.TempDir(), t.TempDir()
	run := func(env []string, name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), env...)
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		return string(text)
	}
	run([]string{"VERSION=" + newVersion, "SOURCE_DATE_EPOCH=1700000000"}, "../packaging/srpm", out)
	source := packages(out).file(t, "*.src.rpm")
	// No module may come from elsewhere: the cache is empty, and no proxy is asked.
	run([]string{"GOPROXY=off", "GOFLAGS=", "GOMODCACHE=" + t.TempDir()},
		"rpmbuild", "--quiet", "--rebuild", "--nodeps", "--nocheck", "-D", "_topdir "+top, source)
	rpms, err := filepath.Glob(filepath.Join(top, "RPMS", "*", "*.rpm"))
	if err != nil || len(rpms) != 4 {
		t.Fatalf("rpmbuild made %v %v, want relay, hub plugin, documents and SELinux policy", rpms, err)
	}

	lint := exec.Command("rpmlint", append([]string{"-r", "../packaging/rpm/koji-relay.rpmlintrc", source},
		rpms...)...)
	if text, err := lint.CombinedOutput(); err != nil ||
		!strings.Contains(string(text), " 0 errors, 0 warnings") {
		t.Errorf("rpmlint complains: %v\n%s", err, text)
	}

	pick := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(top, "RPMS", "*", pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("want one package %s, got %v %v", pattern, found, err)
		}
		return found[0]
	}
	files := func(rpms ...string) []string {
		var all []string
		for _, file := range rpms {
			const format = `[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]`
			for line := range strings.Lines(run(nil, "rpm", "-qp", "--qf", format, file)) {
				// rpmbuild names the directories of documents too.
				if !strings.HasPrefix(line, "d") || strings.Contains(line, " /etc/") {
					all = append(all, strings.TrimSpace(line))
				}
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	relay, docs, plugin := pick("koji-relay-1*.rpm"), pick("koji-relay-doc-*.rpm"),
		pick("koji-relay-hub-plugin-*.rpm")
	own := func(line string) bool { return strings.Contains(line, "/licenses/koji-relay-doc/") }
	for what, pair := range map[string][2][]string{
		"relay and documents": {files(newer.rpm(t)), slices.DeleteFunc(files(relay, docs), own)},
		"hub plugin":          {files(newer.pluginRPM(t)), files(plugin)},
	} {
		if !slices.Equal(pair[0], pair[1]) {
			t.Errorf("%s: the packages have other files:\nnfpm     %s\nrpmbuild %s", what,
				strings.Join(pair[0], "\n         "), strings.Join(pair[1], "\n         "))
		}
	}
	scripts := func(file string) string {
		return strings.TrimSpace(run(nil, "rpm", "-qp", "--qf", "%{POSTIN}\n%{PREUN}\n%{POSTUN}", file))
	}
	// Where the distribution has systemd's macros they take the scripts' place; Debian has none.
	if a, b := scripts(newer.rpm(t)), scripts(relay); stripComments(a) != stripComments(b) {
		t.Errorf("the packages have other scripts:\n%s\n\nand\n%s", a, b)
	}
	config := func(file string) string { return run(nil, "rpm", "-qp", "--configfiles", file) }
	if a, b := config(newer.pluginRPM(t)), config(plugin); a != b || a == "" {
		t.Errorf("the hub plugin's configuration files: %q and %q", a, b)
	}
}

// stripComments drops comment and blank lines of a shell script.
func stripComments(script string) string {
	var kept []string
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}
