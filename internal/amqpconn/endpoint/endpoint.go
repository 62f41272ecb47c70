// Package endpoint reads the URL of a broker, and the credentials for it. Its errors never repeat a URL,
// which may hold a password.
package endpoint

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// Endpoint is a parsed broker URL. Name alone is fit for output.
type Endpoint struct {
	Name        string // host:port, or host:port/VHOST
	Address     string // host:port
	Host        string // what a certificate must be for
	TLS         bool
	VirtualHost string // of RabbitMQ, from the URL's path; empty without
	user        string
	password    string
}

// Parse reads an amqp:// or amqps:// URL.
func Parse(raw string) (Endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error repeats the URL; its cause may repeat a part of it as well.
		return Endpoint{}, errors.New("parse broker URL: it is not a URL; write amqp://host:port, " +
			"with special characters of user and password percent-encoded")
	}
	var e Endpoint
	port := "5672"
	switch u.Scheme {
	case "amqp":
	case "amqps":
		port, e.TLS = "5671", true
	default:
		return Endpoint{}, fmt.Errorf("parse broker URL: scheme %q is not amqp or amqps", u.Scheme)
	}
	if e.Host = u.Hostname(); e.Host == "" {
		return Endpoint{}, errors.New("parse broker URL: it names no host")
	}
	if u.Port() != "" {
		port = u.Port()
	}
	e.Address = net.JoinHostPort(e.Host, port)
	e.Name = e.Address
	if e.VirtualHost = strings.TrimPrefix(u.Path, "/"); e.VirtualHost != "" {
		e.Name += "/" + e.VirtualHost
	}
	if u.User != nil {
		e.user = u.User.Username()
		e.password, _ = u.User.Password()
	}
	return e, nil
}

// Credentials gives the user and password: the URL's own, else those in the files that are named.
func (e Endpoint) Credentials(userFile, passwordFile string) (user, password string, err error) {
	if e.user != "" {
		return e.user, e.password, nil
	}
	if userFile != "" {
		if user, err = readSecret("user_file", userFile); err != nil {
			return "", "", err
		}
	}
	if passwordFile != "" {
		if password, err = readSecret("password_file", passwordFile); err != nil {
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
