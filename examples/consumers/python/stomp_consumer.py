#!/usr/bin/env python3
"""Prints Koji's messages as they arrive over STOMP, see docs/consumers.md. It needs stomp.py.

For RabbitMQ the relay has to send with [message] body_section = data: RabbitMQ hands other bodies over as
AMQP 1.0 bytes.
"""
import argparse
import collections
import json
import sys
import threading

import stomp

REMEMBERED = 10000  # message-ids; most repeats come within minutes of the first time


def message_id(headers):
    """The relay's message-id. RabbitMQ and Artemis have headers for it, and ActiveMQ none of its own."""
    found = headers.get("amqp-message-id") or headers.get("NATIVE_MESSAGE_ID") or headers["message-id"]
    for prefix in ("ID:", "AMQP_NO_PREFIX:"):
        found = found[len(prefix):] if found.startswith(prefix) else found
    return found


class Printer(stomp.ConnectionListener):
    def __init__(self, connection, destination, count, acknowledges):
        self.connection, self.destination, self.count, self.handled = connection, destination, count, 0
        self.acknowledges = acknowledges
        self.seen, self.done = collections.OrderedDict(), threading.Event()

    def on_message(self, frame):
        if self.done.is_set():
            return  # on its way when we ended; not acknowledged, it comes again
        name = message_id(frame.headers)
        if name not in self.seen:
            print(json.dumps({"message_id": name, "props": frame.headers, "body": frame.body}), flush=True)
            self.handled += 1
            self.seen[name] = True
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
        if self.acknowledges:
            self.connection.ack(frame.headers["ack"])  # after the work
        if 0 < self.count <= self.handled:
            self.done.set()

    def on_receipt(self, frame):
        print("subscribed to", self.destination, file=sys.stderr, flush=True)

    def on_error(self, frame):
        print("error:", frame.headers.get("message"), frame.body, file=sys.stderr, flush=True)
        self.done.set()

    def on_disconnected(self):
        self.done.set()


def main():
    parser = argparse.ArgumentParser(description="Print Koji's messages as they arrive over STOMP.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=61613)
    parser.add_argument("--destination", required=True, help="such as /topic/koji.> (ActiveMQ)")
    parser.add_argument("--header", action="append", default=[],
                        help="of SUBSCRIBE, such as selector:type='Tag'")
    parser.add_argument("--ack", choices=["client-individual", "auto"], default="client-individual",
                        help="auto for ActiveMQ Classic, which cannot take an answer to these messages")
    parser.add_argument("--virtual-host", default="/", help="of RabbitMQ; the others do not look at it")
    parser.add_argument("--client-id", help="for a durable subscription")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password-file", required=True)
    parser.add_argument("--count", type=int, default=0, help="end after so many messages (0 = never)")
    args = parser.parse_args()
    with open(args.password_file) as file:
        password = file.read().strip()
    connection = stomp.Connection12([(args.host, args.port)], vhost=args.virtual_host)
    printer = Printer(connection, args.destination, args.count, args.ack != "auto")
    connection.set_listener("", printer)
    connection.connect(args.user, password, wait=True,
                       headers={"client-id": args.client_id} if args.client_id else {})
    headers = dict(header.split(":", 1) for header in args.header)
    connection.subscribe(args.destination, id="koji", ack=args.ack,
                         headers=dict(headers, receipt="subscribed"))
    printer.done.wait()
    connection.disconnect()


if __name__ == "__main__":
    main()
