"""What every test of the plugin stands on: the real koji library, a real PostgreSQL, a hub, a relay.

PostgreSQL is the server that KOJI_RELAY_TEST_PG names (a libpq connection string of a superuser), or a
private cluster in a temporary directory. Without either, tests that need it are skipped, or fail when
KOJI_RELAY_REQUIRE_SERVERS is set.

Tests marked `timing` get three tries: a machine that is busy with something else spoils one, the
plugin's fault spoils all.
"""
import glob
import itertools
import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import types

import pytest
from _pytest.runner import runtestprotocol

HERE = os.path.dirname(os.path.abspath(__file__))
PLUGIN_DIR = os.path.dirname(HERE)
ROOT = os.path.dirname(PLUGIN_DIR)
sys.path[:0] = [HERE, PLUGIN_DIR]

import koji.plugin  # noqa: E402
import koji.context  # noqa: E402

from hub import Hub  # noqa: E402
from relay import Relay  # noqa: E402

_numbers = itertools.count(1)


def pytest_configure(config):
    config.addinivalue_line('markers', 'timing: measures time, gets three tries')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if not item.get_closest_marker('timing'):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for _ in range(3):
        item._initrequest()     # fixtures anew
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


# ---- PostgreSQL ---------------------------------------------------------------------------------

class Cluster:
    """A private PostgreSQL cluster. Listens only on a Unix socket in its own directory."""

    def __init__(self, programs):
        self.programs = programs
        self.directory = tempfile.mkdtemp(prefix='koji-relay-pg-')
        if os.getuid() == 0:    # the server refuses to run as root
            owner = pwd.getpwnam('postgres')
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)

    def run(self, program, *args):
        command = [os.path.join(self.programs, program)] + list(args)
        if os.getuid() == 0:
            command = ['runuser', '-u', 'postgres', '--'] + command
        subprocess.run(command, check=True, cwd=self.directory, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def start(self, durable=False):
        """Start it; without `durable` it does not wait for the disk. Returns a connection string."""
        data = self.directory + '/data'
        self.run('initdb', '-D', data, '-A', 'trust', '-E', 'UTF8', '-U', 'postgres', '-N')
        self.run('pg_ctl', '-D', data, '-l', self.directory + '/log', '-w', '-o',
                 "-k %s -c listen_addresses=''%s" % (self.directory, '' if durable else ' -F'), 'start')
        return 'host=%s user=postgres dbname=postgres' % self.directory

    def stop(self):
        try:
            self.run('pg_ctl', '-D', self.directory + '/data', '-m', 'immediate', '-w', 'stop')
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def server_programs():
    found = glob.glob('/usr/lib/postgresql/*/bin/initdb') + glob.glob('/usr/pgsql-*/bin/initdb')
    found.sort(key=lambda path: [int(n) for n in ''.join(
        c if c.isdigit() else ' ' for c in path).split()])
    path = found[-1] if found else shutil.which('initdb')
    return os.path.dirname(path) if path else None


@pytest.fixture(scope='session')
def server():
    """A superuser's connection string."""
    psycopg2 = pytest.importorskip('psycopg2')
    given = os.environ.get('KOJI_RELAY_TEST_PG')
    if given:
        psycopg2.connect(given).close()
        yield given
        return
    programs = server_programs()
    if not programs:
        message = 'no PostgreSQL: install it, or let KOJI_RELAY_TEST_PG name one'
        if os.environ.get('KOJI_RELAY_REQUIRE_SERVERS'):
            pytest.fail(message)
        pytest.skip(message)
    cluster = Cluster(programs)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope='session')
def empty_database(server):
    """A database and a hub's role for all tests of this run, since making one takes a while."""
    import psycopg2
    name = 'koji_relay_test_%d' % os.getpid()
    admin = psycopg2.connect(server)
    admin.autocommit = True
    admin.cursor().execute('CREATE DATABASE %s' % name)
    role = name + '_hub'
    admin.cursor().execute('CREATE ROLE %s LOGIN' % role)
    db = types.SimpleNamespace(
        admin=psycopg2.connect(psycopg2.extensions.make_dsn(server, dbname=name)),
        role=role,
        dsn=psycopg2.extensions.make_dsn(server, dbname=name, user=role, application_name='hub'))
    db.admin.autocommit = True

    def sql(query, *args):
        cursor = db.admin.cursor()
        cursor.execute(query, args or None)
        return cursor.fetchall() if cursor.description else None
    db.sql = sql
    # Whether the schema of the last test is as it was made.
    sql("CREATE SEQUENCE changed; SELECT nextval('changed')")
    sql("CREATE FUNCTION changed() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN PERFORM nextval('public.changed'); END $$")
    sql('CREATE EVENT TRIGGER changed ON ddl_command_end EXECUTE PROCEDURE changed()')
    try:
        yield db
    finally:
        db.admin.close()
        admin.cursor().execute('DROP DATABASE %s WITH (FORCE)' % name)
        admin.cursor().execute('DROP ROLE %s' % role)
        admin.close()


