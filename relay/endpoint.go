package relay

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// endpoint is a parsed broker URL. Only name is fit for output.
type endpoint struct {
	name     string // host:port
	host     string // what a certificate must be for
	tls      bool
	user     string
	password string
}

// parseEndpoint reads an amqp:// or amqps:// URL. Its errors do not repeat the URL, which may hold a password.
func parseEndpoint(raw string) (endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error repeats the URL; its cause may repeat a part of it as well.
		return endpoint{}, errors.New("parse broker URL: it is not a URL; write amqp://host:port, " +
			"with special characters of user and password percent-encoded")
	}
	var e endpoint
	port := u.Port()
	switch u.Scheme {
	case "amqp":
		setDefault(&port, "5672")
	case "amqps":
		setDefault(&port, "5671")
		e.tls = true
	default:
		return endpoint{}, fmt.Errorf("parse broker URL: scheme %q is not amqp or amqps", u.Scheme)
	}
	if e.host = u.Hostname(); e.host == "" {
		return endpoint{}, errors.New("parse broker URL: it names no host")
	}
	e.name = net.JoinHostPort(e.host, port)
	if u.User != nil {
		e.user = u.User.Username()
		e.password, _ = u.User.Password()
	}
	return e, nil
}

// credentials gives the user and password for e: the URL's own, else the files', else the given ones.
func (o *Options) credentials(e endpoint) (user, password string, err error) {
	if e.user != "" {
		return e.user, e.password, nil
	}
	user, password = o.User, o.Password
	if o.UserFile != "" {
		if user, err = readSecret("user_file", o.UserFile); err != nil {
			return "", "", err
		}
	}
	if o.PasswordFile != "" {
		if password, err = readSecret("password_file", o.PasswordFile); err != nil {
			return "", "", err
		}
	}
	return user, password, nil
}

// readSecret reads a one-line file; the line end that editors add is not part of the secret.
func readSecret(key, path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("read %s: %s is empty", key, path)
	}
	return secret, nil
}
