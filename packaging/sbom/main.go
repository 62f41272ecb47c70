// Command sbom says what is inside a built koji-relay: a bill of materials in CycloneDX, and the licences and
// notices of everything that is linked into it. It reads the program itself for the modules, and the modules'
// sources, in the module cache or in vendor/, for their texts. It needs no network. The same program gives
// the same bytes.
//
//	go run ./packaging/sbom PROGRAM VERSION DIRECTORY
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/licensecheck"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM VERSION DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// part is a module that is linked into the program, with the texts that have to go with it.
type part struct {
	module, version, sum string
	texts                []text
	licences             []string // SPDX identifiers
}

// text is one licence or notice file.
type text struct {
	name    string
	content []byte
}

func run(program, version, out string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read the modules of %s: %w", program, err)
	}
	parts, err := partsOf(info)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := write(filepath.Join(out, "koji-relay.cdx.json"),
		func(w io.Writer) error { return writeBill(w, version, parts) }); err != nil {
		return err
	}
	return write(filepath.Join(out, "THIRD-PARTY-LICENSES"),
		func(w io.Writer) error { return writeTexts(w, parts) })
}

func write(path string, content func(io.Writer) error) error {
	var b bytes.Buffer
	if err := content(&b); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// partsOf lists Go's own library and every module of the program. Each has a licence that is known, or it is
// an error: what may not be passed on must not be shipped unnoticed.
func partsOf(info *debug.BuildInfo) ([]part, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("ask go for its directory: %w", err)
	}
	dirs, err := moduleDirs(info.Path)
	if err != nil {
		return nil, err
	}
	dirs["std"] = strings.TrimSpace(string(root))
	parts := []part{{module: "std", version: strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go")}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		parts = append(parts, part{module: m.Path, version: m.Version, sum: m.Sum})
	}
	var errs []error
	for i := range parts {
		errs = append(errs, parts[i].read(dirs[parts[i].module]))
	}
	return parts, errors.Join(errs...)
}

// moduleDirs says where the sources of each module lie from which the package path is built.
func moduleDirs(path string) (map[string]string, error) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Module", path).Output()
	if err != nil {
		return nil, fmt.Errorf("ask go for the sources of %s: %w", path, err)
	}
	dirs := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir string
			Module          *struct{ Path string }
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return dirs, nil
		} else if err != nil {
			return nil, fmt.Errorf("read go's list of packages: %w", err)
		}
		if p.Module != nil {
			dirs[p.Module.Path] = strings.TrimSuffix(p.Dir, strings.TrimPrefix(p.ImportPath, p.Module.Path))
		}
	}
}

var textFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// read finds the licence and notice files in dir, and which licences they are.
func (p *part) read(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for the licence of %s: %w", p.module, err)
	}
	for _, e := range entries {
		if !textFile.MatchString(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("read the licence of %s: %w", p.module, err)
		}
		p.texts = append(p.texts, text{e.Name(), content})
		if strings.HasPrefix(strings.ToLower(e.Name()), "patents") {
			continue // a grant beside the licence
		}
		for _, m := range licensecheck.Scan(content).Match {
			if !m.IsURL && !slices.Contains(p.licences, m.ID) {
				p.licences = append(p.licences, m.ID)
			}
		}
	}
	if len(p.licences) == 0 {
		return fmt.Errorf("%s %s: no licence that is known in %s: look at it, and drop the module if need be",
			p.module, p.version, dir)
	}
	slices.Sort(p.licences)
	return nil
}

// writeBill writes the bill of materials. It has no serial number and no time, which no build would have
// again.
func writeBill(w io.Writer, version string, parts []part) error {
	bill := cdx.NewBOM()
	bill.Metadata = &cdx.Metadata{Component: &cdx.Component{
		BOMRef: "koji-relay", Type: cdx.ComponentTypeApplication, Name: "koji-relay", Version: version,
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	}}
	var components []cdx.Component
	var refs []string
	for _, p := range parts {
		ref := "pkg:golang/" + p.module + "@" + p.version
		c := cdx.Component{BOMRef: ref, PackageURL: ref, Type: cdx.ComponentTypeLibrary, Name: p.module,
			Version: p.version}
		var licences cdx.Licenses
		for _, id := range p.licences {
			licences = append(licences, cdx.LicenseChoice{License: &cdx.License{ID: id}})
		}
		c.Licenses = &licences
		if p.sum != "" {
			c.Properties = &[]cdx.Property{{Name: "go.sum", Value: p.sum}}
		}
		components = append(components, c)
		refs = append(refs, ref)
	}
	bill.Components = &components
	bill.Dependencies = &[]cdx.Dependency{{Ref: "koji-relay", Dependencies: &refs}}
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bill)
}

// writeTexts writes all licences and notices into one file.
func writeTexts(w io.Writer, parts []part) error {
	fmt.Fprint(w, "koji-relay is linked with the modules below. Their licences and notices follow.\n\n")
	for _, p := range parts {
		fmt.Fprintf(w, "%s %s: %s\n", p.module, p.version, strings.Join(p.licences, ", "))
	}
	for _, p := range parts {
		for _, t := range p.texts {
			fmt.Fprintf(w, "\n\n==== %s %s: %s ====\n\n%s", p.module, p.version, t.name, t.content)
		}
	}
	return nil
}
