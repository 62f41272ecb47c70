"""Koji hub plugin: hands the events of every commit to koji-relay, which publishes them.

While a call runs, each hub callback that makes a message is kept as a line of JSON. The hub's own
transaction puts them into the table koji_relay.outbox (delivery = outbox), or they are posted to
koji-relay's socket when the hub has committed (delivery = direct). What goes wrong on one way goes
the other. Calls that the hub rolls back leave nothing.

It never makes a hub call fail, nor holds one up for longer than `timeout`. Its configuration is
read at first use: no mistake there sets the hub offline. Beside protonmsg all goes out twice.
"""
import contextlib
import datetime
import fnmatch
import functools
import http.client
import io
import json
import logging
import re
import socket
import time
import types
import uuid

import koji
from koji.context import context
from koji.plugin import callback, callbacks, ignore_error

CONFIG_FILE = '/etc/koji-hub/plugins/koji_relay.conf'
LOG = logging.getLogger('koji.plugin.koji_relay')
EVENTS = [name for name in callbacks   # all but those of commits and those of the builder
          if not re.search('Commit$|SCMCheckout$|CreateRepo$|CreateDistRepo$', name)]
SWITCH = 'on|yes|true|1|off|no|false|0', lambda text: text.lower() in ('on', 'yes', 'true', '1')
KEYS = {    # name: (default, regular expression of what the file may say, conversion)
    'delivery': ('outbox', 'direct|outbox', str.lower),
    'timeout': ('2', r'(?=.*[1-9])\d{1,4}(\.\d+)?', float),
    'socket': ('/run/koji-relay/hub.sock', '/.+', str),
    'callbacks': ('*', r'[\w\s*?!\[\]-]*', str),
    'max_request_bytes': ('8388608', r'[1-9]\d{0,9}', int),
    'test_mode': ('off',) + SWITCH,
}
RETIRED = {name: 'remove it; koji-relay is reached over its Unix socket alone: set socket, and '
                 'let the group of httpd write to it' for name in ('url', 'token_file')}
RETIRED['notify'] = 'remove it; after the commit koji-relay is told by a datagram, not by NOTIFY'
BREAKER_PERIOD = 10.0   # seconds in which nobody waits again for what did not answer
UNNOTICED = 0.1         # seconds; taking no longer than this is no wait
LEARNED_FOR = 10.0      # seconds after which all callbacks are collected until it is learned anew
MANY = 10               # so many events of a request are worth asking what is wanted
OUTBOX_SPEED = 20e6     # bytes that PostgreSQL stores in a second, at the least
# Names are qualified: the hub's search_path may have schemas in which others can create functions.
PREPARE = """SELECT pg_catalog.current_setting('lock_timeout'),
    pg_catalog.current_setting('statement_timeout'), pg_catalog.to_regclass('koji_relay.outbox'),
    pg_catalog.has_table_privilege(pg_catalog.to_regclass('koji_relay.reader'), 'SELECT')"""
SET_TIMEOUTS = """SELECT pg_catalog.set_config('lock_timeout', %s, true),
    pg_catalog.set_config('statement_timeout', %s, true)"""
SET_FALLBACK = ", pg_catalog.set_config('koji_relay.fallback', %s, true)"
READERS = ", (SELECT pg_catalog.string_agg(events, ' ') FROM koji_relay.reader)"
config, trouble = None, (None, None)    # trouble at the last commit: koji-relay's, the outbox's
learned = frozenset(), 0.0     # the callbacks that make messages; until when that holds


def load_config():
    """Read the configuration, once. What is wrong there is logged and replaced by its default."""
    global config
    given, values = {}, {}
    try:
        open(CONFIG_FILE).close()   # koji passes over a file that it may not read
        given.update(koji.read_config_files([(CONFIG_FILE, True)], raw=True).items('koji_relay'))
    except Exception as error:
        LOG.error('cannot read %s: %s; using all defaults, such as delivery = %s', CONFIG_FILE,
                  first_line(error), KEYS['delivery'][0])
    for name, (default, pattern, convert) in KEYS.items():
        text = given.pop(name, default)
        if not re.fullmatch(pattern, text, re.IGNORECASE):
            LOG.error('%s: %s cannot be %r, using %r', CONFIG_FILE, name, text, default)
            text = default
        values[name] = convert(text)
    for name in given:
        if name in RETIRED:
            LOG.warning('%s: ignoring the retired key %s: %s', CONFIG_FILE, name, RETIRED[name])
        else:
            LOG.error('%s: ignoring the unknown key %s', CONFIG_FILE, name)
    config = types.SimpleNamespace(**values)


