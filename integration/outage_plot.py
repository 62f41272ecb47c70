"""Draws what BenchmarkOutage measured.

    python integration/outage_plot.py OUTAGE.json NAME      writes NAME.svg and NAME.png
"""
import collections
import json
import sys

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

BUCKET = 0.5    # seconds
COLOURS = {'up': '#e7f5ea', 'back': '#e7f5ea', 'killed': '#fbe3e1', 'silent': '#fdf0d5'}


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * q))]


def main():
    with open(sys.argv[1]) as file:
        run = json.load(file)
    buckets = collections.defaultdict(list)
    for at, took in run['hand_over']:
        buckets[int(at / BUCKET)].append(took)
    times = [(n + 0.5) * BUCKET for n in sorted(buckets)]
    end = max(times) + BUCKET

    # The same text twice gives the same file.
    plt.rcParams.update({'svg.hashsalt': 'koji-relay', 'font.size': 9, 'svg.fonttype': 'none'})
    figure, (wait, queue) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5), height_ratios=[2, 1])
    for axes in wait, queue:
        for phase, following in zip(run['phases'], run['phases'][1:] + [{'at': end}]):
            axes.axvspan(phase['at'], following['at'], color=COLOURS[phase['name']], linewidth=0)
        axes.spines[['top', 'right']].set_visible(False)
    for q, label, style in ((0.5, 'median', '-'), (0.99, '99th percentile', ':'), (1, 'longest', '.')):
        wait.plot(times, [quantile(buckets[n], q) for n in sorted(buckets)], style, label=label, markersize=3)
    wait.set_yscale('log')
    wait.set_ylabel('a hub call waits, ms')
    wait.legend(loc='lower left', bbox_to_anchor=(0, 1), frameon=False, ncols=3)
    wait.set_ylim(top=10 * max(took for _, took in run['hand_over']))
    for phase in run['phases']:
        wait.text(phase['at'] + 0.3, wait.get_ylim()[1] / 1.2, 'broker ' + phase['name'], va='top')
    queue.fill_between(*zip(*run['backlog']), color='#555555', linewidth=0)
    queue.set_ylabel('messages queued')
    queue.set_xlabel('seconds; %d commits, %d refused'
                     % (len(run['hand_over']) + run['refused'], run['refused']))
    queue.set_xlim(0, end)
    figure.tight_layout()
    figure.savefig(sys.argv[2] + '.svg', metadata={'Date': None})
    figure.savefig(sys.argv[2] + '.png', dpi=130, metadata={'Software': None})


main()
