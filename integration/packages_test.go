package integration

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The versions that are built: an upgrade goes from the one to the other.
const oldVersion, newVersion = "1.0.0~rc1", "1.0.0+3.gabcdef0"

// packages is a directory with the packages of one version.
type packages string

// buildPackages runs packaging/build in the directory top.
func buildPackages(top, out, version string, env ...string) (packages, error) {
	cmd := exec.Command(filepath.Join(top, "packaging", "build"), out)
	cmd.Env = append(append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH=1700000000"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("packaging/build: %w\n%s", err, text)
	}
	return packages(out), nil
}

var oldPackages = sync.OnceValues(func() (packages, error) {
	return buildPackages("..", filepath.Join(scratch, "old"), oldVersion)
})

var newPackages = sync.OnceValues(func() (packages, error) {
	return buildPackages("..", filepath.Join(scratch, "new"), newVersion)
})

// built gives both versions.
func built(t testing.TB) (older, newer packages) {
	t.Helper()
	older, err := oldPackages()
	if err == nil {
		newer, err = newPackages()
	}
	if err != nil {
		t.Fatal(err)
	}
	return older, newer
}

// file is the package's only file that matches.
func (p packages) file(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(string(p), pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: want one file %s, got %v %v", p, pattern, found, err)
	}
	return found[0]
}

func (p packages) deb(t testing.TB) string { return p.file(t, "koji-relay_*.deb") }

func (p packages) pluginDeb(t testing.TB) string { return p.file(t, "koji-relay-hub-plugin_*.deb") }

func (p packages) rpm(t testing.TB) string { return p.file(t, "koji-relay-1*.rpm") }

func (p packages) pluginRPM(t testing.TB) string { return p.file(t, "koji-relay-hub-plugin-*.rpm") }

// TestPackagesAreReproducible builds once more, elsewhere, later, and as someone else.
func TestPackagesAreReproducible(t *testing.T) {
	t.Parallel()
	if _, err := where(); err != nil {
		skipOrFail(t, "the packages are tried where servers are: %v", err)
	}
	_, first := built(t)
	top := filepath.Join(t.TempDir(), "a copy") // with a space, as a home directory may have
	copySources(t, top)
	second, err := buildPackages(top, t.TempDir(), newVersion, "TZ=Asia/Kathmandu", "LANG=C.UTF-8",
		"HOSTNAME=elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"koji-relay_*.deb", "koji-relay-hub-plugin_*.deb", "koji-relay-1*.rpm",
		"koji-relay-hub-plugin-*.rpm"} {
		a, b := first.file(t, pattern), second.file(t, pattern)
		if filepath.Base(a) != filepath.Base(b) || fileSum(t, a) != fileSum(t, b) {
			t.Errorf("%s and %s, of the same sources, differ", a, b)
		}
	}
}

// copySources copies what git knows or would, with the tools that are built already.
func copySources(t testing.TB, top string) {
	t.Helper()
	script := `mkdir -p "$1/.cache/bin"; cp .cache/bin/nfpm-* "$1/.cache/bin/" || true
	git ls-files -z --cached --others --exclude-standard |
	xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' - |
		tar --null -T - -c | (umask 077; tar -x --no-same-permissions -C "$1")`
	cmd := exec.Command("sh", "-ec", script, "-", top)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy the sources: %v\n%s", err, out)
	}
}

func fileSum(t testing.TB, path string) [sha256.Size]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(text)
}

// TestVendorArchiveIsCompleteAndReproducible: with it, no module has to be fetched.
func TestVendorArchiveIsCompleteAndReproducible(t *testing.T) {
	t.Parallel()
	if _, err := where(); err != nil {
		skipOrFail(t, "the packages are tried where servers are: %v", err)
	}
	archive := func(dir string) string {
		cmd := exec.Command("../packaging/vendor-archive", dir)
		cmd.Env = append(os.Environ(), "VERSION="+newVersion, "SOURCE_DATE_EPOCH=1700000000")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("packaging/vendor-archive: %v\n%s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	first, second := archive(t.TempDir()), archive(t.TempDir())
	if fileSum(t, first) != fileSum(t, second) {
		t.Errorf("%s and %s, of the same sources, differ", first, second)
	}
	top := t.TempDir()
	copySources(t, top)
	if out, err := exec.Command("tar", "-xzf", first, "-C", top).CombinedOutput(); err != nil {
		t.Fatalf("unpack the archive: %v\n%s", err, out)
	}
	// Every package of the program and of its tests is found. Compiling all of it again would show no more.
	list := exec.Command("go", "list", "-mod=vendor", "-deps", "-test", "./...")
	list.Dir = top
	list.Env = append(os.Environ(), "GOPROXY=off", "GOMODCACHE="+t.TempDir(), "GOFLAGS=")
	if out, err := list.CombinedOutput(); err != nil {
		t.Errorf("the dependencies are not complete: %v\n%s", err, out)
	}
}