@ignore_error
@callback(*EVENTS)
def collect(cbtype, *args, **kwargs):
    """Keep one event until the hub commits."""
    config or load_config()
    if 'StateChange' in cbtype and kwargs.get('attribute', 'state') != 'state':
        return
    names, until = learned
    if cbtype not in (names if time.monotonic() < until else matching(config.callbacks)):
        return
    if cbtype == 'postBuildStateChange':
        kwargs['btypes'] = build_types(kwargs.get('info'))  # this dict is ours, its values are not
    commit = collected()
    if commit is None:
        context.koji_relay = commit = types.SimpleNamespace(
            request=request(), id=str(uuid.uuid4()), count=0, log=[], events=[],
            stored=False, spent=0.0, failure=None)
        watch()
    commit.log.append((commit.count, cbtype, to_json(kwargs)))
    commit.count += 1   # a number is used once, even that of an event which is dropped later
    if commit.count % MANY == 0 and time.monotonic() > learned[1] and not config.test_mode:
        commit.spent += ask()


@functools.lru_cache(maxsize=16)
def matching(patterns):
    """The callbacks that match one of the patterns, which stand between spaces."""
    return frozenset(name for name in EVENTS if any(
        fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split()))


def learn(patterns):
    """Take over which callbacks make messages: patterns between spaces, or None for all."""
    global learned
    names = matching(config.callbacks) & matching('*' if patterns is None else patterns)
    learned = names, time.monotonic() + LEARNED_FOR


def ask():
    """Learn amid a large request, from those who get its events. Returns the seconds it took."""
    started = time.monotonic()
    learn(None)     # whatever comes, nobody asks again for a while
    with contextlib.suppress(Exception):
        if config.delivery == 'outbox':
            with savepoint(PREPARE) as cursor:
                lock, statement, _, readable = cursor.fetchone()
                if readable:
                    cursor.execute(SET_TIMEOUTS, ['%dms' % (1000 * UNNOTICED)] * 2)
                    cursor.execute(SET_TIMEOUTS + READERS, [lock, statement])
                    learn(cursor.fetchone()[2])
        elif not RELAY.lost:
            request_relay('GET', '', started + UNNOTICED)
    return time.monotonic() - started


def collected():
    """What this request has collected so far, or None. What an earlier one left is dropped.

    Only by getattr, setattr and delattr: before Koji 1.35.3 all threads share context.__dict__.
    """
    commit = getattr(context, 'koji_relay', None)
    if commit is not None and commit.request is not request():
        del context.koji_relay
        commit = None
    return commit


def request():
    """An object that the hub makes for each request."""
    return getattr(context, 'environ', None) or getattr(context, 'cnx', None)


def watch():
    """Let the hub's cursors note savepoints among the events, and take out what they roll back."""
    connection = raw_connection()
    if connection is not None and not hasattr(connection.cursor_factory, 'koji_relay'):
        base = type(connection.cursor())
        connection.cursor_factory = type('Cursor', (base,), {
            'execute': watched(base.execute), 'koji_relay': True})


def watched(execute):
    """What `execute` does, as a cursor's method. From the first event on it keeps the log."""
    def method(self, *args, **kwargs):
        result, done = execute(self, *args, **kwargs), self.statusmessage
        commit = collected() if done in ('SAVEPOINT', 'ROLLBACK', 'RELEASE') else None
        if commit is not None and b'koji_relay' not in self.query:  # none is in one of ours
            log, name = commit.log, self.query.replace(b';', b' ').split()[-1].strip(b'"').lower()
            # The last of that name. If it is not there, it is older than the first event.
            place = next((i for i in reversed(range(len(log))) if log[i] == name), -1)
            if done == 'SAVEPOINT':
                log.append(name)
            elif done == 'ROLLBACK':
                del log[place + 1:]
            else:
                log[max(place, 0):] = events_of(log[place + 1:])
        return result
    return method


