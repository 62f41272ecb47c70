package config

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// mask stands for a secret wherever one would be printed.
const mask = "***"

// BrokerURL is one broker's address and, where the URL has them, its credentials. It prints masked with
// every verb; Reveal gives the real thing.
type BrokerURL struct {
	TLS         bool
	Host        string // name or address, an IPv6 address without brackets
	Port        int
	VirtualHost string // of RabbitMQ, from the path; empty without
	User        string
	HasUser     bool
	password    string
}

// Address is host:port, as used in logs.
func (u BrokerURL) Address() string { return net.JoinHostPort(u.Host, strconv.Itoa(u.Port)) }

// Password is the secret of User; it must not be printed.
func (u BrokerURL) Password() string { return u.password }

// Reveal is the whole URL with its credentials, percent-encoded; it must not be printed.
func (u BrokerURL) Reveal() string {
	full := url.URL{Scheme: u.scheme(), Host: u.Address()}
	if u.HasUser {
		full.User = url.UserPassword(u.User, u.password)
	}
	if u.VirtualHost != "" {
		full.Path, full.RawPath = "/"+u.VirtualHost, u.path()
	}
	return full.String()
}

// String is the URL with its user and password masked.
func (u BrokerURL) String() string {
	if u.HasUser {
		return u.scheme() + "://" + mask + "@" + u.Address() + u.path()
	}
	return u.scheme() + "://" + u.Address() + u.path()
}

// path is the virtual host as it stands in a URL.
func (u BrokerURL) path() string {
	if u.VirtualHost == "" {
		return ""
	}
	return "/" + url.PathEscape(u.VirtualHost)
}

// GoString keeps %#v from printing what String masks.
func (u BrokerURL) GoString() string { return u.String() }

