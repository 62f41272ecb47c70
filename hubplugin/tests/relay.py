"""A stand-in for koji-relay: listens on a socket, keeps what is posted, answers what a test says."""
import json
import os
import socket
import sys
import threading


class Relay:
    """Answers each connection in a thread of its own.

    `answer` is bytes to send, or a function of (connection, request) that does what it likes. A request
    has .head (bytes), .text (the body) and .data (the parsed body).
    """

    def __init__(self, path, backlog=64):
        self.requests = []
        self.connections = 0
        self.answer = reply(200, {'sent': 1, 'queued': 0, 'skipped': 0, 'dead': 0})
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(backlog)
        self.open = []

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
            os.unlink(self.path)
        for connection in self.open:
            connection.close()

    def commits(self):
        return [request.data for request in self.requests if request.text]

    def asked(self):
        """How often it was asked only what it wants."""
        return len([request for request in self.requests if request.head.startswith(b'GET ')])

    def events(self):
        """(number, callback, kwargs) of all requests in order."""
        return [(event['event'], event['callback'], event['kwargs'])
                for commit in self.commits() for event in commit['events']]

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except (OSError, AttributeError):
                return
            self.connections += 1
            self.open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            request = Request(connection)
            self.requests.append(request)
            if callable(self.answer):
                self.answer(connection, request)
            else:
                connection.sendall(self.answer)
            connection.close()
        except OSError:
            pass


class Request:
    def __init__(self, connection):
        received = b''
        while b'\r\n\r\n' not in received:
            received += _some(connection)
        self.head, _, body = received.partition(b'\r\n\r\n')
        length = int(self.head.lower().split(b'content-length:')[1].split(b'\r\n')[0])
        parts = [body]
        missing = length - len(body)
        while missing > 0:
            parts.append(_some(connection))
            missing -= len(parts[-1])
        self.text = b''.join(parts).decode()

    @property
    def data(self):
        return json.loads(self.text)


def _some(connection):
    data = connection.recv(1 << 20)
    if not data:
        raise ConnectionError('the plugin closed the connection')
    return data


def reply(status, document):
    """An HTTP answer."""
    body = json.dumps(document).encode() if not isinstance(document, bytes) else document
    return b'HTTP/1.1 %d Text\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' % (
        status, len(body), body)


def main(path):
    """A relay in a process of its own: answers 200 to all that is posted to path, one after the other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        print('listening', flush=True)
        while True:
            connection, _ = listener.accept()
            try:
                Request(connection)
                connection.sendall(reply(200, {}))
            except OSError:
                pass    # the plugin did not wait, or we were frozen meanwhile
            connection.close()


if __name__ == '__main__':
    main(sys.argv[1])
