"""Gives a service Koji's messages: copy it, it is short. It needs python-proton.

    def consume(topic, headers, body):   # body is Koji's dictionary, headers are what selectors see
        ...
    koji_messages.run('amqps://broker.example.com', 'queue://Consumer.mbs.VirtualTopic.koji.>', consume,
                      seen=lambda message_id: Event.query.get(message_id) is not None, cacert='ca.pem',
                      cert='client.pem')

A message is acknowledged when `consume` has returned. If it raises, the message goes back to the broker, and
comes again. `seen` says whether a message-id was handled before: keep the id, which is headers['message-id'],
in the transaction that has the work's result. Without `seen` the last 10,000 are remembered until the end.
"""
import collections
import json
import logging
import time

from proton import SSLDomain
from proton.handlers import MessagingHandler
from proton.reactor import Container, DurableSubscription

LOG = logging.getLogger(__name__)


class Receiver(MessagingHandler):
    def __init__(self, url, address, consume, seen=None, cacert=None, cert=None, durable=None, **login):
        super().__init__(prefetch=10, auto_accept=False)
        self.url, self.address, self.consume, self.durable, self.login = url, address, consume, durable, login
        self.remembered = collections.OrderedDict()
        self.seen = seen or self.remembered.__contains__
        if cacert:
            self.login["ssl_domain"] = domain = SSLDomain(SSLDomain.MODE_CLIENT)
            domain.set_trusted_ca_db(cacert)
            domain.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
            if cert:
                domain.set_credentials(cert, cert, None)

    def on_start(self, event):
        connection = event.container.connect(self.url, heartbeat=30, reconnect=False, **self.login)
        options = [DurableSubscription()] if self.durable else []
        event.container.create_receiver(connection, self.address, name=self.durable, options=options)

    def on_message(self, event):
        message = event.message
        headers = dict(message.properties or {}, **{"message-id": message.id})
        topic = (message.annotations or {}).get("x-routing-key") or message.address
        try:
            if not self.seen(message.id):
                self.consume(topic, headers, json.loads(message.body))
                self.remembered[message.id] = True
                if len(self.remembered) > 10000:
                    self.remembered.popitem(last=False)
        except Exception:
            LOG.exception("%s of %s was not handled; it comes again", message.id, topic)
            time.sleep(1)
            self.release(event.delivery, delivered=False)
        else:
            self.accept(event.delivery)

    def on_transport_error(self, event):
        LOG.error("%s: %s", self.url, event.transport.condition)

    def on_link_error(self, event):
        LOG.error("%s: %s: %s", self.url, self.address, event.link.remote_condition)
        event.connection.close()


def run(*args, **kwargs):
    """Receives for ever, and connects again whenever the connection ends."""
    receiver = Receiver(*args, **kwargs)
    while True:
        container = Container(receiver)
        container.container_id = receiver.durable or container.container_id
        container.run()
        time.sleep(1)
