"""Sends messages with python-proton and prints the median time for each, in microseconds.

    python3 proton_sender.py URL USER PASSWORD ADDRESS each|kept COUNT

each: as Koji's protonmsg plugin does for every commit: a container, a connection, a link, one message.
kept: one connection and one link for all, each message after the settlement of the one before.
"""
import statistics
import sys
import time

from proton import Message
from proton.handlers import MessagingHandler
from proton.reactor import Container

OPTIONS = dict(allowed_mechs='PLAIN', allow_insecure_mechs=True, reconnect=False)


def message():
    return Message(body='x' * 800, properties={'type': 'Tag', 'tag': 'f40-updates', 'name': 'package'})


class Sender(MessagingHandler):
    def __init__(self, url, user, password, address, count):
        super().__init__()
        self.url, self.user, self.password, self.address = url, user, password, address
        self.left, self.times, self.began = count, [], None

    def on_start(self, event):
        connection = event.container.connect(self.url, user=self.user, password=self.password, **OPTIONS)
        self.sender = event.container.create_sender(connection, self.address)

    def on_sendable(self, event):
        if self.began is None:
            self.send()

    def send(self):
        self.began = time.perf_counter()
        self.sender.send(message())

    def on_settled(self, event):
        self.times.append(time.perf_counter() - self.began)
        self.left -= 1
        if self.left:
            self.send()
        else:
            event.connection.close()


def main():
    url, user, password, address, mode, count = sys.argv[1:]
    if mode == 'kept':
        sender = Sender(url, user, password, address, int(count))
        Container(sender).run()
        times = sender.times
    else:
        times = []
        for _ in range(int(count)):
            began = time.perf_counter()
            Container(Sender(url, user, password, address, 1)).run()
            times.append(time.perf_counter() - began)
    print(round(1e6 * statistics.median(times)))


main()
