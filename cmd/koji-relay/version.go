package main

import "runtime/debug"

// version is set by the packages' build (-ldflags "-X main.version=1.2.3").
var version string

// programVersion is what --version prints and every metric and AMQP connection says.
func programVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}
