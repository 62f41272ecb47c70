#!/usr/bin/env python3
"""Prints Koji's messages as they arrive: a start for a consumer of your own, see docs/consumers.md.

It needs Python 3.6 and python-proton (Debian, Fedora, EPEL: python3-qpid-proton). It connects again whenever
the connection ends. It acknowledges a message after handle() has returned, and passes over one that it has
seen already.
"""
import argparse
import collections
import json
import sys
import time

from proton import Data, SSLDomain, symbol
from proton.handlers import MessagingHandler
from proton.reactor import Container, DurableSubscription, ReceiverOption

REMEMBERED = 10000  # message-ids; most repeats come within minutes of the first time


def handle(args, topic, message, body):
    """Is where your own work goes. Finish it before you return: the broker then forgets the message."""
    if args.json:
        record = {"message_id": message.id, "address": topic, "props": message.properties, "body": body}
        print(json.dumps(record), flush=True)
    else:
        event = json.loads(body)  # Koji's own dictionaries
        print(topic, ", ".join("%s=%s" % p for p in message.properties.items()), "with", *event, flush=True)


class Topic(ReceiverOption):
    """Asks for a topic where the address alone does not say so (Artemis)."""

    def apply(self, receiver):
        receiver.source.capabilities.put_array(False, Data.SYMBOL)
        receiver.source.capabilities.enter()
        receiver.source.capabilities.put_symbol(symbol("topic"))


class Consumer(MessagingHandler):
    def __init__(self, args):
        super().__init__(prefetch=100, auto_accept=False)
        self.args = args
        self.handled = 0
        self.seen = collections.OrderedDict()

    def finished(self):
        return 0 < self.args.count <= self.handled

    def on_start(self, event):
        args, login = self.args, {"allowed_mechs": self.args.sasl.upper()}
        if args.url.startswith("amqps:"):
            login["ssl_domain"] = domain = SSLDomain(SSLDomain.MODE_CLIENT)
            domain.set_trusted_ca_db(args.cacert)
            domain.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
            if args.cert:
                domain.set_credentials(args.cert, args.key or args.cert, None)
        if args.user:
            with open(args.password_file) as f:
                login.update(user=args.user, password=f.read().strip(), allow_insecure_mechs=True)
        # Without an answer for 30 s the connection is dead. A durable subscription is known by the names of
        # client and link.
        connection = event.container.connect(args.url, heartbeat=30, reconnect=False, **login)
        options = [Topic()] * args.topic + [DurableSubscription()] * bool(args.durable)
        event.container.create_receiver(connection, args.address, name=args.durable, options=options)

    def on_link_opened(self, event):
        print("subscribed to", self.args.address, file=sys.stderr, flush=True)

    def on_message(self, event):
        if self.finished():
            return  # it was on its way already; unacknowledged, it comes again
        message = event.message
        if message.id is None or message.id not in self.seen:
            # RabbitMQ 4 tells the topic in an annotation, ActiveMQ in `to`; RabbitMQ 3 and Artemis do not.
            topic = (message.annotations or {}).get("x-routing-key") or message.address or self.args.address
            body = message.body if isinstance(message.body, str) else bytes(message.body).decode()
            handle(self.args, topic, message, body)
            self.handled += 1
            self.seen[message.id] = True
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
        self.accept(event.delivery)
        if self.finished():
            event.connection.close()

    def on_transport_error(self, event):
        self.disconnected(event, event.transport.condition)

    def on_connection_error(self, event):
        self.disconnected(event, event.connection.remote_condition)

    def on_session_error(self, event):
        self.disconnected(event, event.session.remote_condition)

    def on_link_error(self, event):
        self.disconnected(event, event.link.remote_condition)

    def disconnected(self, event, condition):
        print("disconnected:", condition, file=sys.stderr, flush=True)
        if event.connection:  # a lost transport has none any more
            event.connection.close()


def main():
    parser = argparse.ArgumentParser(description="Print Koji's messages as they arrive.")
    parser.add_argument("--url", required=True, help="amqps://broker.example.com or amqp://...")
    parser.add_argument("--address", required=True,
                        help="what to receive from, such as topic://koji.build.* (ActiveMQ)")
    parser.add_argument("--topic", action="store_true", help="ask for a topic: Artemis needs it")
    parser.add_argument("--durable", metavar="NAME",
                        help="keep the subscription of this name while away (ActiveMQ, Artemis)")
    parser.add_argument("--sasl", choices=["plain", "external", "anonymous"], default="plain",
                        help="how to log in")
    parser.add_argument("--user", help="with --sasl plain")
    parser.add_argument("--password-file", metavar="FILE")
    parser.add_argument("--cacert", metavar="FILE", help="authorities, as PEM; needed with amqps")
    parser.add_argument("--cert", metavar="FILE", help="client certificate, as PEM; it may hold the key")
    parser.add_argument("--key", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print all of a message, as one line of JSON")
    parser.add_argument("--count", type=int, default=0, help="end after so many messages (0 = never)")
    args = parser.parse_args()
    consumer = Consumer(args)
    while not consumer.finished():
        container = Container(consumer)
        container.container_id = args.durable or container.container_id  # an argument of that name is ignored
        container.run()  # lasts as long as one connection
        if not consumer.finished():
            time.sleep(1)


if __name__ == "__main__":
    main()
