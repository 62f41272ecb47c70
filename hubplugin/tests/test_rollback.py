"""Calls that the hub rolls back leave nothing, in both deliveries, wherever they stand."""
import itertools
import random

import koji.plugin
import psycopg2.extensions
import pytest
from koji.context import context

from conftest import outbox
from hub import change, dml


@pytest.fixture(params=['direct', 'outbox'])
def delivered(request, load, hub, database, relay):
    """The numbers and `what` of delivered events, by whichever way they were to go."""
    load(delivery=request.param)

    def events():
        if request.param == 'direct':
            assert outbox(database) == []
            return [(number, kwargs['what']) for number, _, kwargs in relay.events()]
        assert relay.connections == 0
        rows = database.sql("SELECT event, kwargs->>'what' FROM koji_relay.outbox ORDER BY id")
        return rows
    return events


def rows(database):
    return [what for what, in database.sql('SELECT what FROM work ORDER BY id')]


@pytest.mark.parametrize('fails', list(itertools.product([False, True], repeat=3)))
def test_multicall_announces_exactly_the_calls_that_count(delivered, hub, database, fails):
    hub.multicall(*[change('call %d' % place, fail=failing) for place, failing in enumerate(fails)])
    kept = [place for place, failing in enumerate(fails) if not failing]
    assert rows(database) == ['call %d' % place for place in kept]
    assert delivered() == [(2 * place + half, 'call %d' % place) for place in kept for half in (0, 1)]


def test_second_request_of_a_worker_is_not_confused_by_the_first(delivered, hub, database):
    hub.request(change('one'))
    hub.multicall(change('undone', fail=True), change('two'))
    hub.multicall(change('undone', fail=True))
    hub.request(change('three', fail=True))
    hub.multicall(change('four'), change('undone', fail=True))
    assert rows(database) == ['one', 'two', 'four']
    assert [what for _, what in delivered()] == ['one', 'one', 'two', 'two', 'four', 'four']


def test_savepoint_inside_of_a_call_takes_only_its_own_events(delivered, hub, database):
    """As the hub's own pre_insert and repo_done_hook do."""
    def method():
        change('before')()
        dml('SAVEPOINT pre_insert')
        change('undone')()
        dml('ROLLBACK TO SAVEPOINT pre_insert')
        change('after')()
        dml('SAVEPOINT pre_insert')
        change('undone at the end')()
        dml('ROLLBACK TO SAVEPOINT pre_insert')
    hub.multicall(method, change('next'))
    assert [what for _, what in delivered()] == ['before'] * 2 + ['after'] * 2 + ['next'] * 2


def test_events_between_two_rollbacks_to_one_savepoint_are_gone(delivered, hub):
    def method():
        dml('SAVEPOINT outer_one')
        change('a')()
        dml('ROLLBACK TO SAVEPOINT outer_one')
        change('b')()
        dml('ROLLBACK TO SAVEPOINT outer_one')
        change('c')()
    hub.request(method)
    assert delivered() == [(4, 'c'), (5, 'c')]


def test_call_that_dies_of_a_database_error_leaves_nothing(delivered, hub, database):
    def broken():
        change('undone')()
        dml('SELECT 1 / 0')

    def announces_while_aborted():
        change('undone')()
        try:
            dml('SELECT 1 / 0')
        except Exception:
            koji.plugin.run_callbacks('postTag', what='aborted')
            raise
    hub.multicall(change('one'), broken, announces_while_aborted, change('two'))
    assert rows(database) == ['one', 'two']
    assert [what for _, what in delivered()] == ['one', 'one', 'two', 'two']


def test_commit_that_is_a_rollback_in_truth_is_not_announced(delivered, hub, database):
    """A method that swallows a database error ends in an aborted transaction: COMMIT rolls it back."""
    def method():
        change('x')()
        try:
            dml('SELECT 1 / 0')
        except Exception:
            context.commit_pending = True
    hub.request(method)
    assert hub.committed and rows(database) == []
    assert delivered() == []


def test_failing_request_leaves_nothing(delivered, hub, database):
    hub.request(change('x', fail=True))
    assert rows(database) == [] and delivered() == []