@pytest.fixture
def database(empty_database):
    """The database for one test: a table as Koji would have it, and the schema koji_relay, all empty."""
    sql, role = empty_database.sql, empty_database.role
    sql('RESET ALL')
    sql('ALTER ROLE %s RESET ALL' % role)
    sql('SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
        'WHERE datname = current_database() AND pid <> pg_backend_pid()')
    if sql('SELECT is_called FROM changed') == [(True,)]:
        make_schema(sql, role)
        sql("SELECT setval('changed', 1, false)")
    (written,), = sql("SELECT string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relkind = 'r' "
                      "AND relnamespace IN ('koji_relay'::regnamespace, 'public'::regnamespace) "
                      "AND pg_relation_size(oid) > 0")
    if written:
        sql('TRUNCATE %s RESTART IDENTITY' % written)
    return empty_database


def make_schema(sql, role):
    sql('DROP TABLE IF EXISTS work; DROP SCHEMA IF EXISTS koji_relay CASCADE; CREATE SCHEMA koji_relay')
    sql('CREATE TABLE work (id serial PRIMARY KEY, what text); GRANT ALL ON work, work_id_seq TO ' + role)
    for path in sorted(glob.glob(ROOT + '/queue/schema/*.sql')):
        with open(path) as script:
            sql(script.read())
    sql('GRANT USAGE ON SCHEMA koji_relay TO %s; GRANT INSERT ON koji_relay.outbox TO %s; '
        'GRANT SELECT ON koji_relay.reader TO %s' % (role, role, role))


def outbox(db):
    """The outbox in the order in which it was filled: (commit, event, callback, kwargs text)."""
    return db.sql('SELECT commit::text, event, callback, kwargs::text FROM koji_relay.outbox ORDER BY id')


# ---- the plugin, the hub and the relay ----------------------------------------------------------

@pytest.fixture
def directory():
    """A directory with a short path, for sockets."""
    path = tempfile.mkdtemp(prefix='krt-')
    yield path
    shutil.rmtree(path, ignore_errors=True)


def load_plugin():
    """The plugin, freshly imported and registered as a hub does it."""
    tracker = koji.plugin.PluginTracker(path=[PLUGIN_DIR], prefix='_test_%d__' % next(_numbers))
    module = tracker.load('koji_relay')
    for value in list(vars(module).values()):
        if not isinstance(value, type) and callable(value):
            for name in getattr(value, 'callbacks', None) or ():
                koji.plugin.register_callback(name, value)
    return module


@pytest.fixture
def load(directory):
    """load(key=value, ...) imports the plugin with that configuration."""
    modules = []

    def unregister():
        """Take out what the plugin registered, and only that."""
        for functions in koji.plugin.callbacks.values():
            functions[:] = [function for function in functions if function.__module__ not in modules]

    def load(**keys):
        unregister()
        keys.setdefault('socket', directory + '/hub.sock')
        keys.setdefault('delivery', 'direct')
        path = directory + '/koji_relay.conf'
        with open(path, 'w') as conf:
            conf.write('[koji_relay]\n')
            conf.writelines('%s = %s\n' % item for item in keys.items())
        module = load_plugin()
        modules.append(module.__name__)
        module.CONFIG_FILE = path
        return module
    before = {name: list(functions) for name, functions in koji.plugin.callbacks.items()}
    yield load
    for name, functions in before.items():
        koji.plugin.callbacks[name][:] = functions
    koji.context.context._threadclear()


@pytest.fixture
def hub(database):
    hub = Hub(database.dsn)
    yield hub
    hub.disconnect()


@pytest.fixture
def bare_hub():
    """A hub without a database: it commits by calling the callbacks."""
    return Hub(None)


@pytest.fixture
def relay(directory):
    with Relay(directory + '/hub.sock') as relay:
        yield relay


@pytest.fixture
def log(caplog):
    """What the plugin logged, as 'LEVEL message'; what Koji logged about a callback that raised too."""
    caplog.set_level(logging.DEBUG)
    return lambda level=logging.WARNING: [
        '%s %s' % (record.levelname, record.getMessage()) for record in caplog.records
        if record.levelno >= level and record.name.startswith('koji.plugin')]


@pytest.fixture
def build_type(monkeypatch):
    """The hub's get_build_type, which a test may replace: build_type.answer = function."""
    module = types.ModuleType('kojihub')
    module.answer = lambda info: {'rpm': None}
    module.get_build_type = lambda info: module.answer(info)
    monkeypatch.setitem(sys.modules, 'kojihub', module)
    return module
