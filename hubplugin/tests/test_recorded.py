"""What real hubs of each Koji gave to their callbacks, as the plugin writes it with this Koji library.

testdata/koji was recorded by record.py. That protonmsg sent the same is checked by the tests of `callbacks`.
"""
import glob
import json
import os

import koji.plugin

from conftest import ROOT
from hub import dml
from recorded import untyped


def test_recorded_events_are_handed_over_to_the_byte(load, hub, relay, build_type):
    load()
    recordings = sorted(glob.glob(ROOT + '/testdata/koji/*.jsonl'))
    names = [os.path.basename(path) for path in recordings]
    assert len(names) >= 10 and names[0].startswith('1.28.')
    compared = 0
    for path in recordings:
        with open(path) as lines:
            for number, line in enumerate(lines):
                events = [event for event in json.loads(line)['events']
                          if event['callback'] in koji.plugin.callbacks]
                del relay.requests[:]
                failure = hub.request(lambda: run(events, build_type))
                assert failure is None, failure
                texts = [text for request in relay.requests if request.text
                         for text in request.text.split('"kwargs": ')[1:]]
                assert len(texts) == len(events)
                for text, event in zip(texts, events):
                    assert text.startswith(event['text'] + '}'), '%s, line %d' % (path, number + 1)
                    compared += 1
    assert compared > 100


def run(events, build_type):
    for event in events:
        build_type.answer = lambda info: json.loads(event['text'])['btypes']
        koji.plugin.run_callbacks(event['callback'], **untyped(event['kwargs']))
    dml('SELECT 1')
