"""Delivery after the commit: the socket in all its moods, the outbox behind it, and the time it takes."""
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import koji
import koji.plugin
import psycopg2.extensions
import pytest
from koji.context import context

from conftest import outbox
from hub import change, dml
from relay import Relay, __file__ as relay_program, reply

GRACE = 0.4     # seconds that a commit may take beyond its timeout; less than another timeout


def timed(method, *args):
    started = time.monotonic()
    method(*args)
    return time.monotonic() - started


def drip(data, pause):
    """Answers one byte at a time until the plugin hangs up."""
    def answer(connection, request):
        stop = threading.Event()
        for byte in data:
            connection.sendall(bytes([byte]))
            stop.wait(pause)
    return answer


def silence(connection, request):
    connection.recv(1)      # returns when the plugin hangs up


def endless(start, more=b'x' * 65536):
    def answer(connection, request):
        connection.sendall(start)
        while True:
            connection.sendall(more)
    return answer


OK = reply(200, {'sent': 1})


# ---- what is taken ------------------------------------------------------------------------------

def test_commit_answered_200_goes_nowhere_else(load, hub, database, relay, log):
    load()
    hub.request(change('x'))
    assert [kwargs['what'] for _, _, kwargs in relay.events()] == ['x', 'x']
    assert outbox(database) == [] and log() == []