def events_of(log):
    """What is no savepoint."""
    return [item for item in log if type(item) is tuple]


def raw_connection():
    """psycopg2's connection. Koji's wrappers log whole statements and mark the call as writing."""
    wrapper = getattr(context, 'cnx', None)
    return getattr(wrapper, 'cnx', wrapper)


@contextlib.contextmanager
def savepoint(query=''):
    """Keeps what fails inside from aborting the hub's transaction. Yields the query's cursor."""
    cursor = raw_connection().cursor()
    try:
        cursor.execute('SAVEPOINT koji_relay; ' + query)
        yield cursor
        cursor.execute('RELEASE SAVEPOINT koji_relay')
    except Exception:
        with contextlib.suppress(Exception):    # what failed first is the cause
            cursor.execute('ROLLBACK TO SAVEPOINT koji_relay')
        raise


def build_types(info):
    """A build's types, which only the hub's database knows."""
    try:
        from kojihub import get_build_type  # at import it could set the hub offline
        with savepoint():
            return get_build_type(info)
    except Exception as error:
        LOG.warning('looking up the types of a build: %s', first_line(error))


def to_json(kwargs):
    """kwargs as JSON, with what JSON cannot hold replaced in the text but not in kwargs."""
    try:
        return encode(kwargs)
    except Exception:   # too rare to look for beforehand
        values = {}
    for key, value in kwargs.items():
        try:            # NaN and infinities become null, keys that are no strings vanish
            text = json.dumps(value, default=replace, skipkeys=True)
            values[key] = json.loads(text, parse_constant=lambda name: None)
        except Exception:
            values[key] = replace(value)    # a cycle, for one
    return json.dumps(values)


def replace(value):
    """What to write for a value that json.dumps does not know: the same as protonmsg."""
    # Not by koji's @convert_datetime: there a date that cannot be read fails the hub call.
    try:
        if isinstance(value, datetime.datetime):    # koji would do the same, but later
            return value.isoformat(' ')
        if isinstance(value, (set, frozenset)):
            return list(value)
        text = koji.util.encode_datetime(value)
        if isinstance(text, str):
            return text
    except Exception:   # said below
        pass
    LOG.warning('replacing a value that JSON cannot hold: %s', type(value))
    return {'error': "Can't serialize", 'type': str(type(value))}


# json.dumps makes one a call. A cycle is an error without a check, too.
encode = json.JSONEncoder(default=replace, allow_nan=False, check_circular=False).encode


@ignore_error
@callback('preCommit')
def before_commit(cbtype, *args, **kwargs):
    """With delivery = outbox, make the events a part of the commit."""
    commit = collected()
    if commit is None:
        return
    commit.events, commit.log[:] = events_of(commit.log), []
    connection = raw_connection()
    if connection and connection.get_transaction_status() == 3:     # TRANSACTION_STATUS_INERROR
        commit.events = []  # what the hub takes for a commit will be a rollback
    if commit.events and config.delivery == 'outbox' and not config.test_mode:
        started = time.monotonic()
        try:
            with savepoint(PREPARE) as cursor:
                lock, statement, table, readable = cursor.fetchone()
                if table is None:   # an INSERT would leave an error in PostgreSQL's log each time
                    raise LookupError('no table koji_relay.outbox, so a hub worker killed before '
                                      'its hand-over loses events; "koji-relay db init" makes it')
                # RELEASE would leave our limits to the hub.
                insert(cursor, commit.id, commit.events, config.timeout / 2, then='; ' +
                       SET_TIMEOUTS + (READERS if readable else ''), values=[lock, statement])
                learn(cursor.fetchone()[2] if readable else None)
            commit.stored, commit.events = True, []
        except Exception as error:
            commit.failure = first_line(error)
        commit.spent += time.monotonic() - started


