package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

func TestBrokerURLIsReadAsProtonReadsIt(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]BrokerURL{
		"amqp://broker":                   {Host: "broker", Port: 5672},
		"amqps://broker":                  {TLS: true, Host: "broker", Port: 5671},
		"AMQPS://Broker.Example.COM:5673": {TLS: true, Host: "broker.example.com", Port: 5673},
		"broker":                          {Host: "broker", Port: 5672},
		"broker:5673":                     {Host: "broker", Port: 5673},
		"amqp://broker:amqps":             {Host: "broker", Port: 5671},
		"amqp://broker:":                  {Host: "broker", Port: 5672},
		"amqp://broker/":                  {Host: "broker", Port: 5672},
		"amqp://[2001:db8::1]":            {Host: "2001:db8::1", Port: 5672},
		"amqp://[::1]:5673":               {Host: "::1", Port: 5673},
		"amqp://user@broker":              {Host: "broker", Port: 5672, User: "user", HasUser: true},
		"amqp://user:pw@broker": {Host: "broker", Port: 5672, User: "user", HasUser: true,
			password: "pw"},
		"amqp://us%40er:p%3Aw%2f@broker": {Host: "broker", Port: 5672, User: "us@er", HasUser: true,
			password: "p:w/"},
		"amqp://user:p:w@broker": {Host: "broker", Port: 5672, User: "user", HasUser: true,
			password: "p:w"},
		"amqp://user:p@w@broker": {Host: "broker", Port: 5672, User: "user", HasUser: true,
			password: "p@w"},
		"amqp://user:50%@broker": {Host: "broker", Port: 5672, User: "user", HasUser: true,
			password: "50%"},
		"amqp://user:50%zz@broker": {Host: "broker", Port: 5672, User: "user", HasUser: true,
			password: "50%zz"},
		"amqp://user:a#b;c/d?e@broker:5673/x": {Host: "broker", Port: 5673, VirtualHost: "x", User: "user",
			HasUser: true, password: "a#b;c/d?e"},
		"amqps://broker/koji":           {TLS: true, Host: "broker", Port: 5671, VirtualHost: "koji"},
		"broker/koji":                   {Host: "broker", Port: 5672, VirtualHost: "koji"},
		"amqp://[::1]:5673/a%2Fb%20c?d": {Host: "::1", Port: 5673, VirtualHost: "a/b c"},
		"amqp://broker/%2F":             {Host: "broker", Port: 5672, VirtualHost: "/"},
		"user:pw@broker:5673":           {Host: "broker", Port: 5673, User: "user", HasUser: true, password: "pw"},
		"amqp://DOMAIN\\user:pw@broker": {Host: "broker", Port: 5672, User: `DOMAIN\user`, HasUser: true,
			password: "pw"},
	} {
		got, wrong := parseBrokerURL(text)
		if wrong != "" || got != want {
			t.Errorf("%s: %+v %q, want %+v", text, []any{got.Host, got.Port, got.User, got.password}, wrong,
				[]any{want.Host, want.Port, want.User, want.password})
		}
	}
}

func TestRevealedURLSaysTheSameToAnyParser(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"plain", "a#b;c/d?e", "50%", "p:w@x", "sp ace", "ümlaut", "%41"} {
		u := BrokerURL{TLS: true, Host: "broker", Port: 5671, User: "us/er", HasUser: true, password: password}
		parsed, err := url.Parse(u.Reveal())
		if err != nil {
			t.Errorf("%q: %v", password, err)
			continue
		}
		if parsed.Path != "" {
			t.Errorf("%q: path %q", password, parsed.Path)
		}
		if got, _ := parsed.User.Password(); got != password || parsed.User.Username() != "us/er" ||
			parsed.Host != "broker:5671" {
			t.Errorf("%q: came back as %q", password, got)
		}
	}
}

func TestRevealedURLKeepsTheVirtualHost(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"koji", "/", "a/b", "sp ace", "50%", "ümlaut", "?#", ".."} {
		u := BrokerURL{Host: "broker", Port: 5672, VirtualHost: name}
		parsed, err := url.Parse(u.Reveal())
		if err != nil || parsed.Path != "/"+name || parsed.Host != "broker:5672" || parsed.RawQuery != "" {
			t.Errorf("%q: %s: %v", name, u.Reveal(), err)
		}
		if again, wrong := parseBrokerURL(u.Reveal()); wrong != "" || again != u {
			t.Errorf("%q: %s is read as %v %s", name, u.Reveal(), again, wrong)
		}
	}
}

// However a configuration ends up in a log or an encoder, its secrets do not.
func TestSecretsArePrintedAsMask(t *testing.T) {
	t.Parallel()
	c := mustParse(t, `
[broker]
urls = amqps://relayuser:sesame@broker.example.com sesame2:sesame3@broker2
topic_prefix = x
[queue]
database = host=db user=relayuser password='sesame \' 4' dbname=koji
`)
	u := c.Broker.URLs[0]
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "config", c, "url", u, "database", c.Queue.Database)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "config", c, "url", u, "urls", c.Broker.URLs,
		"database", c.Queue.Database)
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(c.Settings())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"%v": fmt.Sprintf("%v %v %v", c, u, &u), "%+v": fmt.Sprintf("%+v %+v", *c, c.Broker),
		"%s": fmt.Sprintf("%s %s", u, c.Queue.Database), "%#v": fmt.Sprintf("%#v %#v", u, c.Queue.Database),
		"%#v of all": fmt.Sprintf("%#v", c.Queue), "%q": fmt.Sprintf("%q %q", u, c.Queue.Database),
		"json": string(encoded), "settings": string(settings), "slog": logged.String(),
	} {
		if strings.Contains(text, "sesame") || strings.Contains(text, "relayuser") {
			t.Errorf("%s prints a secret: %s", name, text)
		}
	}
	if !strings.Contains(string(settings), "amqps://***@broker.example.com:5671") {
		t.Errorf("the broker cannot be recognised: %s", settings)
	}
}

func TestMaskedConnectionString(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"host=db user=koji password=sesame dbname=koji":      "host=db user=*** password=*** dbname=koji",
		"host=db password = 'se sa\\'me' dbname=koji":        "host=db password = *** dbname=koji",
		"password='never closed sesame":                      "password=***",
		"PASSWORD=sesame\\ me host=db":                       "PASSWORD=*** host=db",
		"postgres://koji:sesame@db/koji?sslmode=require":     "postgres://***@db/koji?sslmode=require",
		"postgresql://koji:ses@me@db/koji":                   "postgresql://***@db/koji",
		"postgres://db/koji?user=koji&password=sesame&a=b":   "postgres://db/koji?user=***&password=***&a=b",
		"postgres://db/koji?sslpassword=sesame":              "postgres://db/koji?sslpassword=***",
		"hub":                                                "hub",
		"host=db sslpassword=sesame passfile=/etc/koji/pass": "host=db sslpassword=*** passfile=***",
	} {
		if got := ConnString(text).String(); got != want {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
}
