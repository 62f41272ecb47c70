package config

import (
	"net/url"
	"regexp"
	"strings"
)

// ConnString says how to connect to PostgreSQL: a URL or libpq's keyword=value form. It prints masked with
// every verb; Reveal gives the real thing.
type ConnString string

// HubDatabase is the value of [queue] database that means: the hub's own, from its configuration.
const HubDatabase ConnString = "hub"

// Reveal is the connection string with its password; it must not be printed.
func (c ConnString) Reveal() string { return string(c) }

// hasPassword reports whether a password stands in it.
func (c ConnString) hasPassword() bool { return passwordInIt.MatchString(string(c)) }

var passwordInIt = regexp.MustCompile(`(?i)^postgres(ql)?://[^/@]*:[^@]+@|\b(ssl)?password\s*=\s*[^\s]`)

// String masks user and password.
func (c ConnString) String() string { return maskConnString(string(c)) }

// GoString keeps %#v from printing what String masks.
func (c ConnString) GoString() string { return c.String() }

// MarshalText keeps encoders from printing what String masks.
func (c ConnString) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

var keywordSecret = regexp.MustCompile(
	`(?i)\b(user|password|passfile|sslpassword)(\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)+)`)

func isPostgresURL(text string) bool {
	return strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://")
}

func maskConnString(text string) string {
	if !isPostgresURL(text) {
		return keywordSecret.ReplaceAllString(text, "$1$2"+mask)
	}
	scheme, rest, _ := strings.Cut(text, "://")
	authority, query, hasQuery := strings.Cut(rest, "?")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		authority = mask + "@" + authority[at+1:]
	}
	if hasQuery {
		query = "?" + regexp.MustCompile(`(?i)\b(user|password|sslpassword)=[^&]*`).ReplaceAllString(query,
			"$1="+mask)
	}
	return scheme + "://" + authority + query
}

func parseConnString(text string) (ConnString, error) {
	switch {
	case text == "":
		return "", bad(`empty; write hub, or a connection string such as host=db.example.com dbname=koji user=koji`)
	case strings.EqualFold(text, string(HubDatabase)):
		return HubDatabase, nil
	case isPostgresURL(text):
		if _, err := url.Parse(text); err != nil {
			return "", bad("not a PostgreSQL URL; write postgres://user:password@host/database, with : / @ %% in " +
				"the password percent-encoded (and each %% of it doubled in this file)")
		}
		return ConnString(text), nil
	case !strings.Contains(text, "="):
		return "", bad(`neither "hub" nor a connection string; write hub, or for example: ` +
			`host=db.example.com dbname=koji user=koji`)
	}
	return ConnString(text), nil
}
