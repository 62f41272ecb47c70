//go:build !failpoints

// Package failpoint lets a test kill the program between two named steps. It promises that a build without
// the tag failpoints contains nothing of it; it never does anything but kill its own process.
package failpoint

// Enabled says whether this build can be killed at a failpoint.
const Enabled = false

// Hit does nothing in this build.
func Hit(string) {}
