package config

import (
	"fmt"
	"os"
	"strings"
)

// HubConfigPath is where the hub has its configuration, unless its web server names another file
// (koji.hub.ConfigFile), which nothing outside the hub can see.
const HubConfigPath = "/etc/koji-hub/hub.conf"

// DatabaseConn says how to connect to the queue's database: [queue] database, with "hub" looked up in the
// hub's configuration.
func (c *Config) DatabaseConn() (ConnString, error) {
	if c.Queue.Database == HubDatabase {
		return LoadHubDatabase(HubConfigPath)
	}
	return c.Queue.Database, nil
}

// LoadHubDatabase takes the database connection from the hub's configuration, as the hub itself reads it:
// first *.conf of path + ".d" in the order of their names, then path, each overriding what came before,
// without interpolation. An error is the operating system's, wrapped, or an *Error.
func LoadHubDatabase(path string) (ConnString, error) {
	doc, err := readHub(path)
	if err != nil {
		return "", err
	}
	if len(doc.problems) > 0 {
		return "", &Error{Problems: doc.problems}
	}
	// The hub takes an empty DBConnectionString for none.
	if dsn := hubValue(doc, "DBConnectionString"); dsn != "" {
		return ConnString(dsn), nil
	}
	port := hubValue(doc, "DBPort")
	if e := doc.lookup("hub", "dbport"); e != nil {
		n, err := whole(1, 65535)(e.raw)
		if err != nil {
			return "", &Error{Problems: []Problem{{File: e.place.file, Line: e.place.line, Section: "hub",
				Key: "DBPort", Value: oneLine(e.raw), Text: err.Error()}}}
		}
		port = fmt.Sprint(n)
	}
	var words []string
	for _, w := range [][2]string{
		{"dbname", hubValue(doc, "DBName")}, {"user", hubValue(doc, "DBUser")},
		{"password", hubValue(doc, "DBPass")}, {"host", hubValue(doc, "DBHost")}, {"port", port},
	} {
		if w[1] != "" { // libpq takes an empty value for its default
			words = append(words, w[0]+"="+quoteLibpq(w[1]))
		}
	}
	if hubValue(doc, "DBName") == "" {
		return "", &Error{Problems: []Problem{{File: path, Section: "hub", Key: "DBName",
			Text: "missing, and so is DBConnectionString; set one of them"}}}
	}
	return ConnString(strings.Join(words, " ")), nil
}

func readHub(path string) (*document, error) {
	files, err := configFiles(path + ".d")
	if err != nil {
		return nil, fmt.Errorf("read the hub's configuration: %w", err)
	}
	doc := newDocument()
	for _, file := range append(files, path) {
		text, err := os.ReadFile(file)
		if err != nil {
			// The hub would pass over a file of its .d that it may not read; here that would mean
			// another database than the hub's.
			return nil, fmt.Errorf("read the hub's configuration: %w", err)
		}
		doc.read(file, text)
	}
	return doc, nil
}

// hubValue is raw: the hub reads its configuration without interpolation.
func hubValue(doc *document, name string) string {
	if e := doc.lookup("hub", strings.ToLower(name)); e != nil {
		return e.raw
	}
	return ""
}

func quoteLibpq(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}
