"""The plugin as a file: its configuration, its size, its syntax, and what it may do at import."""
import ast
import re
import subprocess
import sys

import koji.plugin
import pytest

from conftest import PLUGIN_DIR, load_plugin, outbox, server_programs
from hub import change

PLUGIN = PLUGIN_DIR + '/koji_relay.py'
CONF = PLUGIN_DIR + '/koji_relay.conf'


def test_example_lists_every_key_with_its_default_and_a_comment(load):
    plugin = load()
    given = koji.read_config_files([(CONF, True)], raw=True)
    assert given.sections() == ['koji_relay']
    assert dict(given.items('koji_relay')) == {
        name: default for name, (default, _, _) in plugin.KEYS.items()}
    with open(CONF) as conf:
        text = conf.read()
    for name in plugin.KEYS:
        assert re.search(r'^#.+\n%s =' % name, text, re.MULTILINE), 'no comment above ' + name


def test_example_configures_what_no_file_configures(load, log):
    plugin = load()
    plugin.CONFIG_FILE = CONF
    plugin.load_config()
    with_example, plugin.config = plugin.config, None
    assert log() == []
    plugin.CONFIG_FILE = '/nonexistent'
    plugin.load_config()
    assert plugin.config == with_example
    assert len(log()) == 1 and '/nonexistent' in log()[0] and 'using all defaults' in log()[0]


@pytest.mark.parametrize('key, value', [
    ('delivery', 'queue'), ('delivery', ''),
    ('timeout', '0'), ('timeout', '-1'), ('timeout', 'two'), ('timeout', 'inf'),
    ('timeout', 'nan'), ('timeout', '0.0'), ('timeout', '2 s'), ('socket', ''), ('socket', 'hub.sock'),
    ('max_request_bytes', '0'), ('max_request_bytes', '1e6'),
    ('max_request_bytes', '8M'), ('test_mode', '2'), ('timeuot', '3'), ('password', 's3cret'),
])
def test_wrong_value_is_logged_and_the_default_used(load, bare_hub, relay, log, key, value):
    keys = {'socket': relay.path, key: value}
    plugin = load(**keys)
    bare_hub.request(change('x'))
    bare_hub.request(change('x'))
    complaints = [line for line in log() if line.startswith('ERROR ' + plugin.CONFIG_FILE)]
    assert len(complaints) == 1 and key in complaints[0]
    if key in plugin.KEYS:
        default, _, convert = plugin.KEYS[key]
        assert getattr(plugin.config, key) == convert(default)
    else:
        assert 's3cret' not in complaints[0]
    if key != 'socket':
        assert len(relay.requests) == 2


@pytest.mark.parametrize('key, value', [('url', ''), ('url', 'http://127.0.0.1:1'),
                                        ('token_file', '/etc/token'),
                                        ('notify', 'on'), ('notify', 'off')])
def test_retired_key_is_not_obeyed_and_the_log_says_what_to_do_instead(
        load, bare_hub, relay, log, key, value):
    load(**{key: value})
    bare_hub.request(change('x'))
    bare_hub.request(change('x'))
    assert len(relay.requests) == 2
    assert len(log()) == 1 and log()[0].startswith('WARNING')
    assert 'retired key %s: remove it' % key in log()[0] and ('socket' in log()[0] or 'datagram' in log()[0])


@pytest.mark.parametrize('text', [
    '', '[other]\nx = 1\n', 'no section\n', '[koji_relay]\ntimeout = 1\ntimeout = 2\n',
    '[koji_relay]\n[koji_relay]\n', '\x00\xff'])
def test_file_that_cannot_be_used_leaves_the_defaults(load, bare_hub, log, text):
    plugin = load()
    with open(plugin.CONFIG_FILE, 'w', encoding='latin-1') as conf:
        conf.write(text)
    assert bare_hub.request(change('x')) == 'x'
    assert plugin.config.timeout == 2.0 and plugin.config.delivery == 'outbox'
    assert log()[0].startswith('ERROR cannot read ' + plugin.CONFIG_FILE)


