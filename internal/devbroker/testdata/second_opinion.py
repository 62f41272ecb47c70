"""python-proton's opinion of the broker: a client that shares no code with go-amqp.

usage: second_opinion.py URL [user password]
Prints one JSON object: what each step saw. The Go test judges.
"""

import json
import sys

from proton import Message
from proton.utils import BlockingConnection, LinkDetached, SendException


def state_of(sender, message):
    try:
        return str(sender.send(message, timeout=10).remote_state)
    except SendException as e:
        return str(e.state)


def main(url, user=None, password=None):
    seen = {}
    options = {"timeout": 15, "heartbeat": 2}
    if user:
        options.update(user=user, password=password, allowed_mechs="PLAIN", allow_insecure_mechs=True)
    conn = BlockingConnection(url, **options)
    seen["container"] = conn.conn.remote_container
    seen["properties"] = {str(k): v for k, v in (conn.conn.remote_properties or {}).items()}

    receiver = conn.create_receiver("topic://koji.#", credit=10)
    sender = conn.create_sender("topic://koji.build.tag")
    sent = Message(
        id="id-1",
        body='{"a": 1}',
        properties={"type": "Tag", "id": 5, "big": 123456, "parent": None, "expire": True, "weight": 1.5},
        durable=True,
    )
    seen["sent"] = state_of(sender, sent)
    got = receiver.receive(timeout=10)
    receiver.accept()
    seen["received"] = {"id": got.id, "body": got.body, "properties": got.properties, "durable": got.durable}

    big = "0123456789abcdef" * (1 << 17)  # 2 MiB, many frames
    seen["big_sent"] = state_of(sender, Message(id="big", body=big))
    got = receiver.receive(timeout=30)
    receiver.accept()
    seen["big_same"] = got.body == big

    seen["pipelined"] = 0
    deliveries = [sender.link.send(Message(id=str(i), body="x")) for i in range(100)]
    conn.wait(lambda: all(d.remote_state for d in deliveries), timeout=10)
    for i in range(100):
        got = receiver.receive(timeout=10)
        receiver.accept()
        seen["pipelined"] += got.id == str(i)
        deliveries[i].settle()

    for word in "reject", "release", "modify":
        seen[word] = state_of(conn.create_sender("script." + word), sent)
    try:
        conn.create_sender("script.refuse")
        seen["refuse"] = "attached"
    except LinkDetached as e:
        seen["refuse"] = e.condition

    # Put back: released comes again, to the same receiver.
    sender.send(Message(id="again", body="x"), timeout=10)
    receiver.receive(timeout=10)
    receiver.release(delivered=False)
    seen["again"] = receiver.receive(timeout=10).id
    receiver.accept()

    anonymous = conn.create_sender(None)
    seen["anonymous"] = state_of(anonymous, Message(id="to", address="topic://koji.repo.init", body="x"))
    seen["anonymous_received"] = receiver.receive(timeout=10).id
    receiver.accept()

    dynamic = conn.create_receiver(None, dynamic=True)
    conn.create_sender(dynamic.link.remote_source.address).send(Message(id="dynamic", body="x"))
    seen["dynamic"] = dynamic.receive(timeout=10).id
    dynamic.accept()
    conn.close()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