@pytest.mark.parametrize('answer', [
    OK,
    b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{',              # not read any further
    b'HTTP/1.1 100 Continue\r\n\r\n' + OK,
    b'HTTP/1.0 200 OK\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nContent-Le',
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n',
], ids=['plain', 'cut', 'after continue', 'old', 'torn', 'chunked'])
def test_200_means_taken(load, hub, database, relay, answer):
    relay.answer = answer
    load()
    hub.request(change('x'))
    assert outbox(database) == []


@pytest.mark.parametrize('status, document', [
    (400, {'code': 'BAD_REQUEST'}), (404, b'<html>'), (413, {'code': 'TOO_LARGE'}),
    (500, b'oops'), (502, b''), (503, b''), (503, b'not json'), (503, {'code': 'BUSY'}),
    (503, {'not_taken': []}), (503, {'not_taken': [77]}), (503, {'not_taken': 1}), (503, [1]),
    (201, {}), (204, b''), (302, b''),
])
def test_any_other_answer_sends_the_commit_by_the_outbox(load, hub, database, relay, log, status, document):
    relay.answer = reply(status, document)
    load()
    hub.request(change('x'))
    (commit,) = relay.commits()
    assert [(c, number, name, json.loads(kwargs)) for c, number, name, kwargs in outbox(database)] == [
        (commit['commit'], event['event'], event['callback'], event['kwargs']) for event in commit['events']]
    assert len(log()) == 1 and 'went by the outbox' in log()[0]


def test_only_the_events_that_a_503_names_go_by_the_outbox(load, hub, database, relay):
    relay.answer = reply(503, {'code': 'NOT_TAKEN', 'not_taken': [1, 2], 'error': 'x'})
    load()
    hub.multicall(change('a'), change('b'))
    commit = relay.commits()[0]['commit']
    assert [row[:3] for row in outbox(database)] == [(commit, 1, 'postTag'), (commit, 2, 'preTag')]


def test_event_that_the_relay_itself_put_into_the_outbox_leaves_the_others_their_place(
        load, hub, database, relay, log):
    """With preserve_order the relay may commit to the outbox just when it answers that it did not."""
    def stored_and_refused(connection, request):
        database.sql('INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES (%s, 0, %s, %s)',
                     request.data['commit'], 'preTag', '{}')
        connection.sendall(reply(503, {'code': 'NOT_TAKEN', 'not_taken': [0, 1], 'error': 'x'}))
    relay.answer = stored_and_refused
    load(delivery='direct')
    hub.request(change('x'))
    assert [row[1:3] for row in outbox(database)] == [(0, 'preTag'), (1, 'postTag')]
    assert not [line for line in log() if 'lost' in line]


def test_numbers_survive_dropped_events_on_every_way(load, hub, database, relay):
    relay.answer = reply(503, {'not_taken': [3]})
    load()
    hub.multicall(change('undone', fail=True), change('kept'))
    assert [event['event'] for event in relay.commits()[0]['events']] == [2, 3]
    assert [row[1] for row in outbox(database)] == [3]


def test_large_commit_is_posted_in_parts_and_each_event_once(load, hub, database, relay):
    load(max_request_bytes=100000)
    sizes = [10, 70000, 40000, 40000, 10, 250000, 10, 99000]

    def method():
        for size in sizes:
            koji.plugin.run_callbacks('postTag', text='x' * size)
        dml('SELECT 1')
    hub.request(method)
    parts = [[event['event'] for event in commit['events']] for commit in relay.commits()]
    assert parts == [[0, 1], [2, 3, 4], [5], [6], [7]] or parts == [[0, 1], [2, 3, 4], [5], [6, 7]]
    assert len({commit['commit'] for commit in relay.commits()}) == 1
    assert all(len(request.text) < 100000 for request in relay.requests
               if request.data['events'][0]['event'] != 5)


def test_parts_that_are_refused_go_by_the_outbox_and_the_others_do_not(load, hub, database, relay):
    def answer(connection, request):
        connection.sendall(reply(413, {}) if '"event": 1,' in request.text else OK)
    relay.answer = answer
    load(max_request_bytes=1000)

    def method():
        for number in range(4):
            koji.plugin.run_callbacks('postTag', text='x' * 900)
        dml('SELECT 1')
    hub.request(method)
    assert relay.connections == 4
    assert [row[1] for row in outbox(database)] == [1]


def test_parts_after_one_without_an_answer_are_not_tried(load, hub, database, relay):
    def answer(connection, request):
        if '"event": 0,' in request.text:
            connection.sendall(OK)
    relay.answer = answer
    load(max_request_bytes=1000)

    def method():
        for number in range(5):
            koji.plugin.run_callbacks('postTag', text='x' * 900)
        dml('SELECT 1')
    hub.request(method)
    assert relay.connections == 2
    assert [row[1] for row in outbox(database)] == [1, 2, 3, 4]


def test_test_mode_only_logs(load, hub, database, relay, log):
    for delivery in ('direct', 'outbox'):
        load(test_mode='on', delivery=delivery)
        hub.request(change('secret'))
    assert relay.connections == 0 and outbox(database) == []
    assert sum('test mode' in line for line in log(0)) >= 2 and 'secret' not in ''.join(log(0))


# ---- time ---------------------------------------------------------------------------------------

FAULTS = {
    'silent': silence,
    'one byte a second': drip(OK, 1.0),
    'a byte now and then': drip(OK * 100, 0.02),
    'endless headers': endless(b'HTTP/1.1 200 OK\r\nX: '),
    'endless body': endless(b'HTTP/1.1 500 Oops\r\n\r\n'),
    'endless continue': endless(b'', b'HTTP/1.1 100 Continue\r\n\r\n' * 20000),
    'garbage': b'\x00\xff\x16\x03garbage\n\n\n',
    'ssh': b'SSH-2.0-OpenSSH_9.2\r\n',
    'nothing': b'',
    'half a status line': b'HTTP/1.1 20',
    'no number': b'HTTP/1.1 OK 200\r\n\r\n',
    'cut answer': b'HTTP/1.1 503 No\r\nContent-Length: 500\r\n\r\n{"not_taken": [0',
}


@pytest.mark.timing
@pytest.mark.parametrize('fault', FAULTS)
def test_broken_answer_costs_at_most_the_timeout_and_loses_nothing(load, hub, database, relay, log, fault):
    relay.answer = FAULTS[fault]
    load(timeout='0.6')
    assert timed(hub.request, change('x')) < 0.6 + GRACE
    assert hub.committed
    assert [row[1] for row in outbox(database)] == [0, 1]
    assert len(log()) == 1


@pytest.mark.timing
def test_no_socket_costs_nothing(load, hub, database, log):
    load()
    hub.request(change('warm'))
    assert timed(hub.request, change('x')) < 0.1
    assert len(outbox(database)) == 4
    assert len(log()) == 1 and 'FileNotFoundError' in log()[0]


@pytest.mark.timing
def test_socket_without_a_listener_costs_nothing(load, hub, database, directory, log):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(directory + '/hub.sock')
    dead.close()
    load()
    assert timed(hub.request, change('x')) < 0.3
    assert len(outbox(database)) == 2 and 'ConnectionRefusedError' in log()[0]


@pytest.mark.timing
def test_full_backlog_costs_nothing(load, hub, database, directory, log):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(directory + '/hub.sock')
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(8)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(directory + '/hub.sock')
        load()
        assert timed(hub.request, change('x')) < 0.3
        for client in waiting:
            client.close()
    assert len(outbox(database)) == 2 and 'BlockingIOError' in log()[0]


@pytest.fixture
def relay_process(directory):
    """A relay in a process of its own, which signals can freeze."""
    process = subprocess.Popen([sys.executable, relay_program, directory + '/hub.sock'],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.mark.timing
def test_frozen_relay_costs_one_timeout_per_breaker_period(load, hub, database, relay_process, log):
    plugin = load(timeout='0.8')
    hub.request(change('taken'))
    assert outbox(database) == []
    relay_process.send_signal(signal.SIGSTOP)
    assert 0.6 < timed(hub.request, change('x')) < 0.8 + GRACE
    assert sum(timed(hub.request, change('x')) for _ in range(20)) < 0.7
    assert len(outbox(database)) == 42
    plugin.RELAY.until = plugin.OUTBOX.until = time.monotonic()     # the period passes
    assert 0.6 < timed(hub.request, change('x')) < 0.8 + GRACE      # one probe
    assert timed(hub.request, change('x')) < 0.6
    plugin.RELAY.until = plugin.OUTBOX.until = time.monotonic()
    relay_process.send_signal(signal.SIGCONT)
    hub.request(change('taken'))
    hub.request(change('taken'))
    assert len(outbox(database)) == 46
    assert ['TimeoutError' in line or 'timed out' in line for line in log()] == [True, False]


@pytest.mark.timing
def test_frozen_relay_and_locked_table_cost_one_timeout_together(load, hub, database, relay_process, log):
    load(timeout='1')
    relay_process.send_signal(signal.SIGSTOP)
    locker = lock(database)
    hub.request(lambda: None)
    assert timed(hub.request, change('x')) < 1 + GRACE
    assert hub.committed
    assert len(log()) == 1
    assert log()[0].startswith('ERROR commit ')
    assert "2 of 2 events lost: [(0, 'preTag'), (1, 'postTag')]" in log()[0]
    assert 'timed out' in log()[0] and 'LockNotAvailable' in log()[0]
    assert max(timed(hub.request, change('x')) for _ in range(3)) < 1 + GRACE   # asked again, each
    unlock(locker)
    hub.request(change('x'))
    assert len(outbox(database)) == 2


@pytest.mark.timing
def test_thousand_commits_after_a_timeout_do_not_wait(load, hub, database, relay):
    relay.answer = silence
    load(timeout='0.3')
    assert timed(hub.request, change('x')) > 0.2
    durations = sorted(timed(hub.request, change('x')) for _ in range(1000))
    assert durations[900] < 0.05, durations[900:]
    assert len(outbox(database)) == 2002
    assert relay.connections <= 2   # a probe, on a slow machine


@pytest.mark.timing
@pytest.mark.parametrize('obstacle', ['locked', 'missing', 'not permitted'])
def test_no_commit_takes_longer_than_the_timeout_when_the_outbox_cannot_help_either(
        load, hub, database, relay, obstacle):
    """None is given up without asking."""
    relay.answer = silence
    load(timeout='0.6')
    locker = obstruct(database, obstacle)
    durations = [timed(hub.request, change('x')) for _ in range(10)]
    assert max(durations) < 0.6 + GRACE and relay.connections == 10
    if locker:
        unlock(locker)


@pytest.mark.timing
def test_slow_but_steady_relay_costs_at_most_the_timeout_per_period(load, hub, database, relay):
    """It answers just in time, every time. Waiting for that again and again is no better than a timeout."""
    def answer(connection, request):
        threading.Event().wait(0.25)
        connection.sendall(OK)
    relay.answer = answer
    load(timeout='1')
    assert sum(timed(hub.request, change('x')) for _ in range(20)) < 1 + GRACE
    assert 2 <= relay.connections <= 4


@pytest.mark.timing
@pytest.mark.parametrize('mood', ['awake', 'frozen'])
@pytest.mark.parametrize('parts', [1, 200])
def test_commit_of_200_megabytes_keeps_the_time(load, hub, database, relay_process, mood, parts, log):
    load(timeout='8')
    data = 'x' * (200000000 // parts)
    started = []

    def method():
        for _ in range(parts):
            koji.plugin.run_callbacks('postTag', data=data)
        dml('SELECT 1')
    hub.between = lambda: started.append(time.monotonic())
    if mood == 'frozen':
        relay_process.send_signal(signal.SIGSTOP)
    hub.request(method)
    assert time.monotonic() - started[0] < 8 + 4      # another timeout would be 16
    assert hub.committed
    if mood == 'frozen':
        assert log()[-1].startswith('ERROR') and 'lost' in log()[-1]
    elif parts > 1:     # (one event of this size is more than koji-relay takes at once)
        assert log() == []


@pytest.mark.timing
def test_of_a_commit_that_is_too_large_to_save_as_much_as_possible_is_saved(load, hub, database, log):
    load(timeout='0.5')

    def method():
        for _ in range(40):
            koji.plugin.run_callbacks('postTag', data='x' * 1000000)
        dml('SELECT 1')
    hub.request(method)
    assert [row[1] for row in outbox(database)] == list(range(len(outbox(database))))
    assert 4 <= len(outbox(database)) <= 10
    assert 'of 40 events lost' in log()[-1] and 'too large' in log()[-1]


@pytest.mark.timing
def test_silence_leaves_the_outbox_the_time_it_needs(load, hub, database, relay):
    relay.answer = silence
    load(timeout='3')

    def method():
        for _ in range(4):
            koji.plugin.run_callbacks('postTag', data='x' * 1000000)
        dml('SELECT 1')
    assert timed(hub.request, method) < 3 + 2     # and the time to serialise them; another timeout would be 6
    assert [row[1] for row in outbox(database)] == [0, 1, 2, 3]


def test_commit_that_the_outbox_could_not_store_in_time_goes_directly_at_once(
        load, hub, database, relay, log):
    load(delivery='outbox', timeout='1')
    hub.request(change('x' * 6000000))
    assert len(relay.events()) == 2 and outbox(database) == []
    assert len(log()) == 1 and 'too large to be stored' in log()[0]


# ---- the outbox ---------------------------------------------------------------------------------

def lock(database, table='koji_relay.outbox'):
    """Somebody holds the table, as VACUUM FULL or ALTER TABLE would."""
    import psycopg2
    locker = psycopg2.connect(database.admin.dsn, options='-c idle_in_transaction_session_timeout=15s')
    locker.cursor().execute('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE' % table)
    return locker


def unlock(locker):
    locker.rollback()
    locker.close()


def obstruct(database, obstacle):
    if obstacle == 'locked':
        return lock(database)
    if obstacle == 'missing':
        database.sql('DROP TABLE koji_relay.outbox')
    if obstacle == 'not permitted':
        database.sql('REVOKE ALL ON koji_relay.outbox FROM ' + database.role)
    return None


SETTINGS = "SELECT name, setting FROM pg_settings WHERE name !~ '^transaction_' ORDER BY name"


def settings():
    cursor = context.cnx.cnx.cursor()
    cursor.execute(SETTINGS)
    return cursor.fetchall()


@pytest.mark.timing
@pytest.mark.parametrize('obstacle', [None, 'locked', 'missing', 'not permitted'])
@pytest.mark.parametrize('delivery', ['direct', 'outbox'])
@pytest.mark.parametrize('with_relay', [True, False])
def test_obstacle_neither_breaks_nor_delays_the_hub_and_no_setting_stays_changed(
        load, hub, database, directory, log, obstacle, delivery, with_relay):
    relay = Relay(directory + '/hub.sock').__enter__() if with_relay else None
    load(timeout='0.6', delivery=delivery)
    locker = obstruct(database, obstacle)
    seen = {}

    def look(cbtype):
        seen[cbtype] = settings()
        if cbtype == 'preCommit':
            assert context.cnx.cnx.get_transaction_status() == 2   # still in the hub's transaction
    for name in ('preCommit', 'postCommit'):
        koji.plugin.register_callback(name, look)   # runs after the plugin's own

    def method():
        dml("SET LOCAL statement_timeout = '77s'")
        dml("SET lock_timeout = '66s'")
        change('x')()
        seen['before'] = settings()
    took = timed(hub.request, method)
    assert hub.committed and took < 0.6 + GRACE
    assert seen['preCommit'] == seen['before']
    assert dict(seen['postCommit'])['lock_timeout'] == '66000'
    assert dict(seen['postCommit'])['statement_timeout'] == '0'
    assert database.sql('SELECT what FROM work') == [('x',)]
    stored = [] if obstacle else outbox(database)
    if relay:
        by_socket = obstacle or delivery == 'direct'
        assert [number for number, _, _ in relay.events()] == ([0, 1] if by_socket else [])
        assert len(stored) == (0 if by_socket else 2)
        relay.stop()
    elif not obstacle:
        assert len(stored) == 2
    else:
        assert log()[-1].startswith('ERROR') and '2 of 2 events lost' in log()[-1]
        assert 'postTag' in log()[-1] and len(log()) == 1
    if locker:
        unlock(locker)
    if obstacle != 'missing':
        dml_after(hub, database)


def test_commit_waits_for_the_server_three_times(load, hub, database):
    """A savepoint with a look, the limits with the rows, and the release."""
    load(delivery='outbox')
    asked = []

    class Noting(psycopg2.extensions.cursor):
        def execute(self, query, values=None):
            asked.append(query)
            return super().execute(query, values)

    def method():
        context.cnx.cnx.cursor_factory = Noting
        change('x')()
    hub.request(method)
    assert [event[1] for event in outbox(database)] == [0, 1]
    assert len([query for query in asked if 'koji_relay' in query]) == 3


def dml_after(hub, database):
    """The worker's connection is as good as before."""
    hub.request(change('after'))
    assert database.sql("SELECT count(*) FROM work WHERE what = 'after'") == [(1,)]


def test_outbox_delivery_is_part_of_the_hubs_transaction(load, hub, database, relay):
    load(delivery='outbox')
    inside = []
    koji.plugin.register_callback('preCommit', lambda cbtype: inside.append(len(outbox(database))))
    hub.request(change('x'))
    rows = database.sql("SELECT o.xmin = w.xmin FROM koji_relay.outbox o, work w")
    assert inside == [0]            # nobody sees it before the commit
    assert len(rows) == 2           # (the savepoint gives the rows a subtransaction's id)
    assert relay.connections == 0


@pytest.fixture
def pokes(directory):
    """The datagrams that a relay gets."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(directory + '/poke.sock')
        listener.setblocking(False)

        def received():
            texts = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    texts.append(listener.recv(100))
            return texts
        yield received


@pytest.mark.parametrize('delivery', ['direct', 'outbox'])
def test_relay_is_told_of_the_outbox_after_the_commit_and_not_by_notify(load, hub, database, pokes, delivery):
    import psycopg2
    listener = psycopg2.connect(database.admin.dsn)
    listener.autocommit = True
    listener.cursor().execute('LISTEN koji_relay')
    load(delivery=delivery)     # nobody listens on hub.sock
    early = []
    koji.plugin.register_callback('preCommit', lambda cbtype: early.extend(pokes()))
    hub.multicall(change('x'), change('undone', fail=True))
    assert len(outbox(database)) == 2
    assert early == [] and pokes() == [b'outbox']
    listener.cursor().execute('SELECT 1')
    listener.poll()
    assert listener.notifies == []
    listener.close()


def test_relay_is_not_told_when_nothing_is_in_the_outbox(load, hub, database, relay, pokes):
    load()
    hub.request(change('x'))
    assert len(relay.events()) == 2 and pokes() == []


def test_poke_that_nobody_takes_costs_nothing(load, hub, database, directory, pokes, log):
    """The socket's buffer fills: a relay that hangs."""
    load(delivery='outbox')
    commits = 400
    took = timed(lambda: [hub.request(change('x')) for _ in range(commits)])
    assert len(outbox(database)) == 2 * commits and log() == []
    assert 0 < len(pokes()) < commits, 'the buffer did not fill'
    assert took < 60


def test_missing_outbox_is_said_once_with_the_remedy_and_leaves_no_error_in_postgresqls_log(
        load, hub, database, relay, log):
    obstruct(database, 'missing')
    load(delivery='outbox')
    for _ in range(3):
        hub.request(change('x'))
    assert len(relay.events()) == 6
    assert len(log()) == 1 and 'koji-relay db init' in log()[0] and log()[0].startswith('WARNING')


# ---- nothing is given up unasked -----------------------------------------------------------------

def freeze_once(relay):
    """The next request gets no answer, those after it do."""
    def answer(connection, request):
        relay.answer = OK
        connection.recv(1)
    relay.answer = answer


@pytest.mark.timing
@pytest.mark.parametrize('delivery', ['direct', 'outbox'])
def test_relay_is_asked_again_before_anything_is_lost(load, hub, database, relay, log, delivery):
    load(delivery=delivery, timeout='1')
    freeze_once(relay)
    if delivery == 'outbox':
        database.sql('REVOKE INSERT ON koji_relay.outbox FROM ' + database.role)
        hub.request(change('frozen'))
    else:
        hub.request(change('frozen'))
        assert len(outbox(database)) == 2
        database.sql('ALTER TABLE koji_relay.outbox RENAME TO elsewhere')
    taken = len(relay.requests)
    for what in 'abc':
        hub.request(change(what))
    assert [kwargs['what'] for _, _, kwargs in relay.events()][2 * taken:] == list('aabbcc')
    assert not [line for line in log() if 'lost' in line and "'a'" in line]
    assert len([line for line in log() if line.startswith('ERROR')]) == (1 if delivery == 'outbox' else 0)


@pytest.mark.timing
def test_loss_is_reported_with_what_was_tried_just_now(load, hub, database, relay, log):
    load(timeout='0.6')
    freeze_once(relay)
    hub.request(change('x'))
    obstruct(database, 'missing')
    relay.stop()
    assert timed(hub.request, change('y')) < 0.6 + GRACE
    assert log()[-1].startswith('ERROR') and '2 of 2 events lost' in log()[-1]
    assert 'FileNotFoundError' in log()[-1] and 'timed out' not in log()[-1]


# ---- only what is wanted -------------------------------------------------------------------------

def with_events(patterns):
    return (b'HTTP/1.1 200 OK\r\nContent-Type: x\r\nkoji-relay-events: %s\r\n'
            b'Content-Length: 2\r\n\r\n{}') % patterns


def test_callbacks_that_make_no_message_are_dropped_once_an_answer_says_so(load, hub, database, relay):
    plugin = load()
    relay.answer = with_events(b'post[TU]* preImport')
    names = []
    for _ in range(2):
        hub.request(change('x'))
        names.append([name for _, name, _ in relay.events()])
    assert names == [['preTag', 'postTag'], ['preTag', 'postTag', 'postTag']]
    assert relay.requests[1].data['events'][0]['event'] == 0
    plugin.learned = plugin.learned[0], 0.0     # the time of what was learned is over
    relay.answer = with_events(b'*')
    hub.request(change('y'))
    hub.request(change('z'))
    assert [kwargs['what'] for _, _, kwargs in relay.events()][3:] == ['y', 'y', 'z', 'z']
    relay.answer = OK                           # an older relay says nothing
    hub.request(change('u'))
    assert plugin.learned[0] == plugin.matching('*')


def test_outbox_asks_its_readers_what_they_want(load, hub, database, relay):
    plugin = load(delivery='outbox')
    database.sql("INSERT INTO koji_relay.reader (name, events) "
                 "VALUES ('', 'postTag'), ('second', 'preUn* postUntag')")
    for event in ('Tag', 'Untag', 'Import'):
        hub.request(change('x', event=event))
    assert [row[2] for row in outbox(database)] == ['preTag', 'postTag', 'preUntag', 'postUntag']
    database.sql("UPDATE koji_relay.reader SET events = '*' WHERE name = ''")
    hub.request(change('x'))
    hub.request(change('x'))
    assert [row[2] for row in outbox(database)][4:] == ['postTag', 'preTag', 'postTag']
    database.sql('DELETE FROM koji_relay.reader')
    hub.request(change('x'))
    assert plugin.learned[0] == plugin.matching('*')


@pytest.mark.parametrize('obstacle', ['DROP TABLE koji_relay.reader',
                                      'REVOKE SELECT ON koji_relay.reader FROM {role}'])
def test_without_the_table_of_readers_everything_is_collected(load, hub, database, relay, log, obstacle):
    database.sql("INSERT INTO koji_relay.reader (name, events) VALUES ('', 'postTag')")
    database.sql(obstacle.format(role=database.role))
    load(delivery='outbox')
    hub.request(change('x'))
    hub.request(change('y'))
    assert len(outbox(database)) == 4 and relay.connections == 0 and log() == []


def many(hub, count=30, **kwargs):
    """One request with a pre and a post event for each of so many calls."""
    return hub.multicall(*[change('x', **kwargs) for _ in range(count)])


def pre_and_post(events):
    events = list(events)
    return events.count('preTag'), events.count('postTag')


def test_large_request_asks_the_readers_of_the_outbox_what_they_want(load, hub, database, relay, log):
    plugin = load(delivery='outbox')
    plugin.UNNOTICED = 10.0     # on a busy machine an answer takes longer
    database.sql("INSERT INTO koji_relay.reader (name, events) VALUES ('', 'post*')")
    many(hub)
    assert pre_and_post(row[2] for row in outbox(database)) == (5, 30)     # asked with the tenth event
    plugin.learned = frozenset(), 0.0
    hub.multicall(*[change('x', fail=True) for _ in range(20)], change('y'))    # undone ones ask, too
    assert [row[2] for row in outbox(database)][35:] == ['postTag']
    assert relay.connections == 0 and log() == []


def test_large_request_asks_the_relay_what_it_wants(load, hub, database, relay, log):
    plugin = load()
    plugin.UNNOTICED = 10.0     # on a busy machine an answer takes longer
    relay.answer = with_events(b'post*')
    many(hub)
    assert pre_and_post(name for _, name, _ in relay.events()) == (5, 30) and relay.asked() == 1
    many(hub)
    assert pre_and_post(name for _, name, _ in relay.events()) == (5, 60) and relay.asked() == 1
    plugin.learned = plugin.learned[0], 0.0     # for an older relay a GET is no allowed method
    relay.answer = lambda connection, request: connection.sendall(
        OK if request.text else reply(405, {'code': 'METHOD_NOT_ALLOWED'}))
    many(hub)
    assert pre_and_post(name for _, name, _ in relay.events()) == (35, 90)
    assert log() == []


def test_what_was_learned_does_not_end_amid_a_large_request(load, hub, database, relay):
    plugin = load(delivery='outbox')
    plugin.UNNOTICED = 10.0     # on a busy machine an answer takes longer
    database.sql("INSERT INTO koji_relay.reader (name, events) VALUES ('', 'post*')")

    def forget():
        plugin.learned = plugin.learned[0], 0.0
    hub.multicall(*[change('x') for _ in range(30)], forget, *[change('x') for _ in range(30)])
    pre, post = pre_and_post(row[2] for row in outbox(database))
    assert post == 60 and pre <= 5 + 10


@pytest.mark.parametrize('obstacle', ['DROP TABLE koji_relay.reader',
                                      'REVOKE SELECT ON koji_relay.reader FROM {role}',
                                      'REVOKE USAGE ON SCHEMA koji_relay FROM {role}',
                                      'DROP SCHEMA koji_relay CASCADE'])
def test_large_request_that_cannot_ask_loses_nothing(load, hub, database, relay, log, obstacle):
    database.sql("INSERT INTO koji_relay.reader (name, events) VALUES ('', 'postTag')")
    database.sql(obstacle.format(role=database.role))
    load(delivery='outbox')
    many(hub)
    assert hub.committed and database.sql('SELECT count(*) FROM work') == [(30,)]
    names = [name for _, name, _ in relay.events()] or [row[2] for row in outbox(database)]
    assert pre_and_post(names) == (30, 30)


def test_asking_leaves_the_limits_of_the_hub_as_they_are(load, hub, database, relay):
    load(delivery='outbox')
    database.sql("INSERT INTO koji_relay.reader (name, events) VALUES ('', 'post*')")
    seen = []

    def look():
        cursor = context.cnx.cnx.cursor()
        cursor.execute("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")
        seen.append(cursor.fetchone())
    hub.multicall(look, *[change('x') for _ in range(20)], look)
    assert seen[0] == seen[1]


@pytest.mark.timing
@pytest.mark.parametrize('delivery', ['outbox', 'direct'])
def test_asking_in_vain_takes_a_moment_and_is_done_once(load, hub, database, relay, delivery):
    plugin = load(delivery=delivery)
    locker = lock(database, 'koji_relay.reader')
    relay.answer = silence
    spent = []
    hub.multicall(lambda: spent.append(timed(lambda: [change('x')() for _ in range(100)])))
    unlock(locker)
    assert plugin.UNNOTICED <= spent[0] < 20 * plugin.UNNOTICED     # and not 100 times
    assert relay.asked() == (1 if delivery == 'direct' else 0) and hub.committed


@pytest.mark.timing
def test_locked_table_does_not_make_outbox_delivery_wait_twice(load, hub, database, relay, log):
    load(delivery='outbox', timeout='2')
    locker = lock(database)
    assert 0.8 < timed(hub.request, change('x')) < 2
    assert sum(timed(hub.request, change('x')) for _ in range(10)) < 0.8
    assert len(relay.commits()) == 11 and len(log()) == 2      # waited for, not waited for
    unlock(locker)
    hub.request(change('x'))        # not waiting does not mean not trying
    assert len(outbox(database)) == 2


@pytest.mark.timing
def test_short_lock_is_waited_for(load, hub, database):
    load()
    locker = lock(database)
    release = threading.Timer(0.2, unlock, [locker])
    release.start()
    hub.request(change('x'))
    release.join()
    assert len(outbox(database)) == 2


@pytest.mark.parametrize('left_by_another_plugin', [
    'SELECT 1', 'INSERT INTO work (what) VALUES (\'never committed\')', 'SELECT 1 / 0', 'COMMIT', 'BEGIN'])
def test_transaction_that_another_plugin_left_after_the_commit_does_not_matter(
        load, hub, database, left_by_another_plugin):
    def leave(cbtype):
        try:
            context.cnx.cnx.cursor().execute(left_by_another_plugin)
        except Exception:
            pass
    koji.plugin.register_callback('postCommit', leave)
    load()
    hub.request(change('x'))
    assert len(outbox(database)) == 2
    assert database.sql('SELECT what FROM work') == [('x',)]
    dml_after(hub, database)


def test_fallback_does_not_mark_the_request_as_writing_and_leaves_no_transaction(load, hub, database):
    load()
    seen = []

    def look(cbtype):
        seen.append((context.commit_pending, context.cnx.cnx.get_transaction_status()))
        context.commit_pending = False
    koji.plugin.register_callback('preCommit', look)
    koji.plugin.register_callback('postCommit', look)
    load_order = koji.plugin.callbacks['postCommit']
    assert load_order[-1] is look
    hub.request(change('x'))
    assert seen == [(True, 2), (False, 0)]


def test_fallback_tells_the_relay_what_is_wrong_with_its_socket(load, hub, database, directory, relay):
    """Whether the table has the column for it or not; and only what fell back is marked."""
    load()
    relay.answer = lambda connection, request: connection.sendall(b'HTTP/1.1 \0\xff\x1b\r\n\r\n')
    hub.request(change('binary'))
    relay.stop()
    hub.request(change('gone'))
    load(delivery='outbox')
    hub.request(change('regular'))
    told = dict(database.sql("SELECT kwargs->>'what', fallback FROM koji_relay.outbox"))
    assert re.fullmatch('[ -~]+', told['binary'])
    assert told['gone'].startswith(('FileNotFoundError', 'ConnectionRefusedError'))
    assert told['regular'] is None
    database.sql('ALTER TABLE koji_relay.outbox DROP fallback')
    load()
    hub.request(change('old schema'))
    assert len(outbox(database)) == 8


def test_lost_database_connection_costs_no_exception(load, hub, database, log):
    load()
    hub.between = lambda: database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'hub'")
    hub.request(change('x'))
    assert hub.committed
    assert len(log()) == 1 and log()[0].startswith('ERROR') and '2 of 2 events lost' in log()[0]


def test_hub_without_a_database_connection_still_posts(load, bare_hub, relay, log):
    load(delivery='outbox')
    bare_hub.request(change('x'))
    assert len(relay.events()) == 2 and hasattr(relay, 'path')
    relay.stop()
    bare_hub.request(change('y'))
    assert log()[-1].startswith('ERROR') and '2 of 2 events lost' in log()[-1]


# ---- the log ------------------------------------------------------------------------------------

def test_outage_is_news_once_and_so_is_its_end(load, hub, database, directory, log):
    load()
    for _ in range(5):
        hub.request(change('x'))
    with Relay(directory + '/hub.sock'):
        for _ in range(5):
            hub.request(change('x'))
    for _ in range(5):
        hub.request(change('x'))
    began, ended, again = log()
    assert 'FileNotFoundError' in began and 'FileNotFoundError' in again
    assert ended.endswith(': koji-relay and the outbox work again')


def test_no_log_line_quotes_a_body(load, hub, database, log, relay):
    relay.answer = reply(500, b'')
    database.sql('ALTER TABLE koji_relay.outbox ADD later_version integer NOT NULL')
    for delivery in ('direct', 'outbox'):
        load(delivery=delivery)
        hub.request(change('secret', more={1j}, nan=float('nan')))
    assert 'later_version' in log()[-1] and 'secret' not in '\n'.join(log(0))


def test_of_all_threads_one_probes_when_the_period_is_over(load):
    plugin = load()
    breaker = plugin.Breaker()
    assert breaker.left(2) == 2
    breaker.book(1.9, 2)
    assert breaker.left(2) == 0
    breaker.until = time.monotonic()        # the period passes
    assert [breaker.left(2) for _ in range(3)] == [2, 0, 0]
    breaker.book(1.9, 2)                    # the probe failed
    assert breaker.left(2) == 0
    breaker.until = time.monotonic()
    assert breaker.left(2) == 2
    breaker.book(0.01, 2)                   # the probe was answered
    assert [breaker.left(2) for _ in range(3)] == [2, 2, 2]