def test_commit_refused_by_another_plugin_leaves_nothing(delivered, hub, database):
    def refuse(cbtype, **kwargs):
        raise RuntimeError('no')
    koji.plugin.register_callback('preCommit', refuse)
    with pytest.raises(koji.CallbackError):
        hub.request(change('x'))
    assert rows(database) == [] and delivered() == []


def test_events_that_another_plugin_makes_in_precommit_are_delivered(load, hub, database, relay):
    load(delivery='outbox')
    koji.plugin.register_callback('preCommit', lambda cbtype: change('late')())
    hub.request(change('early'))
    assert [row[1] for row in outbox(database)] == [0, 1]
    assert [(number, kwargs['what']) for number, _, kwargs in relay.events()] == [(2, 'late'), (3, 'late')]
    assert relay.commits()[0]['commit'] == outbox(database)[0][0]


def test_events_are_those_whose_rows_are_there_whatever_savepoints_do(delivered, hub, database):
    """The database is the judge, over random savepoints that nest, repeat their names and are released."""
    rolls = ['ROLLBACK TO %s', 'rollback to savepoint %s', 'ROLLBACK WORK TO SAVEPOINT %s;']
    releases = ['RELEASE %s', ' release savepoint %s ;']
    numbers = itertools.count()
    for seed in range(40):
        choose = random.Random(seed)
        stack = []

        def step():
            what = choose.random()
            if what < 0.4 or not stack and what > 0.65:
                change('%d' % next(numbers))()
            elif what < 0.65:
                name = choose.choice(['one', 'Two', '"two"', '"three"', 'multiCall_loop'])
                dml(choose.choice(['SAVEPOINT %s', 'savepoint %s;']) % name)
                stack.append(name)
            else:
                release = what > 0.85
                name = choose.choice(stack)
                same = {'Two': '"two"', '"two"': 'TWO', 'one': '"one"'}
                spelled = choose.choice([name, same.get(name, name)])
                dml(choose.choice(releases if release else rolls) % spelled)
                while stack[-1].strip('"').lower() != name.strip('"').lower():
                    stack.pop()
                if release:
                    stack.pop()
        hub.request(lambda: [step() for _ in range(25)])
        assert hub.committed
    kept = rows(database)
    assert [what for _, what in delivered()] == [what for what in kept for _ in (0, 1)]
    assert 50 < len(kept) < next(numbers) - 50


def test_request_that_is_rolled_back_as_a_whole_amid_a_call_starts_anew(delivered, hub, database):
    def method():
        change('undone')()
        dml('ROLLBACK')
        dml('BEGIN')
        change('kept')()
    hub.request(method)
    assert rows(database) == ['kept']
    assert [what for _, what in delivered()] == ['kept', 'kept']


def test_rollback_of_another_plugin_after_the_commit_takes_nothing(delivered, hub, database):
    koji.plugin.callbacks['postCommit'].insert(0, lambda cbtype: dml('ROLLBACK'))
    hub.request(change('x'))
    assert [what for _, what in delivered()] == ['x', 'x']


def test_events_cost_the_database_nothing_until_the_commit(load, hub, database, relay):
    load()
    asked = []

    class Noting(psycopg2.extensions.cursor):
        def execute(self, query, values=None):
            asked.append(query)
            return super().execute(query, values)

    def method():
        context.cnx.cnx.cursor_factory = Noting
        for _ in range(3):
            hub.raw.cursor().execute('SAVEPOINT multiCall_loop')
            change('x')()
    hub.request(method)
    assert len(relay.events()) == 6
    assert asked == ['SAVEPOINT multiCall_loop', 'INSERT INTO work (what) VALUES (%s)'] * 3 + ['ROLLBACK']


def test_worker_keeps_nothing_of_a_request(load, hub, database, relay):
    load()
    hub.request(change('x'))
    hub.request(change('x', fail=True))
    hub.multicall(*[lambda: None] * 5)
    assert getattr(context, 'koji_relay', None) is None


def test_statements_of_the_hub_do_what_they_did(load, hub, database):
    load()

    def method():
        change('x')()
        cursor = context.cnx.cnx.cursor()
        assert cursor.execute('SELECT %(one)s', {'one': 1}) is None and cursor.fetchall() == [(1,)]
        assert cursor.execute(query=b'SELECT 2', vars=None) is None and cursor.fetchone() == (2,)
        cursor.execute('SELECT 1 / 0')
    assert isinstance(hub.request(method), psycopg2.Error)
