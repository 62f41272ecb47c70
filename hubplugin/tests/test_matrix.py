"""The tests of the plugin on every Koji library, Python and psycopg2 that a hub may have.

They are those that .ci/python found.

Each combination is a pytest of its own, two at a time or as many as there are processors. Tests that measure
time run on the newest ones alone. docs/support.md lists what ran:

    KOJI_RELAY_UPDATE_SUPPORT=1 python -m pytest hubplugin/tests/test_matrix.py
"""
import concurrent.futures
import glob
import json
import os
import re
import subprocess

import pytest

from conftest import HERE, ROOT

CACHE = ROOT + '/.cache'
SUPPORT = ROOT + '/docs/support.md'
FILES = ['test_threads.py', 'test_rollback.py', 'test_events.py', 'test_module.py', 'test_delivery.py',
         'test_recorded.py']
VERSIONS = '''import json, platform, psycopg2, koji
print(json.dumps([koji.__version__, platform.python_version(), psycopg2.__version__.split()[0]]))'''


def by_number(version):
    return [int(number) for number in re.findall(r'\d+', version)]


LIBRARIES = sorted(os.listdir(CACHE + '/koji') if os.path.isdir(CACHE + '/koji') else (), key=by_number)


def combinations():
    """(virtual environment, Koji library): every library with this Python, some with the others."""
    for library in LIBRARIES:
        yield 'venv', library
    some = [library for library in LIBRARIES if library in ('1.28', '1.31', '1.34', '1.35.0', LIBRARIES[-1])]
    for path in sorted(glob.glob(CACHE + '/venv-3.*'), key=by_number):
        for library in some if path.endswith('venv-3.6') else LIBRARIES[-1:]:
            yield os.path.basename(path), library


def run_tests(server, venv, library):
    """Returns the versions that were really loaded, the exit status and the output."""
    python = '%s/%s/bin/python' % (CACHE, venv)
    environment = dict(os.environ, PYTHONPATH='%s/koji/%s' % (CACHE, library), KOJI_RELAY_TEST_PG=server,
                       KOJI_RELAY_REQUIRE_SERVERS='1')
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=environment)
    versions = subprocess.run([python, '-c', VERSIONS], timeout=180, check=True, **output)
    tests = subprocess.run([python, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-m', 'not timing',
                            '-k', 'not benchmark'] + FILES, cwd=HERE, timeout=900, **output)
    return tuple(json.loads(versions.stdout)), tests.returncode, tests.stdout


@pytest.fixture(scope='module')
def runs(server):
    """What became of each combination, in the future."""
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count())) as pool:
        yield {combination: pool.submit(run_tests, server, *combination) for combination in combinations()}


@pytest.mark.parametrize('venv, library', list(combinations()))
def test_plugin_works_with(runs, venv, library):
    (koji, _, _), status, output = runs[venv, library].result()
    assert koji.startswith(library), 'another Koji library was loaded'
    assert status == 0 and re.search(r'\d{3} passed', output) and 'skipped' not in output, output


def test_support_lists_what_ran(runs):
    ran = [run.result()[0] for run in runs.values() if run.result()[1] == 0]
    assert len({koji for koji, _, _ in ran}) >= 10, 'libraries are missing; run .ci/python'
    with open(SUPPORT) as document:
        text = document.read()
    if os.environ.get('KOJI_RELAY_UPDATE_SUPPORT'):
        text = re.sub(r'(?s)(\n\| Python \|.*?\n\|---.*?\n).*?\n\n',
                      lambda found: found.group(1) + table(ran) + '\n', text)
        with open(SUPPORT, 'w') as document:
            document.write(text)
    here = {minor(python) for _, python, _ in ran}
    claims = claimed(text)
    assert len(claims) >= 10
    # A machine need not have each Python. A library that is newer than the document is no fault of it.
    assert {claim for claim in claims if claim[1] in here} <= {
        (minor(koji), minor(python), minor(psycopg2)) for koji, python, psycopg2 in ran}


def minor(version):
    """1.35.0 is in the matrix beside a later 1.35."""
    return version if version == '1.35.0' else '.'.join(version.split('.')[:2])


def table(ran):
    """One row for each Python and psycopg2."""
    rows = {}
    for koji, python, psycopg2 in ran:
        rows.setdefault((python, psycopg2), set()).add(koji)

    def libraries(row):
        return ', '.join(sorted(rows[row], key=by_number))

    return ''.join('| %s | %s | %s |\n' % (python, psycopg2, libraries((python, psycopg2)))
                   for python, psycopg2 in sorted(rows, key=lambda row: by_number(row[0])))


def claimed(text):
    """(Koji, Python, psycopg2) of each combination in the document."""
    return {(minor(koji), minor(python), minor(psycopg2))
            for python, psycopg2, list_ in re.findall(
                r'^\| (3\.[\d.]+) \| (2\.[\d.]+) \| (.*) \|$', text, re.MULTILINE)
            for koji in list_.split(', ')}
