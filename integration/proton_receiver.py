"""Receives with python-proton, the library that Koji's protonmsg plugin itself uses, and prints what came.

One JSON object on standard input says what to do: url, user, password, addresses, capabilities, for TLS
cacert, cert and key, and plain: no bytes of sections. Standard output gets {"ready": true} once every link is
attached, then one JSON object for each message, with the sections both decoded and as the bytes that were on
the wire. Ends with its input.
"""
import json
import os
import sys
import threading

from proton import Data, Message, SSLDomain, symbol
from proton.handlers import EndpointStateHandler, FlowController, MessagingHandler
from proton.reactor import Container, ReceiverOption

APPLICATION_PROPERTIES = 0x74
NAMES = {"bool": "boolean"}


def print_line(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def sections(raw):
    """Splits an encoded message into (descriptor, bytes), by decoding one AMQP value after the other."""
    while raw:
        data = Data()
        size = data.decode(raw)
        data.rewind()
        data.next()
        data.enter()
        data.next()
        yield data.get_ulong(), raw[:size]
        raw = raw[size:]


def typed_properties(raw):
    """[[key, AMQP type, value], …] of an application-properties section, in wire order."""
    data = Data()
    data.decode(raw)
    data.rewind()
    data.next()
    data.enter()
    data.next()
    data.next()
    data.enter()
    found = []
    while data.next():
        key = data.get_object()
        data.next()
        kind = Data.type_name(data.type())
        found.append([key, NAMES.get(kind, kind), data.get_object()])
    return found


class Topic(ReceiverOption):
    """Asks for a topic where the address alone does not say so."""

    def __init__(self, capabilities):
        self.capabilities = capabilities

    def apply(self, receiver):
        if self.capabilities:
            receiver.source.capabilities.put_array(False, Data.SYMBOL)
            receiver.source.capabilities.enter()
            for capability in self.capabilities:
                receiver.source.capabilities.put_symbol(symbol(capability))
            receiver.source.capabilities.exit()


class Receiver(MessagingHandler):
    def __init__(self, job):
        super().__init__()
        # In place of the handler that decodes messages at once: ours needs their bytes first.
        self.handlers = [FlowController(1000), EndpointStateHandler(delegate=self)]
        self.job = job
        self.waiting = set(job["addresses"])

    def on_start(self, event):
        job = self.job
        options = {}
        if job.get("cert"):
            domain = SSLDomain(SSLDomain.MODE_CLIENT)
            domain.set_trusted_ca_db(job["cacert"])
            domain.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
            domain.set_credentials(job["cert"], job["key"], None)
            options["ssl_domain"] = domain
        if job.get("user"):
            options.update(user=job["user"], password=job["password"], allowed_mechs="PLAIN",
                           allow_insecure_mechs=True)
        connection = event.container.connect(job["url"], reconnect=False, **options)
        for address in job["addresses"]:
            event.container.create_receiver(connection, address, name=address,
                                            options=Topic(job.get("capabilities")))

    def on_link_opened(self, event):
        self.waiting.discard(event.link.name)
        if not self.waiting:
            print_line({"ready": True})

    def on_delivery(self, event):
        delivery = event.delivery
        if not delivery.readable or delivery.partial:
            return
        raw = delivery.link.recv(delivery.pending)
        delivery.link.advance()
        delivery.update(delivery.ACCEPTED)
        delivery.settle()

        message = Message()
        message.decode(raw)
        parts = list(sections(raw))
        properties = [p for code, part in parts if code == APPLICATION_PROPERTIES
                      for p in typed_properties(part)]
        print_line({
            "link": event.link.name,
            "message_id": message.id,
            "to": message.address,
            "durable": message.durable,
            "priority": message.priority,
            "ttl": message.ttl,
            "creation_time": message.creation_time,
            "properties": properties,
            "body": message.body if isinstance(message.body, str) else None,
            "sections": [] if self.job.get("plain") else [[code, part.hex()] for code, part in parts],
        })

    def on_error(self, event, condition):
        if condition:
            print_line({"error": "%s: %s" % (condition.name, condition.description)})

    def on_transport_error(self, event):
        self.on_error(event, event.transport.condition)
        event.connection.close()

    def on_connection_error(self, event):
        self.on_error(event, event.connection.remote_condition)

    def on_link_error(self, event):
        self.on_error(event, event.link.remote_condition)


def main():
    job = json.loads(sys.stdin.readline())

    def end_with_input():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_input, daemon=True).start()
    Container(Receiver(job)).run()


main()
