"""What the plugin keeps of an event: which ones, under which number, as which text."""
import datetime
import enum
import glob
import json
import math
import re
import xmlrpc.client

import koji
import koji.plugin
import pytest

from conftest import ROOT
from hub import change, dml

NAN = float('nan')
INF = float('inf')


def announce(name, **kwargs):
    """A request that runs one callback and commits."""
    def method():
        koji.plugin.run_callbacks(name, **kwargs)
        dml('SELECT 1')
    return method


def text(request):
    """The raw text of the first event's kwargs."""
    return request.text.split('"kwargs": ', 1)[1][:-3]


def test_every_hub_callback_becomes_an_event_and_no_builder_callback_does(load, bare_hub, relay, build_type):
    load()
    builders = {'preSCMCheckout', 'postSCMCheckout', 'postCreateDistRepo', 'postCreateRepo'}
    names = [name for name in koji.plugin.callbacks if name not in ('preCommit', 'postCommit')]

    def method():
        for name in names:
            koji.plugin.run_callbacks(name, attribute='state')
        dml('SELECT 1')
    bare_hub.request(method)
    expected = [name for name in names if name not in builders]
    assert len(expected) >= 18 and 'postTag' in expected
    assert [(number, name) for number, name, _ in relay.events()] == list(enumerate(expected))


def test_callbacks_pattern_narrows_the_events(load, bare_hub, relay):
    load(callbacks='postT* preTag')
    bare_hub.request(change())
    bare_hub.request(change(event='Untag'))
    assert [name for _, name, _ in relay.events()] == ['preTag', 'postTag']


def test_state_changes_of_other_attributes_are_dropped(load, bare_hub, relay, build_type):
    load()
    for event in ('BuildStateChange', 'TaskStateChange'):
        bare_hub.request(change(event=event, attribute='volume_id'))
        bare_hub.request(change(event=event, attribute='state'))
    assert [name for _, name, _ in relay.events()] == [
        'preBuildStateChange', 'postBuildStateChange', 'preTaskStateChange', 'postTaskStateChange']


def test_one_commit_is_one_request_with_a_uuid_and_numbers(load, bare_hub, relay):
    load()
    bare_hub.request(change())
    bare_hub.request(change())
    first, second = relay.commits()
    assert [event['event'] for event in first['events']] == [0, 1]
    assert first['commit'] != second['commit'] and len(first['commit']) == 36
    head = relay.requests[0].head.decode()
    assert head.startswith('POST /v1/commits HTTP/1.1\r\n')
    assert 'Content-Type: application/json' in head


def test_request_without_a_commit_posts_nothing(load, bare_hub, relay):
    load()
    bare_hub.request(lambda: koji.plugin.run_callbacks('postTag', tag=1))
    bare_hub.request(change(fail=True))
    assert relay.connections == 0


def test_text_of_recorded_events_is_reproduced_to_the_byte(load):
    plugin = load()
    decoder = json.JSONDecoder()
    compared = 0
    for path in glob.glob(ROOT + '/testdata/golden/commits.*.jsonl'):
        with open(path) as lines:
            for line in lines:
                position = 0
                while True:
                    position = line.find('"kwargs": ', position)
                    if position < 0:
                        break
                    position += len('"kwargs": ')
                    value, end = decoder.raw_decode(line, position)
                    assert plugin.to_json(value) == line[position:end]
                    compared += 1
                    position = end
    assert compared > 500


@pytest.mark.parametrize('value, expected', [
    ({'b': 1, 'a': [1, 2.5, None, True]}, '{"b": 1, "a": [1, 2.5, null, true]}'),
    ('\u00e9\U0001f600\x7f/\x00', r'"\u00e9\ud83d\ude00\u007f/\u0000"'),
    ('\ud800 alone', r'"\ud800 alone"'),
    ([1e16, 5e-324, -0.0, 0.1, 2 ** 63], '[1e+16, 5e-324, -0.0, 0.1, 9223372036854775808]'),
    ({1: 'a', None: 'b', 1.5: 'c', True: 'd'}, '{"1": "d", "null": "b", "1.5": "c"}'),
    ((1, (2, 3)), '[1, [2, 3]]'),
    ({7}, '[7]'),
    (frozenset(['x']), '["x"]'),
    (datetime.datetime(2024, 2, 29, 1, 2, 3), '"2024-02-29 01:02:03"'),
    (datetime.datetime(2024, 2, 29, 1, 2, 3, 400, datetime.timezone.utc),
     '"2024-02-29 01:02:03.000400+00:00"'),
    (xmlrpc.client.DateTime('20240229T01:02:03'), '"2024-02-29 01:02:03"'),
    (b'bytes', '{"error": "Can\'t serialize", "type": "<class \'bytes\'>"}'),
    (xmlrpc.client.Binary(b'x'),
     '{"error": "Can\'t serialize", "type": "<class \'xmlrpc.client.Binary\'>"}'),
    (xmlrpc.client.DateTime('no date'),
     '{"error": "Can\'t serialize", "type": "<class \'xmlrpc.client.DateTime\'>"}'),
    (object, '{"error": "Can\'t serialize", "type": "<class \'type\'>"}'),
    (enum.IntEnum('Number', 'one')(1), '1'),
])
def test_value_is_spelled_as_protonmsg_spells_it(load, value, expected):
    assert load().to_json({'key': value}) == '{"key": %s}' % expected


