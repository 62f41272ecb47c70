"""Requests of one hub worker do not see each other's events, at the same time or one after the other."""
import threading

import koji.plugin
import pytest
from koji.context import context

from conftest import outbox
from hub import Hub, change, dml

COMMITS = 15


def three_events(what):
    """A method with three events that lets other threads run in between."""
    def method():
        for event in ('preTag', 'postTag', 'postUntag'):
            koji.plugin.run_callbacks(event, what=what)
            dml("SELECT pg_sleep(0.0002)")
        return what
    return method


def run_workers(hubs):
    """Let each hub make COMMITS commits in a thread of its own, all at once. Returns what was committed."""
    start, failures = threading.Barrier(len(hubs)), []

    def work(number, hub):
        try:
            start.wait(30)
            for commit in range(COMMITS):
                what = '%d.%d' % (number, commit)
                assert hub.request(three_events(what)) == what
        except Exception as error:
            failures.append(error)
    threads = [threading.Thread(target=work, args=item) for item in enumerate(hubs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    return {'%d.%d' % (number, commit) for number in range(len(hubs)) for commit in range(COMMITS)}


@pytest.mark.parametrize('delivery', ['direct', 'outbox'])
@pytest.mark.parametrize('threads', [1, 2, 8])
def test_each_commit_arrives_with_its_own_events_and_no_other(load, database, relay, log, threads, delivery):
    load(delivery=delivery, timeout='60')     # no wait on a busy machine sends a commit the other way
    hubs = [Hub(database.dsn) for _ in range(threads)]
    expected = run_workers(hubs)
    for hub in hubs:
        hub.disconnect()
    if delivery == 'direct':
        made = [(commit['commit'], event['event'], event['callback'], event['kwargs']['what'])
                for commit in relay.commits() for event in commit['events']]
    else:
        made = database.sql("SELECT commit::text, event, callback, kwargs->>'what' "
                            "FROM koji_relay.outbox ORDER BY id")
    commits = {}
    for commit, number, name, what in made:
        commits.setdefault(commit, []).append((number, name, what))
    assert len(made) == 3 * len(expected) and len(commits) == len(expected)
    for events in commits.values():
        what = events[0][2]
        expected.remove(what)
        assert events == [(0, 'preTag', what), (1, 'postTag', what), (2, 'postUntag', what)]
    assert expected == set() and log() == []


class ForgetfulHub(Hub):
    """Does not clear the context between two requests."""
    clear = staticmethod(lambda: None)


class BareHub(ForgetfulHub):
    """And has no WSGI environment either, like a script."""
    environ = None


@pytest.mark.parametrize('worker', [Hub, ForgetfulHub, BareHub])
@pytest.mark.parametrize('delivery', ['direct', 'outbox'])
def test_nothing_of_a_request_that_did_not_commit_is_in_the_next(load, database, relay, worker, delivery):
    load(delivery=delivery)
    hub = worker(database.dsn)
    hub.request(change('failed', fail=True))
    hub.request(lambda: koji.plugin.run_callbacks('postTag', what='no commit'))
    left = getattr(context, 'koji_relay', None)
    hub.request(change('kept'))
    hub.disconnect()
    if delivery == 'direct':
        made = [(commit['commit'], event['event'], event['kwargs']['what'])
                for commit in relay.commits() for event in commit['events']]
    else:
        made = database.sql("SELECT commit::text, event, kwargs->>'what' FROM koji_relay.outbox ORDER BY id")
    assert [event[1:] for event in made] == [(0, 'kept'), (1, 'kept')]
    assert left is None or left.id != made[0][0]
    assert not hasattr(context, 'koji_relay')


def test_request_with_a_commit_refused_leaves_nothing_for_a_later_precommit(load, database, relay):
    """A later request without an event of its own commits something else."""
    load()
    hub = ForgetfulHub(database.dsn)

    def refuse(cbtype):
        raise RuntimeError('no')
    koji.plugin.register_callback('preCommit', refuse)
    with pytest.raises(koji.CallbackError):
        hub.request(change('refused'))
    koji.plugin.callbacks['preCommit'].remove(refuse)
    hub.request(lambda: dml("INSERT INTO work (what) VALUES ('no event')"))
    hub.disconnect()
    assert relay.connections == 0 and outbox(database) == []
    assert database.sql('SELECT what FROM work') == [('no event',)]