@pytest.mark.parametrize('cause', [PermissionError(13, 'Permission denied'),
                                   FileNotFoundError(2, 'No such file'),
                                   IsADirectoryError(21, 'Is a directory'), OSError(5, 'Input/output error')])
def test_unreadable_file_is_named_with_its_cause_and_means_the_safer_delivery(
        load, hub, database, relay, log, monkeypatch, cause):
    plugin = load(delivery='direct')

    def refuse(path, *args):
        raise cause
    monkeypatch.setattr(plugin, 'open', refuse, raising=False)  # (root may read everything)
    hub.request(change('x'))
    assert len(outbox(database)) == 2 and relay.connections == 0
    assert len(log()) == 1 and log()[0].startswith('ERROR cannot read %s: %s' % (
        plugin.CONFIG_FILE, type(cause).__name__)) and log()[0].endswith('delivery = outbox')


@pytest.mark.parametrize('word, value', [('on', True), ('Yes', True), ('TRUE', True), ('1', True),
                                         ('off', False), ('No', False), ('false', False), ('0', False)])
def test_switches_are_spelled_as_elsewhere_in_koji(load, word, value):
    plugin = load(test_mode=word)
    plugin.load_config()
    assert plugin.config.test_mode is value


def test_percent_signs_and_continued_lines_are_read_as_they_are(load):
    plugin = load(socket='/run/100%/hub.sock', callbacks='postTag\n  postUntag')
    plugin.load_config()
    assert plugin.config.socket == '/run/100%/hub.sock'
    assert plugin.matching(plugin.config.callbacks) == {'postTag', 'postUntag'}


def test_import_reads_no_file_and_registers_every_hub_callback(monkeypatch):
    monkeypatch.setattr(koji, 'read_config_files', lambda *args, **kwargs: pytest.fail('read at import'))
    before = {name: list(functions) for name, functions in koji.plugin.callbacks.items()}
    try:
        load_plugin()
        added = {name: len(functions) - len(before[name])
                 for name, functions in koji.plugin.callbacks.items()}
        builders = {'preSCMCheckout', 'postSCMCheckout', 'postCreateDistRepo', 'postCreateRepo'}
        assert added == {name: 0 if name in builders else 1 for name in before}
        assert all(functions[-1].failure_is_an_option for name, functions in koji.plugin.callbacks.items()
                   if name not in builders)
    finally:
        for name, functions in before.items():
            koji.plugin.callbacks[name][:] = functions


def test_callback_that_a_newer_koji_adds_is_handed_over(bare_hub, relay, load, monkeypatch):
    monkeypatch.setitem(koji.plugin.callbacks, 'postMoonPhase', [])
    load()
    bare_hub.request(lambda: (koji.plugin.run_callbacks('postMoonPhase', phase='full'), change('x')()))
    assert relay.events()[0] == (0, 'postMoonPhase', {'phase': 'full'})


def test_module_is_short_and_only_needs_koji_and_the_standard_library():
    with open(PLUGIN) as source:
        text = source.read()
    assert len(text.splitlines()) <= 500  # a hub loads one file
    assert max(map(len, text.splitlines())) < 100
    # An older interpreter reads only its own grammar.
    tree = ast.parse(text, **({'feature_version': (3, 6)} if sys.version_info >= (3, 8) else {}))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    ours = {name.split('.')[0] for name in modules} - {'koji', 'kojihub'}
    assert ours <= {'contextlib', 'datetime', 'fnmatch', 'functools', 'http', 'io', 'json', 'logging', 're',
                    'socket', 'time', 'types', 'uuid'}


@pytest.mark.skipif(not server_programs(), reason='the benchmark starts a PostgreSQL of its own')
def test_benchmark_runs():
    result = subprocess.run([sys.executable, PLUGIN_DIR + '/tests/bench_hub.py', '--rounds', '5'],
                            stdout=subprocess.PIPE, universal_newlines=True, check=True)
    assert 'delivery = outbox' in result.stdout
