package integration

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
)

// TestPackagesSayWhatIsInside: the bill of materials and the licences that are installed name each module
// that is linked into the installed program, and no other. The program itself is asked.
func TestPackagesSayWhatIsInside(t *testing.T) {
	t.Parallel()
	if _, err := where(); err != nil {
		skipOrFail(t, "the packages are tried where servers are: %v", err)
	}
	_, newer := built(t)
	for kind, unpack := range map[string][]string{
		"deb": {"dpkg-deb", "--fsys-tarfile", newer.deb(t)},
		"rpm": {"sh", "-ec", `d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
			rpm2cpio "$0" | (cd "$d"; cpio --quiet -id --no-absolute-filenames); tar -C "$d" -c .`, newer.rpm(t)},
	} {
		t.Run(kind, func(t *testing.T) {
			files := unpacked(t, unpack)
			program := files["koji-relay"]
			info, err := buildinfo.Read(bytes.NewReader(program))
			if err != nil {
				t.Fatalf("read the modules of the installed program: %v", err)
			}
			library := strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go")
			linked := map[string]bool{"pkg:golang/std@" + library: true}
			for _, m := range info.Deps {
				if m.Replace != nil {
					m = m.Replace
				}
				linked["pkg:golang/"+m.Path+"@"+m.Version] = true
			}

			var bill struct {
				BOMFormat  string `json:"bomFormat"`
				Metadata   struct{ Component struct{ Version string } }
				Components []struct {
					PURL     string `json:"purl"`
					Licenses []struct{ License struct{ ID string } }
				}
			}
			if err := json.Unmarshal(files["koji-relay.cdx.json"], &bill); err != nil {
				t.Fatalf("the bill of materials: %v", err)
			}
			if bill.BOMFormat != "CycloneDX" || bill.Metadata.Component.Version != newVersion {
				t.Errorf("a bill of materials in %q, of version %q; want CycloneDX and %s", bill.BOMFormat,
					bill.Metadata.Component.Version, newVersion)
			}
			texts := string(files["THIRD-PARTY-LICENSES"])
			for _, c := range bill.Components {
				if !linked[c.PURL] {
					t.Errorf("%s is in the bill of materials and not in the program", c.PURL)
				}
				delete(linked, c.PURL)
				if len(c.Licenses) == 0 {
					t.Errorf("%s has no licence", c.PURL)
				}
				module, version, _ := strings.Cut(strings.TrimPrefix(c.PURL, "pkg:golang/"), "@")
				if !strings.Contains(texts, "\n==== "+module+" "+version+": ") {
					t.Errorf("no licence text of %s", c.PURL)
				}
			}
			for purl := range linked {
				t.Errorf("%s is in the program and not in the bill of materials", purl)
			}
		})
	}
}

// unpacked gives the files of a package by their base names. Shared names are not looked for.
func unpacked(t testing.TB, command []string) map[string][]byte {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		t.Fatalf("unpack with %v: %v", command, err)
	}
	files := make(map[string][]byte)
	for archive := tar.NewReader(bytes.NewReader(out)); ; {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		name := path.Base(head.Name)
		if name == "koji-relay" && path.Base(path.Dir(head.Name)) != "bin" {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = content
	}
}
