package amqpconn

import (
	"errors"
	"fmt"
	"slices"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/failure"
)

// VirtualHost is the one that the connection asks for; empty means the broker's default.
func (c *Conn) VirtualHost() string {
	if c.endpoint.VirtualHost != "" {
		return c.endpoint.VirtualHost
	}
	return c.opts.VirtualHost
}

// hostName is the open frame's hostname. RabbitMQ reads a virtual host there:
// https://www.rabbitmq.com/docs/vhosts
func (c *Conn) hostName() string {
	if v := c.VirtualHost(); v != "" {
		return "vhost:" + v
	}
	return c.endpoint.Host
}

// hostError is a broker that took the login and refused the virtual host.
type hostError struct{ error }

// refusals are the conditions by which RabbitMQ refuses a virtual host.
var refusals = []amqp.ErrCond{
	amqp.ErrCondUnauthorizedAccess, amqp.ErrCondNotAllowed, amqp.ErrCondNotFound, amqp.ErrCondInternalError,
}

// hostRefused says of an error between login and first link whether RabbitMQ means the virtual host by it; if
// not, it gives said. Version 3 ends the session; version 4 waits for 3 s and resets the connection, without
// a word to us. The login was accepted by then, so that user and password are right.
func (c *Conn) hostRefused(said, err error) error {
	var remote *amqp.Error
	asked := c.VirtualHost()
	switch {
	case errors.As(err, &remote):
		if !slices.Contains(refusals, remote.Condition) || asked == "" && !c.Peer.IsRabbitMQ() {
			return said
		}
	case asked == "" || !failure.HungUp(err):
		return said
	}
	name := "its default virtual host"
	if asked != "" {
		name = fmt.Sprintf("the virtual host %q", asked)
	}
	words := "without a word"
	if remote != nil {
		words = failure.Text(err)
	}
	return hostError{fmt.Errorf(
		"the broker took the login and refused %s (%s); correct virtual_host or the path of "+
			"the URL, or give the user permissions there", name, words)}
}

// explainOpen says what to look at when the connection ends between the login and the broker's open frame.
func explainOpen(err error) error {
	var remote *amqp.Error
	if !errors.As(err, &remote) && failure.HungUp(err) {
		return errors.New("open AMQP connection: the broker ended the connection after the login; does the " +
			"virtual host exist, and may the user use it (RabbitMQ: rabbitmqctl list_permissions)?")
	}
	return fmt.Errorf("open AMQP connection: %w", err)
}
