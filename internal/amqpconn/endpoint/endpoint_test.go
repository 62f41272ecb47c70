package endpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestURLIsReadAsNameAddressAndHost(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]Endpoint{
		"amqp://b":               {Name: "b:5672", Address: "b:5672", Host: "b"},
		"amqps://b":              {Name: "b:5671", Address: "b:5671", Host: "b", TLS: true},
		"amqps://b:5000/":        {Name: "b:5000", Address: "b:5000", Host: "b", TLS: true},
		"amqp://[2001:db8::1]:1": {Name: "[2001:db8::1]:1", Address: "[2001:db8::1]:1", Host: "2001:db8::1"},
		"amqp://b/k%2Foji":       {Name: "b:5672/k/oji", Address: "b:5672", Host: "b", VirtualHost: "k/oji"},
		"amqp://u%40x:s%3A3@b":   {Name: "b:5672", Address: "b:5672", Host: "b", user: "u@x", password: "s:3"},
	} {
		if got, err := Parse(raw); err != nil || got != want {
			t.Errorf("%s is read as %+v, %v", raw, got, err)
		}
	}
}

func TestErrorsDoNotRepeatTheURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"amqp://u:s3%cret@b": "it is not a URL", "http://u:s3cret@b": `"http" is not amqp or amqps`,
		"amqp://u:s3cret@": "names no host",
	} {
		_, err := Parse(raw)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: %v does not say %q", raw, err, want)
		}
	}
}

func TestCredentialsAreTheURLsOrThoseOfFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	user, password, empty := file("user", "koji\n"), file("password", "s3cret\r\n"), file("empty", "\n")
	for _, row := range []struct{ url, user, password, want, wrong string }{
		{"amqp://b", "", "", " ", ""},
		{"amqp://b", user, password, "koji s3cret", ""},
		{"amqp://u:p@b", user, password, "u p", ""},
		{"amqp://b", user, empty, "", "empty is empty"},
		{"amqp://b", dir + "/absent", "", "", "read user_file: open"},
	} {
		e, err := Parse(row.url)
		if err != nil {
			t.Fatal(err)
		}
		u, p, err := e.Credentials(row.user, row.password)
		switch {
		case row.wrong == "" && (err != nil || u+" "+p != row.want):
			t.Errorf("%+v: %q, %q, %v", row, u, p, err)
		case row.wrong != "" && (err == nil || !strings.Contains(err.Error(), row.wrong)):
			t.Errorf("%+v: %v", row, err)
		}
	}
}
