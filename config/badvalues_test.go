package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// badValue is a value that a key cannot have, with what an administrator is told.
type badValue struct{ value, said string }

// badValues has each key once or more. Of two keys any text may be right; other parts find what is not.
var badValues = map[string][]badValue{
	"broker.urls":   {{"-1", "not a host name"}},
	"broker.cert":   {{"client.pem", "not an absolute path; begin it with /"}},
	"broker.key":    {{"client.key", "not an absolute path; begin it with /"}},
	"broker.cacert": {{"ca.pem", "not an absolute path; begin it with /"}},
	"broker.legacy_tls": {{"many", "neither on nor off; write on or off"},
		{"on # as before", "write on or off; a comment after a value is a part of it"}},
	"broker.topic_prefix":     {{"", "empty"}, {"http://x", "begins with neither topic:// nor /"}},
	"broker.virtual_host":     {{"", ""}}, // the broker refuses it: TestRefusedVirtualHostIsToldApart
	"broker.connect_timeout":  {{"many", "not a whole number"}, {"0", "from 1 "}},
	"broker.send_timeout":     {{"many", "not a whole number"}, {"0", "from 1 "}},
	"broker.test_mode":        {{"many", "neither on nor off; write on or off"}},
	"broker.test_mode_fail":   {{"many", "not a whole number"}, {"101", "from 0 to 100"}},
	"broker.url_order":        {{"many", "write listed or random"}},
	"broker.dialect":          {{"many", "not one of its values; write auto,"}},
	"broker.sasl":             {{"many", "write auto, plain, external or anonymous"}},
	"broker.user_file":        {{"/etc/user", "set without password_file; set both or none"}},
	"broker.password_file":    {{"/etc/password", "set without user_file; set both or none"}},
	"broker.unroutable":       {{"many", "write queue or drop"}},
	"broker.idle_timeout":     {{"many", "not a number; write it with digits"}},
	"message.extra_limit":     {{"many", "not a whole number; write digits only"}},
	"message.extra_keep":      {{"a,b", "separate the words of a list by spaces"}},
	"message.ttl":             {{"many", "not a number; write it with digits"}, {"-1", "from 0 to"}},
	"message.events":          {{"postTga", "matches none of Koji's callbacks"}, {"a,b", "a comma in it"}},
	"message.exclude_tags":    {{"a,b", "separate the words of a list by spaces"}},
	"message.durable":         {{"many", "neither on nor off; write on or off"}},
	"message.priority":        {{"many", "not a whole number"}, {"256", "to 255"}},
	"message.body_section":    {{"many", "write value or data"}},
	"queue.enabled":           {{"many", "neither on nor off; write on or off"}},
	"queue.store":             {{"many", "write postgres or file"}},
	"queue.database":          {{"many", `neither "hub" nor a connection string`}},
	"queue.path":              {{"queue.db", "not an absolute path; begin it with /"}},
	"queue.batch_size":        {{"many", "not a whole number"}, {"0", "from 1 "}},
	"queue.batch_bytes":       {{"many", "not a whole number"}, {"1", "from 1024 "}},
	"queue.max_age":           {{"many", "not a whole number"}, {"-1", "from 0 to"}},
	"queue.age":               {{"many", "not a whole number"}},
	"queue.expired":           {{"many", "write drop or dead_letter"}},
	"queue.dead_max_age":      {{"many", "not a whole number"}, {"0", "from 1 "}},
	"queue.max_bytes":         {{"many", "not a whole number"}},
	"queue.preserve_order":    {{"many", "neither on nor off; write on or off"}},
	"queue.max_attempts":      {{"many", "not a whole number"}, {"0", "from 1 "}},
	"queue.interval":          {{"many", "not a number"}, {"0", "from 0.1 "}},
	"queue.store_timeout":     {{"many", "not a number"}, {"0", "from 0.01 "}},
	"queue.rate_limit":        {{"many", "not a whole number"}},
	"history.keep":            {{"many", "not a whole number"}},
	"history.max_bytes":       {{"many", "not a whole number"}, {"1", "from 1048576 "}},
	"history.store":           {{"many", "write queue or file"}},
	"history.path":            {{"history", "not an absolute path; begin it with /"}},
	"relay.name":              {{"New Bus", "not a name; write up to 31 of a-z"}},
	"relay.socket":            {{"hub.sock", "not an absolute path; begin it with /"}},
	"relay.socket_group":      {{"", ""}}, // the host has no such group: TestSocketFile
	"relay.socket_mode":       {{"many", "not a file mode; write it in octal"}},
	"relay.listen":            {{"127.0.0.1:1", "retired, not read; the hub hands over on"}},
	"relay.token_file":        {{"/etc/token", "retired, not read; the hub hands over on"}},
	"relay.control":           {{"control.sock", "not an absolute path; begin it with /"}},
	"relay.admin":             {{"many", "not host:port; write it like"}, {"10.0.0.1:9763", "loopback"}},
	"relay.handoff_timeout":   {{"many", "not a number"}, {"0", "from 0.01 "}},
	"relay.max_request_bytes": {{"many", "not a whole number"}, {"1", "from 1024 "}},
	"relay.max_inflight_bytes": {
		{"many", "not a whole number"}, {"1", "from 1024 "}},
	"relay.log_level":  {{"many", "write debug, info, warn or error"}},
	"relay.log_format": {{"many", "write auto, journal, text or json"}},
}

// TestEveryKeyHasABadValueAndAnError: a key that is new needs a row.
func TestEveryKeyHasABadValueAndAnError(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	for i := range keys {
		known[keys[i].id()] = true
		if len(badValues[keys[i].id()]) == 0 {
			t.Errorf("%s has no bad value in this table", keys[i].id())
		}
	}
	for id, rows := range badValues {
		if !known[id] {
			t.Errorf("%s is no key", id)
		}
		for _, bad := range rows {
			if bad.said == "" {
				continue
			}
			found := said(t, id, bad.value)
			section, key, _ := strings.Cut(id, ".")
			if !slices.ContainsFunc(found, func(line string) bool {
				return strings.Contains(line, fmt.Sprintf("[%s] %s", section, key)) && strings.Contains(line, bad.said)
			}) {
				t.Errorf("%s = %s: it says %q, not %q", id, bad.value, found, bad.said)
			}
		}
	}
}

// said is every problem and warning of a file with one key set.
func said(t *testing.T, id, value string) (lines []string) {
	t.Helper()
	sections := map[string]map[string]string{"broker": {"urls": "amqp://broker", "topic_prefix": "topic://koji"}}
	section, key, _ := strings.Cut(id, ".")
	if sections[section] == nil {
		sections[section] = make(map[string]string)
	}
	sections[section][key] = value
	var text strings.Builder
	for name, settings := range sections {
		fmt.Fprintf(&text, "[%s]\n", name)
		for key, value := range settings {
			fmt.Fprintf(&text, "%s = %s\n", key, value)
		}
	}
	cfg, err := parse("protonmsg.conf", text.String())
	var found *Error
	switch {
	case err == nil:
		found = &Error{Warnings: cfg.Warnings}
	case !errors.As(err, &found):
		t.Fatalf("load: %v", err)
	}
	for _, p := range append(found.Problems, found.Warnings...) {
		lines = append(lines, p.String())
	}
	return lines
}