@ignore_error
@callback('postCommit')
def after_commit(cbtype, *args, **kwargs):
    """Hand over what is not in the outbox yet; what koji-relay does not take goes there now."""
    global trouble
    commit = collected()
    if commit is None:
        return
    del context.koji_relay
    events = commit.events + events_of(commit.log)
    if config.test_mode:
        LOG.info('test mode: %s: %s', commit.id, [event[:2] for event in events])
        return
    deadline = time.monotonic() + config.timeout - commit.spent
    patience = RELAY.left(config.timeout) if events else 0.0
    rest, why, lost, failure = events, trouble[0], [], commit.failure
    if patience:
        rest, why = post(commit, events, patience, deadline)
    if rest:    # what has not been asked yet is left half of the time
        left = deadline - time.monotonic()
        lost, failure = store_after_commit(commit, rest, left if patience else left / 2,
                                           why or 'it was slow')
        commit.stored = commit.stored or len(lost) < len(rest)
    if lost and not patience:
        lost, why = post(commit, lost, config.timeout, deadline, last=True)
    if commit.stored:
        poke()
    if lost:
        LOG.error('commit %s: %d of %d events lost: %s; koji-relay: %s; outbox: %s', commit.id,
                  len(lost), len(events), [event[:2] for event in lost[:20]], why, failure)
    elif trouble != (why, failure) == (None, None):
        LOG.warning('commit %s: koji-relay and the outbox work again', commit.id)
    elif trouble != (why, failure):     # an outage concerns every commit but is news only once
        LOG.warning('commit %s: %d of %d events went by the outbox; koji-relay: %s; outbox: %s',
                    commit.id, len(rest), len(events), why or 'ok', failure or 'ok')
    trouble = why, failure