// MarshalText keeps encoders from printing what String masks.
func (u BrokerURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

func (u BrokerURL) scheme() string {
	if u.TLS {
		return "amqps"
	}
	return "amqp"
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?$`)

// parseBrokerURL takes what python-proton takes: the scheme may be left out, user and password may be
// percent-encoded or not, a service name may stand for the port. (proton ends the host at the first / ? or #
// even inside a password; here the last @ ends the credentials, since a path with one is percent-encoded.)
// What is wrong comes back as text with its remedy, empty for nothing.
func parseBrokerURL(text string) (u BrokerURL, wrong string) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found && strings.Contains(text, "=") {
		return u, "not a URL but part of a setting that is indented, so that it continues this one; remove the " +
			"space before it"
	}
	if !found {
		scheme, rest = "amqp", text
	}
	switch strings.ToLower(scheme) {
	case "amqp":
		u.Port = 5672
	case "amqps":
		u.TLS, u.Port = true, 5671
	default:
		return u, "not an AMQP URL; begin it with amqp:// or amqps://"
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		user, password, _ := strings.Cut(rest[:at], ":")
		u.User, u.password, u.HasUser = unquote(user), unquote(password), true
		rest = rest[at+1:]
		if u.User == "" {
			return u, "no user before the @; write amqps://user:password@host, or leave out the @"
		}
	}
	if at := strings.IndexAny(rest, "?#"); at >= 0 {
		rest = rest[:at]
	}
	rest, path, _ := strings.Cut(rest, "/")
	host, port, err := splitPort(rest)
	if err != nil {
		return u, err.Error()
	}
	u.Host = strings.ToLower(host)
	if port != "" {
		if u.Port, err = portNumber(port); err != nil {
			return u, err.Error()
		}
	}
	if strings.Contains(path, "/") {
		return u, "more than one / after the host; write those of a virtual host as %%2F"
	}
	u.VirtualHost = unquote(path)
	return u, ""
}

// warnURLs names what follows host and virtual host: it has no meaning, here or in protonmsg.
func warnURLs(text string) valueErrors {
	var warnings valueErrors
	for _, w := range strings.FieldsFunc(text, isSpace) {
		u, wrong := parseBrokerURL(w)
		if wrong != "" {
			continue
		}
		if _, after, found := strings.Cut(w, "://"); found {
			w = after
		}
		w = w[strings.LastIndexByte(w, '@')+1:]
		if strings.ContainsAny(w, "?#") {
			// Not shown: it may be a parameter with a secret.
			warnings = append(warnings, &valueError{part: u.String(), text: "what follows ? or # is not used; " +
				"remove it"})
		}
	}
	return warnings
}

func splitPort(text string) (host, port string, err error) {
	if inner, found := strings.CutPrefix(text, "["); found {
		host, rest, closed := strings.Cut(inner, "]")
		port, hasPort := strings.CutPrefix(rest, ":")
		if !closed || net.ParseIP(host) == nil || rest != "" && !hasPort {
			return "", "", fmt.Errorf("not an IPv6 address in brackets; write it like amqps://[2001:db8::1]:5671")
		}
		return host, port, nil
	}
	host, port, _ = strings.Cut(text, ":")
	switch {
	case host == "":
		return "", "", fmt.Errorf("no host; write it like amqps://broker.example.com:5671")
	case strings.Contains(text, ","):
		return "", "", fmt.Errorf("a comma in the host; separate URLs by spaces")
	case strings.Contains(port, ":"):
		return "", "", fmt.Errorf("more than one colon after the host; put an IPv6 address into brackets, and " +
			"write @ between credentials and host")
	case !hostName.MatchString(host):
		return "", "", fmt.Errorf("not a host name; write it like amqps://broker.example.com:5671")
	}
	return host, port, nil
}

func portNumber(text string) (int, error) {
	switch text {
	case "amqp":
		return 5672, nil
	case "amqps":
		return 5671, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("no usable port; give a port from 1 to 65535, and percent-encode : @ and spaces in " +
			"a password (a space is %%%%20 in this file)")
	}
	return int(n), nil
}

// unquote decodes %XX and leaves any other percent sign alone, as Python's unquote does.
func unquote(text string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "%")
		b.WriteString(before)
		if !found {
			return strings.ToValidUTF8(b.String(), "\ufffd")
		}
		if len(after) >= 2 {
			if n, err := strconv.ParseUint(after[:2], 16, 8); err == nil {
				b.WriteByte(byte(n))
				text = after[2:]
				continue
			}
		}
		b.WriteByte('%')
		text = after
	}
}

func parseBrokerURLs(text string) ([]BrokerURL, error) {
	words := strings.FieldsFunc(text, isSpace)
	if len(words) == 0 {
		return nil, bad("empty; give at least one URL such as amqps://broker.example.com:5671")
	}
	urls := make([]BrokerURL, len(words))
	var wrong valueErrors
	for i, w := range words {
		u, text := parseBrokerURL(w)
		if text != "" {
			wrong = append(wrong, &valueError{part: maskURL(w), text: text})
		}
		urls[i] = u
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return urls, nil
}

// maskURLs masks the credentials in text that may not be well formed.
func maskURLs(text string) string {
	words := strings.FieldsFunc(text, isSpace)
	for i, w := range words {
		words[i] = maskURL(w)
	}
	return strings.Join(words, " ")
}

// maskURL keeps scheme, host and a numeric port. Where these cannot be told from credentials for certain,
// nothing but the scheme is left.
func maskURL(text string) string {
	prefix, rest := "", text
	if scheme, after, found := strings.Cut(text, "://"); found {
		prefix, rest = scheme+"://", after
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		prefix, rest = prefix+mask+"@", rest[at+1:]
	} else if prefix == "" {
		return mask // perhaps the middle of a password with spaces in it
	}
	rest, _, _ = strings.Cut(rest, "/")
	host, port, hasPort := strings.Cut(rest, ":")
	switch {
	case strings.HasPrefix(rest, "["):
		return prefix + rest
	case !hasPort:
		return prefix + host
	}
	if _, err := portNumber(port); err != nil {
		return prefix + mask
	}
	return prefix + rest
}
