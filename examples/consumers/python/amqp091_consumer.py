#!/usr/bin/env python3
"""Prints Koji's messages as they arrive at RabbitMQ over AMQP 0-9-1, see docs/consumers.md. It needs pika.

The relay has to send with [message] body_section = data: RabbitMQ hands other bodies over as AMQP 1.0 bytes.
"""
import argparse
import collections
import json
import sys

import pika

REMEMBERED = 10000  # message-ids; most repeats come within minutes of the first time


def main():
    parser = argparse.ArgumentParser(description="Print Koji's messages as they arrive over AMQP 0-9-1.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=5672)
    parser.add_argument("--queue", required=True, help="kept while you are away; declared if it is missing")
    parser.add_argument("--key", required=True, help="such as koji.build.* (# = any number of words)")
    parser.add_argument("--exchange", default="amq.topic")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password-file", required=True)
    parser.add_argument("--count", type=int, default=0, help="end after so many messages (0 = never)")
    args = parser.parse_args()
    with open(args.password_file) as file:
        login = pika.PlainCredentials(args.user, file.read().strip())
    where = pika.ConnectionParameters(args.host, args.port, credentials=login)
    channel = pika.BlockingConnection(where).channel()
    channel.queue_declare(args.queue, durable=True)
    channel.queue_bind(args.queue, args.exchange, args.key)
    channel.basic_qos(prefetch_count=100)
    print("subscribed to", args.queue, file=sys.stderr, flush=True)

    seen, handled = collections.OrderedDict(), 0
    for method, properties, body in channel.consume(args.queue):
        if properties.message_id not in seen:
            print(json.dumps({"message_id": properties.message_id, "address": method.routing_key,
                              "props": properties.headers, "body": body.decode()}, default=str), flush=True)
            handled += 1
            seen[properties.message_id] = True
            if len(seen) > REMEMBERED:
                seen.popitem(last=False)
        channel.basic_ack(method.delivery_tag)
        if 0 < args.count <= handled:
            break
    channel.connection.close()


if __name__ == "__main__":
    main()
