package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"os"
	"strings"
	"time"

	"github.com/Azure/go-amqp"
)

var (
	url     = flag.String("url", "", "amqps://broker.example.com or amqp://...")
	address = flag.String("address", "", "what to receive from, such as topic://koji.build.* (ActiveMQ)")
	topic   = flag.Bool("topic", false, "ask for a topic: Artemis needs it")
	durable = flag.String("durable", "",
		"keep the subscription of this `name` while away (ActiveMQ, Artemis)")
	sasl = flag.String("sasl", "plain",
		"how to log in: plain, external (client certificate) or anonymous")
	user         = flag.String("user", "", "with --sasl plain")
	passwordFile = flag.String("password-file", "", "")
	cacert       = flag.String("cacert", "", "`file` of authorities, as PEM; none = those of the system")
	cert         = flag.String("cert", "", "`file` of the client certificate, as PEM; it may hold the key")
	key          = flag.String("key", "", "")
	asJSON       = flag.Bool("json", false, "print all of a message, as one line of JSON")
	count        = flag.Int("count", 0, "end after so many messages (0 = never)")
)

func receiverOptions() *amqp.ReceiverOptions {
	o := &amqp.ReceiverOptions{Credit: 100}
	if *topic {
		o.SourceCapabilities = []string{"topic"}
	}
	if *durable != "" { // known by client and link name
		o.Name, o.SourceDurability, o.SourceExpiryPolicy = *durable, amqp.DurabilityUnsettledState,
			amqp.ExpiryPolicyNever
	}
	return o
}

func connOptions() (*amqp.ConnOptions, error) {
	// Without an answer for 30 s the connection is dead.
	o := &amqp.ConnOptions{ContainerID: *durable, IdleTimeout: 30 * time.Second, TLSConfig: &tls.Config{}}
	if *cacert != "" {
		pem, err := os.ReadFile(*cacert)
		if err != nil {
			return nil, err
		}
		o.TLSConfig.RootCAs = x509.NewCertPool()
		o.TLSConfig.RootCAs.AppendCertsFromPEM(pem)
	}
	if *cert != "" {
		pair, err := tls.LoadX509KeyPair(*cert, cmp.Or(*key, *cert))
		if err != nil {
			return nil, err
		}
		o.TLSConfig.Certificates = []tls.Certificate{pair}
	}
	switch *sasl {
	case "external":
		o.SASLType = amqp.SASLTypeExternal("")
	case "anonymous":
		o.SASLType = amqp.SASLTypeAnonymous()
	default:
		password, err := os.ReadFile(*passwordFile)
		if err != nil {
			return nil, err
		}
		o.SASLType = amqp.SASLTypePlain(*user, strings.TrimSpace(string(password)))
	}
	return o, nil
}
