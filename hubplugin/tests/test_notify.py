"""NOTIFY takes a lock of the whole server when its transaction commits; who holds it long must cost no event."""
import os
import threading
import time

import psycopg2
import pytest

from conftest import outbox
from hub import change


@pytest.fixture
def notify_lock(server, database):
    """Another session's COMMIT that keeps the lock of NOTIFY: it waits for a replica that is not there."""
    if os.environ.get('KOJI_RELAY_TEST_PG'):
        pytest.skip('changes a setting of the whole server, so it needs one of its own')
    database.sql('ALTER ROLE %s SET synchronous_commit = local' % database.role)   # only the holder waits for it
    database.sql('SET synchronous_commit = local')
    holder = psycopg2.connect(database.admin.dsn)
    holder.cursor().execute("NOTIFY elsewhere; INSERT INTO work (what) VALUES ('the reason to wait')")
    held = threading.Thread(target=holder.commit, daemon=True)

    def reload(command):
        database.sql(command)
        database.sql('SELECT pg_reload_conf()')
    reload("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        await_true(database, "SELECT setting = 'nobody' FROM pg_settings WHERE name = 'synchronous_standby_names'")
        database.sql('CHECKPOINT')      # the checkpointer has read the setting, so that commits wait from now on
        held.start()
        await_true(database, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        yield
    finally:
        reload('ALTER SYSTEM RESET synchronous_standby_names')
        held.join(30)
        holder.close()
    assert not held.is_alive()


def timed(method, *args):
    started = time.monotonic()
    method(*args)
    return time.monotonic() - started


def await_true(database, query):
    pause = threading.Event()
    for _ in range(500):
        if database.sql(query)[0][0]:
            return
        pause.wait(0.02)
    pytest.fail('not within 10 s: ' + query)


@pytest.mark.timing
def test_events_are_stored_while_another_session_keeps_the_lock_of_notify(load, hub, database, notify_lock, log):
    load(timeout='1')       # direct, and there is no relay
    took = [timed(hub.request, change(what)) for what in 'abcde']
    assert [event[2] for event in outbox(database)] == ['preTag', 'postTag'] * 5
    assert max(took) < 1.2 and sum(took) < 2, took      # soon nobody waits any more
    assert not [line for line in log() if 'lost' in str(line)]
