"""Hands commits of one message over with the plugin's own code and prints the median and the 99th
percentile in microseconds.

    python hubplugin/tests/handover.py SOCKET COMMITS
"""
import json
import statistics
import sys
import time
import types
import uuid

import conftest

KWARGS = {'tag': {'id': 1, 'name': 'f40-updates'}, 'user': {'id': 7, 'name': 'builder'}, 'force': False,
          'build': {'id': 12345, 'name': 'package', 'version': '1.2.3', 'release': '4.fc40',
                    'extra': {'source': {'original_url': 'git+https://src.example.com/' + 'x' * 500}}}}


def main():
    path, commits = sys.argv[1], int(sys.argv[2])
    plugin = conftest.load_plugin()
    plugin.config = types.SimpleNamespace(socket=path, delivery='direct', timeout=30.0,
                                          max_request_bytes=8 << 20, callbacks='*')
    event = (0, 'postTag', json.dumps(KWARGS))
    times = []
    for n in range(commits + 20):   # the first ones warm up
        commit = types.SimpleNamespace(id=str(uuid.uuid4()), events=[event])
        started = time.perf_counter()
        rest, why = plugin.post(commit, commit.events, 30.0, time.monotonic() + 30)
        times.append(time.perf_counter() - started)
        if rest:
            sys.exit('not taken: %s' % why)
    times = sorted(times[20:])
    print(round(1e6 * statistics.median(times)), round(1e6 * times[len(times) * 99 // 100]))


if __name__ == '__main__':
    main()
