"""A process of hub workers for the chaos run: numbered changes through the real plugin, on a real database.

    python chaos_worker.py JOB

JOB is JSON: dsn, conf (of the plugin), seed, pace (seconds), workers (a list of [build, first number]).
Each worker is a thread with a hub and a build of its own. A change is a row of the table `work` and
one callback; what a commit is made of, and what became of it, is printed as lines of JSON:

    {"commit": ID, "build": B, "events": [[number, callback, body, counts], ...]}   before COMMIT
    {"failed": ID, "way": "exchange" | "insert"}    that way did not take it
    {"back": ID}                                    the relay answered 503 and took nothing of it
    {"end": ID, "state": "handed" | "refused" | "unknown" | "undone", "lost": [...], ...}

"handed": the hub has committed, and the plugin has logged no loss. "unknown": COMMIT itself failed.
Seconds of a request: "took" all of it; "plugin" in callbacks; "database" of these in the hub's database;
"stopped" in which this process stood still. It ends with its standard input. It is killed at any moment.
"""
import json
import logging
import os
import random
import re
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'hubplugin', 'tests'))

import conftest  # noqa: E402
import koji  # noqa: E402
import koji.plugin  # noqa: E402
import psycopg2  # noqa: E402
import psycopg2.extensions  # noqa: E402
from hub import Hub, dml  # noqa: E402
from koji.context import context  # noqa: E402

CALLBACKS = 'postTag', 'postUntag'
FILLER = 100000     # bytes of a large event
local = threading.local()
output = threading.Lock()


def say(**line):
    with output:
        os.write(1, (json.dumps(line) + '\n').encode())


class Losses(logging.Handler):
    """Keeps what the plugin logs about the commit of its thread."""

    def emit(self, record):
        local.said.append(record.getMessage())


def time_callbacks():
    """Add up what a request spends in callbacks: what the plugin costs the hub."""
    function = koji.plugin.run_callbacks

    def measured(*args, **kwargs):
        started, local.inside = time.monotonic(), True
        try:
            return function(*args, **kwargs)
        finally:
            local.inside = False
            local.spent += time.monotonic() - started
    koji.plugin.run_callbacks = measured


def timed(method):
    """A method of psycopg2, which adds to what callbacks wait for the hub's database."""
    def call(self, *args):
        started = time.monotonic()
        try:
            return method(self, *args)
        finally:
            if local.inside:
                local.database += time.monotonic() - started
    return call


class Cursor(psycopg2.extensions.cursor):
    execute = timed(psycopg2.extensions.cursor.execute)


class Connection(psycopg2.extensions.connection):
    commit = timed(psycopg2.extensions.connection.commit)
    rollback = timed(psycopg2.extensions.connection.rollback)


class Pulse(threading.Thread):
    """Beats, and so finds out for how long this process stood still."""
    STEP = 0.05     # seconds

    def __init__(self):
        super().__init__(daemon=True)
        self.still = 0.0    # seconds, of all of its life

    def run(self):
        while True:
            started = time.monotonic()
            time.sleep(self.STEP)
            self.still += max(0.0, time.monotonic() - started - 2 * self.STEP)


pulse = Pulse()


def note(module, name):
    """Remember which ways a commit was tried by. Order is promised for each way alone."""
    function = getattr(module, name)

    def noted(*args, **kwargs):
        local.ways.add(name)
        try:
            result = function(*args, **kwargs)
        except Exception:
            # From here on the events are no part of the commit, and die with this process.
            say(failed=local.commit, way=name)
            raise
        if name == 'exchange' and result == (args[1], 'it answered 503'):
            say(back=local.commit)
        return result
    setattr(module, name, noted)


class Worker(threading.Thread):
    def __init__(self, job, build, number, stop):
        super().__init__()
        self.hub = Hub(job['dsn'])
        self.pace = job['pace']
        self.build, self.number, self.stop = build, number, stop
        self.dice = random.Random('%s %s %s' % (job['seed'], build, number))

    def run(self):
        while not self.stop.wait(self.pace * self.dice.uniform(0.5, 1.5)):
            try:
                self.request()
            except psycopg2.Error:      # no connection: nothing was begun
                self.reconnect()

    def reconnect(self):
        try:
            self.hub.disconnect()
        except psycopg2.Error:
            pass
        self.hub.raw = None

    def connect(self):
        """Make the hub's own connection, whose statements are timed."""
        if self.hub.raw is None:
            self.hub.raw = psycopg2.connect(self.hub.dsn, connection_factory=Connection,
                                            cursor_factory=Cursor)

    def request(self):
        local.said, local.ways, local.commit, local.events = [], set(), None, []
        local.inside, local.spent, local.database = False, 0.0, 0.0
        self.connect()
        size = self.dice.choice([1, 1, 1, 3])
        undone = self.dice.random() < 0.05      # the whole request
        calls = [self.change(size > 1 and self.dice.random() < 0.1) for _ in range(size)]
        calls.append(self.announce(undone))
        started, still = time.monotonic(), pulse.still
        try:
            if size > 1 and not undone:
                self.hub.multicall(*calls)
            else:
                self.hub.request(lambda: [call() for call in calls])
            state = 'handed' if self.hub.committed else 'undone'
        except psycopg2.Error:
            if local.commit is None:
                raise
            # The hub cannot know more than this: COMMIT failed, or the connection did after it.
            state = 'handed' if self.hub.committed else 'unknown'
            self.reconnect()
        if local.commit is None:
            return self.reconnect()     # the method failed; all was rolled back
        lost = []
        for line in local.said:
            if ' lost: ' in line:
                state, lost = 'refused', [int(n) for n in re.findall(r"\((\d+), '", line)]
        say(end=local.commit, state=state, lost=lost, ways=sorted(local.ways), said=local.said,
            took=time.monotonic() - started, plugin=local.spent, database=local.database,
            stopped=pulse.still - still)

    def change(self, fails):
        """A method that writes a row, announces it, and perhaps fails then."""
        def method():
            self.number += 1
            number, callback = self.number, CALLBACKS[self.number % 2]
            note = 'Žluťoučký 日本 ' + 'x' * (FILLER if number % 50 == 0 else 0)
            kwargs = {'tag': {'id': 7, 'name': 'f39-candidate'},
                      'build': {'build_id': number, 'name': 'pkg-%d' % self.build, 'version': '1.0',
                                'release': '%d.fc39' % number, 'extra': {'note': note}},
                      'user': {'id': 1, 'name': 'kojiadmin'}, 'force': False}
            body = json.dumps(kwargs)
            dml('INSERT INTO work (what) VALUES (%s)', str(number))
            koji.plugin.run_callbacks(callback, **kwargs)
            local.events.append([number, callback, body, not fails])
            if fails:
                raise koji.GenericError('undone')
        return method

    def announce(self, undone):
        """The last method of a request: everything is known now but the outcome."""
        def method():
            local.commit = context.koji_relay.id
            say(commit=local.commit, build=self.build, events=local.events)
            if undone:
                raise koji.GenericError('undone as a whole')
        return method


def main():
    job = json.loads(sys.argv[1])
    plugin = conftest.load_plugin()
    plugin.CONFIG_FILE = job['conf']
    plugin.load_config()
    for name in 'exchange', 'insert':
        note(plugin, name)
    logging.getLogger('koji.plugin.koji_relay').addHandler(Losses())
    logging.getLogger('koji.plugin').propagate = False
    time_callbacks()
    pulse.start()
    stop = threading.Event()
    workers = [Worker(job, build, number, stop) for build, number in job['workers']]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    stop.set()
    for worker in workers:
        worker.join()


main()