def poke():
    """Tell koji-relay that something is in the outbox. It looks by itself too, but later."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(b'outbox', config.socket.rpartition('/')[0] + '/poke.sock')


def first_line(error):
    """The further lines of a database error quote the statement, which is not for the log."""
    return ('%s: %s' % (type(error).__name__, error)).split('\n')[0]


def batches(events, limit):
    """The events in order, in lists of at most `limit` bytes, or of one event that is longer."""
    batch, size = [], 0
    for event in events:
        size += len(event[2]) + 100
        if batch and size > limit:
            yield batch
            batch, size = [], len(event[2]) + 100
        batch.append(event)
    yield batch


class Breaker:
    """When half a budget is lost by waiting, nobody waits for BREAKER_PERIOD; then one may try."""
    lost = until = 0.0

    def left(self, budget):
        """Seconds that a try may wait now; 0 means not at all."""
        if time.monotonic() < self.until:
            return budget - self.lost if self.lost < budget / 2 else 0.0
        if self.lost >= budget / 2:
            self.until = time.monotonic() + BREAKER_PERIOD  # keeps others off this try
        return budget

    def book(self, seconds, budget):
        """Count what a try took."""
        if self.lost >= budget / 2 or time.monotonic() >= self.until:
            self.lost = 0.0
        if seconds > UNNOTICED:
            self.lost += seconds
            self.until = time.monotonic() + BREAKER_PERIOD


RELAY, OUTBOX = Breaker(), Breaker()


class DeadlineSocket(socket.socket):
    """A socket whose waiting, all calls together, ends at `deadline`."""
    def arm(self):
        left = self.deadline - time.monotonic()
        if left <= 0:   # also when there is always something to read
            raise socket.timeout('timed out')
        self.settimeout(left)

    def recv(self, *args):
        self.arm()
        return super().recv(*args)


def post(commit, events, patience, deadline, last=False):
    """Post events, in several requests if they are large. Returns what was not taken, and why."""
    started = time.monotonic()
    work = sum(len(event[2]) for event in events) / OUTBOX_SPEED
    if not last:    # The outbox may need time as well: some, and more for more, if there is that.
        deadline -= config.timeout / 5 + (work if work < config.timeout / 2 else 0)
    rest, why, requests = [], None, batches(events, config.max_request_bytes)
    for batch in requests:
        try:
            missing, answer = exchange(commit.id, batch, min(deadline, started + patience))
        except Exception as error:
            missing, answer = sum(requests, batch), first_line(error)
        if missing:
            rest, why = rest + missing, answer
    cost = time.monotonic() - started - (0 if rest else work)
    RELAY.book(cost, config.timeout)
    if cost > UNNOTICED:
        OUTBOX.book(cost, config.timeout / 2)   # no further wait on top of it
    return rest, why


def exchange(commit_id, batch, deadline):
    """One request. Returns the events that were not taken, and the answer in short."""
    answer = request_relay('POST', '{"commit": "%s", "events": [%s]}' % (commit_id, ', '.join(
        '{"event": %d, "callback": "%s", "kwargs": %s}' % event for event in batch)), deadline)
    if TAKEN.match(answer):
        return [], None
    response = http.client.HTTPResponse(types.SimpleNamespace(
        makefile=lambda mode: io.BytesIO(answer)), method='POST')
    response.begin()
    if response.status == 503:      # it names the events that were not taken, or none
        named = set(json.loads(response.read().decode()).get('not_taken', ()))
        batch = [event for event in batch if event[0] in named] or batch
    return batch, 'it answered %d' % response.status


def request_relay(method, body, deadline):
    """Send one request and return the answer. It says which callbacks make messages, too."""
    text = ('%s /v1/commits HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
            'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' % (
                method, len(body), body))
    with DeadlineSocket(socket.AF_UNIX) as connection:
        connection.deadline = deadline
        connection.arm()
        connection.connect(config.socket)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):    # the answer says why
            for position in range(0, len(text), 1 << 20):
                connection.arm()
                connection.sendall(text[position:position + (1 << 20)].encode())
        answer = read_answer(connection)
    if config.delivery == 'direct':     # the outbox may have more readers than this one
        found = EVENTS_HEADER.match(answer)
        learn(found and found.group(1).decode('latin-1'))
    return answer


# Behind any answers of the kind "100 Continue". Only such a complete head, or the end, ends a 200.
TAKEN = re.compile(rb'(?:HTTP/1\.\d 1\d\d.*\r\n(?:.+\r\n)*\r\n)*HTTP/1\.\d 200\b')
EVENTS_HEADER = re.compile(rb'(?:.+\r\n)+?Koji-Relay-Events:[ \t]*(.*?)[ \t]*\r\n', re.IGNORECASE)


def read_answer(connection):
    """All of an answer, at most 1 MiB; of a 200 the head. Quicker than http.client by 0.1 ms."""
    answer = b''
    while len(answer) < 1 << 20:
        part = connection.recv(1 << 16)
        answer += part
        found = TAKEN.match(answer)
        if not part or found and b'\r\n\r\n' in answer[found.end():]:
            return answer
    raise ValueError('its answer does not end')


def insert(cursor, commit_id, events, seconds, why='', then='', values=()):
    """Insert events with one statement that takes at most `seconds`, waiting for locks too.

    why tells koji-relay what is wrong with its socket. `then` goes along, to save a way there.
    """
    if sum(len(event[2]) for event in events) > seconds * OUTBOX_SPEED:
        raise ValueError('too large to be stored within %.1f s' % seconds)
    wait, started = min(seconds, OUTBOX.left(config.timeout / 2)), time.monotonic()
    try:
        if not wait:
            cursor.execute('LOCK TABLE koji_relay.outbox IN ROW EXCLUSIVE MODE NOWAIT')
        # With preserve_order koji-relay puts events there too, and may not know that it did.
        cursor.execute(
            SET_TIMEOUTS + SET_FALLBACK + '; '
            'INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES '
            + ', '.join(['(%s, %s, %s, %s)'] * len(events)) + ' ON CONFLICT DO NOTHING' + then,
            [*('%dms' % max(1, 1000 * limit) for limit in (wait, seconds)),
             re.sub('[^ -~]', '?', why)[:200],
             *(value for event in events for value in (commit_id, *event)), *values])
    finally:
        if wait:
            OUTBOX.book(time.monotonic() - started, config.timeout / 2)


def store_after_commit(commit, events, seconds, why):
    """Insert events in a transaction of their own, since koji-relay did not take them: why.

    Returns those that are lost, and why those.
    """
    connection, seconds = raw_connection(), max(seconds, UNNOTICED)
    fitting, lost = next(batches(events, seconds * OUTBOX_SPEED)), events
    try:
        connection.rollback()       # ends what another plugin may have left open
        cursor = connection.cursor()
        insert(cursor, commit.id, fitting, seconds, why)
        connection.commit()
        lost = events[len(fitting):]
    except Exception as error:
        if connection is not None and not connection.closed:
            connection.rollback()
        return lost, first_line(error)
    return lost, 'too large to be stored in time' if lost else None