class Real(float):
    def __repr__(self):
        return 'a lie'


@pytest.mark.parametrize('value, expected', [
    (NAN, None),
    (INF, None),
    (-INF, None),
    ({'a': [{'b': (NAN, 1.5, 'NaN', 'Infinity')}]}, {'a': [{'b': [None, 1.5, 'NaN', 'Infinity']}]}),
    ({Real('nan'), }, [None]),
    ([Real('inf'), Real(2.5)], [None, 2.5]),
    ({NAN: 1}, {'NaN': 1}),
    ({'kept': 1, ('a', 'tuple'): 2, 'value': NAN}, {'kept': 1, 'value': None}),
])
def test_nan_and_infinities_become_null_wherever_they_are(load, value, expected):
    made = load().to_json({'before': 1e16, 'key': value, 'after': '\ud800'})
    assert json.loads(made, parse_constant=pytest.fail) == {
        'before': 1e16, 'key': expected, 'after': '\ud800'}
    assert made.startswith('{"before": 1e+16, ') and made.endswith(r', "after": "\ud800"}')


def test_cycle_and_bottomless_nesting_cost_only_their_own_value(load):
    cycle = {'name': 'x'}
    cycle['self'] = cycle
    deep = []
    for _ in range(100000):
        deep = [deep]
    made = json.loads(load().to_json({'cycle': cycle, 'deep': deep, 'tag': {'name': 'kept'}}))
    assert made['tag'] == {'name': 'kept'}
    assert made['cycle'] == {'error': "Can't serialize", 'type': "<class 'dict'>"}
    assert made['deep'] == {'error': "Can't serialize", 'type': "<class 'list'>"}


def test_kwargs_that_others_use_stay_as_they_were(load, bare_hub, relay, build_type):
    load()
    seen = []
    koji.plugin.register_callback('postBuildStateChange', lambda cbtype, **kwargs: seen.append(kwargs))
    info = {'when': datetime.datetime(2024, 1, 1), 'weight': NAN, 'tags': {1}, 'extra': {'deep': [INF]}}
    bare_hub.request(announce('postBuildStateChange', attribute='state', info=info))
    assert seen[0] == {'attribute': 'state', 'info': info} and seen[0]['info'] is info
    assert info['tags'] == {1} and math.isnan(info['weight']) and info['extra'] == {'deep': [INF]}
    assert isinstance(info['when'], datetime.datetime)
    sent = relay.events()[0][2]
    assert sent['info']['when'] == '2024-01-01 00:00:00' and sent['info']['weight'] is None


def test_event_is_serialised_when_it_happens(load, bare_hub, relay):
    load()
    build = {'state': 0}

    def method():
        koji.plugin.run_callbacks('postTag', build=build)
        build['state'] = 1
        dml('SELECT 1')
    bare_hub.request(method)
    assert relay.events()[0][2] == {'build': {'state': 0}}


def test_date_that_cannot_be_read_does_not_fail_the_hub_call(load, bare_hub, relay, log):
    """With koji's convert_datetime, run_callbacks itself would raise, outside of its error handling."""
    load()
    result = bare_hub.request(announce('postTag', request=[xmlrpc.client.DateTime('no date')], tag='t'))
    assert result is None and bare_hub.committed
    assert relay.events()[0][2]['tag'] == 't'


def test_build_state_change_gets_the_types_of_the_build_as_last_key(load, hub, relay, build_type):
    load()
    asked = []

    def answer(info):
        asked.append(info)
        return {'rpm': None, 'module': {'name': 'm'}}
    build_type.answer = answer
    hub.request(change(event='BuildStateChange', attribute='state', info={'id': 1}))
    before, after = relay.requests[0].data['events']
    assert 'btypes' not in before['kwargs']
    assert list(after['kwargs']) == ['what', 'attribute', 'info', 'btypes']
    assert after['kwargs']['btypes'] == {'rpm': None, 'module': {'name': 'm'}}
    assert asked == [{'id': 1}]


@pytest.mark.parametrize('delivery', ['direct', 'outbox'])
def test_failure_to_look_up_the_types_neither_fails_nor_aborts_the_commit(
        load, hub, database, relay, build_type, log, delivery):
    load(delivery=delivery)

    def answer(info):
        from koji.context import context
        context.cnx.cnx.cursor().execute("SELECT 1 / 0, 'secret'")
    build_type.answer = answer
    hub.request(change(event='BuildStateChange', attribute='state', info={'id': 1}))
    assert database.sql('SELECT count(*) FROM work') == [(1,)]
    made = relay.events() or database.sql('SELECT event, callback, kwargs FROM koji_relay.outbox ORDER BY id')
    assert [event[1] for event in made] == ['preBuildStateChange', 'postBuildStateChange']
    assert made[1][2]['btypes'] is None
    (line,) = log()     # psycopg2 2.7 has one class for many errors
    assert re.fullmatch(
        'WARNING looking up the types of a build: (DivisionByZero|DataError): division by zero', line)


def test_event_is_kept_without_types_where_the_hub_has_no_such_function(load, hub, relay, monkeypatch, log):
    monkeypatch.setitem(__import__('sys').modules, 'kojihub', None)
    load()
    hub.request(change(event='BuildStateChange', attribute='state', info={}))
    assert relay.events()[1][2]['btypes'] is None
    assert len(log()) == 1
