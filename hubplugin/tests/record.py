"""Runs a real Koji hub with protonmsg and koji_relay, and records what each of them makes of its callbacks.

    record.py SOURCES NAME DSN DIRECTORY

SOURCES is the unpacked source of a Koji, NAME its version, DSN a superuser's connection to PostgreSQL, where
a database is made. The hub is Koji's own WSGI application, in this process; a list of calls takes it through
what a hub announces. protonmsg runs twice: without and with extra_limit. Both send to a stand-in for
proton's container, which keeps each Message as proton encoded it. koji_relay hands over to a stand-in for
the relay.

DIRECTORY/NAME.jsonl gets a line for each commit of a shape that no file there has: what this Koji does
otherwise than those recorded before. A line has the commit's events, but for those before the fact:

    kwargs      as Python had them; recorded.py gives them back
    text        what koji_relay handed over
    messages    what protonmsg sent, and with which extra_limit; without a body where that is the text

It is run by .ci/koji-hubs. Python's proton, rpm and psycopg2 must be there, and rpmbuild.
"""
import base64
import glob
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xmlrpc.client

import psycopg2
import psycopg2.extensions

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES, NAME, DSN, DIRECTORY = sys.argv[1:]
sys.path[:0] = [SOURCES + '/hub', SOURCES, HERE]

import recorded  # noqa: E402
from relay import Relay  # noqa: E402

EXTRA_LIMIT = 60
SPEC = '''Name: %(name)s
Version: 1.0
Release: %(release)s
Summary: s
License: MIT
BuildArch: noarch
%%description
d
%%files
'''


# ---- what protonmsg runs on ---------------------------------------------------------------------

class Container:
    """Proton's reactor, with a broker that accepts everything. `sent` is (extra_limit, message, dict)."""

    sent = []

    def __init__(self, handler):
        self.handler = handler

    def run(self):
        class Event:
            container = connection = self
        self.handler.send_msgs(Event)
        for delivery in list(self.handler.pending):
            Event.delivery = delivery
            self.handler.on_settled(Event)

    hostname = 'broker'

    def create_sender(self, _, target):
        return Sender(target, self.handler.conf.getint('message', 'extra_limit'))

    def close(self):
        pass


class Sender:
    def __init__(self, address, extra_limit):
        self.target = type('Target', (), {'address': address})
        self.extra_limit = extra_limit

    def send(self, message):
        Container.sent.append((self.extra_limit, self.target.address, message.encode()))
        return object()

    def close(self):
        pass


class Context:
    """The hub's context, with protonmsg's list under a name of its own: the other one has a list too."""

    def __init__(self, context, name):
        self.__dict__.update(context=context, name=name)

    def _mine(self, key):
        return key + self.name if key.startswith('protonmsg') else key

    def __getattr__(self, key):
        return getattr(self.context, self._mine(key))

    def __setattr__(self, key, value):
        setattr(self.context, self._mine(key), value)

    def __delattr__(self, key):
        delattr(self.context, self._mine(key))


AMQP = {str: 'string', int: 'long', bool: 'boolean', float: 'double', type(None): 'null'}


def decoded(encoded):
    """(application-properties with their types, body, ttl) of a message."""
    import proton
    message = proton.Message()
    message.decode(encoded)
    assert isinstance(message.body, str) and message.id is None and message.subject is None
    props = [[key, AMQP[type(value)], value] for key, value in message.properties.items()]
    return props, message.body, message.ttl


# ---- the hub ------------------------------------------------------------------------------------

class Hub:
    def __init__(self, directory):
        self.directory = directory
        self.calls = 0
        admin = psycopg2.connect(DSN)
        admin.autocommit = True
        admin.cursor().execute('DROP DATABASE IF EXISTS koji_hub')
        admin.cursor().execute('CREATE DATABASE koji_hub')
        self.dsn = psycopg2.extensions.make_dsn(DSN, dbname='koji_hub')
        self.database = psycopg2.connect(self.dsn)
        self.database.autocommit = True
        for path in ('docs/schema.sql', 'schemas/schema.sql'):
            if os.path.exists(SOURCES + '/' + path):
                with open(SOURCES + '/' + path) as schema:
                    self.sql(schema.read())
        self.setup(psycopg2.extensions.parse_dsn(self.dsn))

    def sql(self, text, *values):
        cursor = self.database.cursor()
        cursor.execute(text, values)
        return cursor.fetchall() if cursor.description else None

    def setup(self, dsn):
        plugins = self.directory + '/plugins'
        os.makedirs(plugins)
        for name in ('protonmsg', 'protonmsg_limit'):
            shutil.copy(SOURCES + '/plugins/hub/protonmsg.py', '%s/%s.py' % (plugins, name))
            with open('%s/%s.conf' % (plugins, name), 'w') as conf:
                conf.write('[broker]\nurls = amqp://broker\ntopic_prefix = koji\nconnect_timeout = 1\n'
                           'send_timeout = 1\n[message]\nextra_limit = %d\nttl = 7200\n'
                           '[queue]\nenabled = false\n'
                           % (EXTRA_LIMIT if 'limit' in name else 0))
        os.symlink(os.path.dirname(HERE) + '/koji_relay.py', plugins + '/koji_relay.py')
        with open(plugins + '/koji_relay.conf', 'w') as conf:
            conf.write('[koji_relay]\ndelivery = direct\nsocket = %s/hub.sock\n' % self.directory)
        with open(self.directory + '/hub.conf', 'w') as conf:
            conf.write('[hub]\nDBName = %(dbname)s\nDBUser = %(user)s\nDBHost = %(host)s\n' % dsn)
            conf.write('KojiDir = %s/koji\nPluginPath = %s\nPlugins = protonmsg protonmsg_limit koji_relay\n'
                       'LoginCreatesUser = True\nNotifyOnSuccess = False\nCheckClientIP = False\n'
                       'KojiTraceback = normal\nKojiWebURL = http://hub/koji\nEmailDomain = example.com\n'
                       'LogLevel = ERROR\nEnableMaven = True\nMemoryWarnThreshold = 100000000\n'
                       % (self.directory, plugins))
        self.environ = {
            'REQUEST_METHOD': 'POST', 'REMOTE_ADDR': '127.0.0.1', 'SCRIPT_NAME': '/kojihub',
            'SERVER_NAME': 'hub', 'SCRIPT_FILENAME': '/kojihub', 'wsgi.url_scheme': 'https',
            'CONTENT_TYPE': 'text/xml',
            'SSL_CLIENT_VERIFY': 'SUCCESS', 'koji.hub.ConfigFile': self.directory + '/hub.conf',
            'koji.hub.ConfigDir': self.directory + '/hub.conf.d', 'wsgi.errors': sys.stderr,
            'REQUEST_URI': '/kojihub', 'REQUEST_SCHEME': 'https', 'SERVER_PORT': '443'}
        try:
            from kojihub import kojixmlrpc
        except ImportError:     # before 1.32 they were two modules
            import kojixmlrpc
        import koji
        import koji.context
        import koji.plugin
        self.koji = koji
        for sub in ('packages', 'repos', 'work', 'scratch', 'repos-dist'):
            os.makedirs('%s/koji/%s' % (self.directory, sub))
        kojixmlrpc.server_setup(self.environ)
        kojixmlrpc.firstcall = False
        self.kojixmlrpc, self.application = kojixmlrpc, kojixmlrpc.application
        self.events = []
        for module in list(sys.modules.values()):
            name = getattr(module, '__name__', '').rpartition('_plugin__')[2]
            if name in ('protonmsg', 'protonmsg_limit', 'koji_relay') and hasattr(module, 'CONFIG_FILE'):
                module.CONFIG_FILE = '%s/%s.conf' % (plugins, name)
                if name != 'koji_relay':
                    module.Container = Container
                    module.context = Context(module.context, name)
        for name in koji.plugin.callbacks:
            if not name.endswith('Commit'):
                # First, so that the kwargs are seen before a plugin has had them.
                koji.plugin.callbacks[name].insert(0, self.seen)

    def seen(self, cbtype, *args, **kwargs):
        assert not args
        self.events.append((cbtype, recorded.typed(kwargs)))

    def request(self, session, method, *params, **options):
        """One call through WSGI. A fault is raised."""
        if options:
            params += (dict(options, __starstar=True),)
        self.calls += 1
        body = self.koji.xmlrpcplus.dumps(params, method).encode()
        environ = dict(self.environ, CONTENT_LENGTH=str(len(body)))
        environ['wsgi.input'] = io.BytesIO(body)
        if isinstance(session, str):
            environ['SSL_CLIENT_S_DN_CN'] = session
        else:
            environ['QUERY_STRING'] = 'session-id=%s&session-key=%s&callnum=%d' % (session + (self.calls,))
            environ['HTTP_KOJI_SESSION_ID'], environ['HTTP_KOJI_SESSION_KEY'] = str(session[0]), session[1]
            environ['HTTP_KOJI_SESSION_CALLNUM'] = str(self.calls)
        status = []
        text = b''.join(self.application(environ, lambda line, headers: status.append(line)))
        assert status[0].startswith('200'), (status, text)
        return xmlrpc.client.loads(text.decode(), use_builtin_types=False)[0][0]

    def run_scheduler(self):
        """Runs the scheduler as a process of its own would: no request, no session."""
        from kojihub import db, scheduler
        context = self.koji.context.context
        context._threadclear()
        context.commit_pending, context.opts, context.cnx = False, self.kojixmlrpc.opts, db.connect()
        scheduler.TaskScheduler().run(force=True)
        self.koji.plugin.run_callbacks('preCommit')
        context.cnx.commit()
        self.koji.plugin.run_callbacks('postCommit')
        context.cnx.close()
        context._threadclear()

    def login(self, name):
        answer = self.request(name, 'sslLogin')
        return answer['session-id'], answer['session-key']


# ---- the recording ------------------------------------------------------------------------------

class Recording:
    """Runs calls, and keeps what came of each that committed."""

    def __init__(self, hub, relay, path):
        self.hub, self.relay = hub, relay
        self.shapes = set()
        self.count = 0
        if os.path.exists(path):
            os.unlink(path)
        for earlier in glob.glob(os.path.dirname(path) + '/*.jsonl'):
            with open(earlier) as lines:
                self.shapes.update(shape_of(json.loads(line)) for line in lines)
        self.file = open(path, 'w')

    def call(self, session, method, *params, **options):
        self.begin()
        result = self.hub.request(session, method, *params, **options)
        self.keep(method)
        return result

    def begin(self):
        self.hub.events.clear()
        Container.sent.clear()
        del self.relay.requests[:]

    def keep(self, method):
        """Write down what became of a commit."""
        texts = [event for request in self.relay.requests if request.text for event in pieces(request.text)]
        seen = [(name, kwargs) for name, kwargs in self.hub.events
                if kwargs.get('attribute', 'state') == 'state']
        assert [name for name, _ in seen] == [name for name, _ in texts], (seen, texts)
        events = [{'callback': name, 'kwargs': kwargs, 'text': text, 'messages': []}
                  for (name, kwargs), (_, text) in zip(seen, texts) if name.startswith('post')]
        for limit in 0, EXTRA_LIMIT:
            sent = [message for extra_limit, *message in Container.sent if extra_limit == limit]
            senders = [event for event in events
                       if event['callback'] != 'postRPMSign' or event['kwargs']['sigkey']]
            assert len(sent) == len(senders), (method, sent, senders)
            for event, (target, encoded) in zip(senders, sent):
                props, body, ttl = decoded(encoded)
                message = {'extra_limit': [limit], 'target': target, 'ttl': ttl, 'props': props}
                if body != event['text']:
                    message['body'] = body
                if event['messages'] and dict(event['messages'][0], extra_limit=[limit]) == message:
                    event['messages'][0]['extra_limit'].append(limit)
                else:
                    event['messages'].append(message)
                self.count += 1
        commit = {'method': method, 'events': events}
        if events and shape_of(commit) not in self.shapes:
            self.shapes.add(shape_of(commit))
            text = json.dumps(commit).replace(self.hub.directory + '/koji/work', '/mnt/uploads')
            self.file.write(text.replace(self.hub.directory + '/koji', '/mnt/koji') + '\n')


def shape_of(commit):
    """What differs from one commit to the next of its kind is left out."""
    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shape(item) for item in value[:1]]
        return type(value).__name__

    return json.dumps([commit['method']] + [
        [event['callback'], shape(event['kwargs'])] +
        [[message['extra_limit'], message['target'], message['ttl'], 'body' in message,
          [(key, kind) for key, kind, _ in message['props']]] for message in event['messages']]
        for event in commit['events']])


def pieces(text):
    """(callback, text of the kwargs) of each event of a request, as it was written."""
    decoder, position = json.JSONDecoder(), 0
    for event in json.loads(text)['events']:
        position = text.index('"kwargs": ', position) + len('"kwargs": ')
        end = decoder.raw_decode(text, position)[1]
        yield event['callback'], text[position:end]
        position = end


# ---- the calls ----------------------------------------------------------------------------------

def rpms(directory, name, release):
    """The paths of a source package and of a noarch one, relative to the hub's work directory."""
    top = directory + '/rpmbuild'
    os.makedirs(top, exist_ok=True)
    spec = '%s/%s.spec' % (top, name)
    with open(spec, 'w') as file:
        file.write(SPEC % {'name': name, 'release': release})
    subprocess.run(['rpmbuild', '-ba', '--quiet', '-D', '_topdir ' + top, '-D', '_build_id_links none', spec],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    nvr = '%s-1.0-%s' % (name, release)
    work = os.path.join(directory, 'koji', 'work', 'up')
    os.makedirs(work, exist_ok=True)
    shutil.copy('%s/SRPMS/%s.src.rpm' % (top, nvr), work)
    shutil.copy('%s/RPMS/noarch/%s.noarch.rpm' % (top, nvr), work)
    return 'up/%s.src.rpm' % nvr, 'up/%s.noarch.rpm' % nvr


def upload(directory, path, data):
    path = os.path.join(directory, 'koji', 'work', path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(data)


def cg_metadata(name, image):
    return {
        'metadata_version': 0,
        'build': {'name': name, 'version': '1', 'release': '1', 'source': 'git://src#1',
                  'start_time': 1717000000.5, 'end_time': 1717000100, 'owner': 'kojiadmin',
                  'extra': {'typeinfo': {'image': {}}, 'note': 'h\xe9llo \U0001f600 ' + 'x' * 80}},
        'buildroots': [{'id': 1, 'content_generator': {'name': 'cg', 'version': '1'},
                        'container': {'type': 'none', 'arch': 'x86_64'},
                        'host': {'os': 'Fedora', 'arch': 'x86_64'},
                        'tools': [{'name': 'tool', 'version': '1'}], 'components': []}],
        'output': [{'buildroot_id': 1, 'filename': 'disk.qcow2', 'filesize': len(image), 'arch': 'x86_64',
                    'checksum_type': 'md5', 'checksum': hashlib.md5(image).hexdigest(), 'type': 'image',
                    'extra': {'image': {'arch': 'x86_64', 'size': 1.5, 'none': None}}}]}


def run(hub, recording):
    directory, call = hub.directory, recording.call
    admin = hub.login('kojiadmin')
    hub.sql("INSERT INTO user_perms (user_id, perm_id, create_event, creator_id) "
            "SELECT users.id, permissions.id, get_event(), users.id "
            "FROM users, permissions WHERE users.name = 'kojiadmin' "
            "AND permissions.name = 'admin'")
    call(admin, 'addHost', 'builder1', ['x86_64'])
    call(admin, 'editHost', 'builder1', capacity=50.0)
    builder = hub.login('builder1')
    call(builder, 'exclusiveSession')
    for tag in ('f40', 'f40-build', 'f41'):
        call(admin, 'createTag', tag, arches='x86_64')
    call(admin, 'createBuildTarget', 'f40', 'f40-build', 'f40')

    # packages
    for package in ('tool', 'image', 'disk', 'maven', 'draft'):
        call(admin, 'packageListAdd', 'f40', package, 'kojiadmin')
    call(admin, 'packageListAdd', 'f40-build', 'tool', 'kojiadmin', extra_arches='i686')
    call(admin, 'packageListSetOwner', 'f40', 'tool', 'builder1')
    call(admin, 'packageListSetArches', 'f40', 'tool', 'x86_64 aarch64')
    call(admin, 'packageListBlock', 'f40', 'maven')
    call(admin, 'packageListUnblock', 'f40', 'maven')
    call(admin, 'packageListRemove', 'f40', 'maven')

    # tasks
    def task(method, *arguments):
        number = call(admin, 'makeTask', method, list(arguments))
        call(builder, 'host.openTask', number)
        return number
    child = call(admin, 'makeTask', 'sleep', [1], parent=task('sleep', 2), label='a child')
    call(admin, 'cancelTask', child)
    call(builder, 'host.closeTask', task('sleep', 1), xmlrpc.client.dumps(('done',), methodresponse=True))
    call(builder, 'host.failTask', task('sleep', 1), xmlrpc.client.dumps(xmlrpc.client.Fault(1000, 'no')))
    call(builder, 'host.freeTasks', [task('sleep', 1)])
    free = call(admin, 'makeTask', 'sleep', [1])
    call(admin, 'assignTask', free, 'builder1')
    call(admin, 'setTaskPriority', free, 7)

    # the scheduler: within a call, and in a process of its own that is no request
    if 'scheduler.doRun' in call(admin, 'system.listMethods'):
        call(builder, 'host.updateHost', 0.0, True, {'maxjobs': 10})
        call(admin, 'makeTask', 'sleep', [1], arch='noarch')
        call(admin, 'scheduler.doRun', True)
        call(admin, 'makeTask', 'sleep', [1], arch='noarch')
        recording.begin()
        hub.run_scheduler()
        recording.keep('the scheduler')

    # an RPM build by a builder, one that fails, one that is cancelled
    def build(name, release, **more):
        number = task('build', 'git://src#1', 'f40', {})
        identity = call(builder, 'host.initBuild', dict(
            {'name': name, 'version': '1.0', 'release': release, 'epoch': None, 'task_id': number}, **more))
        return number, identity
    number, identity = build('tool', '1')
    srpm, rpm = rpms(directory, 'tool', '1')
    upload(directory, 'up/build.log', b'log')
    call(builder, 'host.completeBuild', number, identity, srpm, [rpm], None, {'noarch': ['up/build.log']})
    call(admin, 'tagBuildBypass', 'f40', 'tool-1.0-1')
    call(admin, 'tagBuildBypass', 'f41', 'tool-1.0-1', force=True)
    call(admin, 'untagBuildBypass', 'f41', 'tool-1.0-1')
    number, identity = build('tool', '2')
    call(builder, 'host.failBuild', number, identity)
    number, identity = build('tool', '3')
    call(admin, 'cancelBuild', identity)

    # imports
    call(admin, 'createEmptyBuild', 'tool', '1.0', '4', None)
    srpm, rpm = rpms(directory, 'tool', '4')
    call(admin, 'importRPM', 'up', os.path.basename(srpm))
    call(admin, 'importRPM', 'up', os.path.basename(rpm))
    call(admin, 'createMavenBuild', {'name': 'maven', 'version': '1', 'release': '1', 'epoch': None},
         {'group_id': 'org', 'artifact_id': 'maven', 'version': '1'})
    upload(directory, 'up/maven-1.jar', zip_of())
    call(admin, 'importArchive', 'up/maven-1.jar',
         {'name': 'maven', 'version': '1', 'release': '1', 'epoch': None}, 'maven',
         {'group_id': 'org', 'artifact_id': 'maven', 'version': '1'})
    call(admin, 'grantCGAccess', 'kojiadmin', 'cg', create=True)
    image = b'QFI image'
    upload(directory, 'up/disk.qcow2', image)
    call(admin, 'CGImport', cg_metadata('disk', image), 'up')
    token = call(admin, 'CGInitBuild', 'cg', {'name': 'disk', 'version': '2', 'release': '1'})
    call(admin, 'CGRefundBuild', 'cg', token['build_id'], token['token'])

    # an image
    number = task('image', 'image', '1', 'x86_64', 'f40', 'ks', {})
    info = call(builder, 'host.initImageBuild', number, {
        'name': 'image', 'version': '1', 'release': '1', 'epoch': 0})
    place = 'tasks/%d/%d' % (number % 10000, number)
    upload(directory, place + '/image.qcow2', image)
    upload(directory, place + '/image.log', b'log')
    results = {str(number): {'arch': 'x86_64', 'task_id': number, 'files': ['image.qcow2'], 'rpmlist': [],
                             'logs': ['image.log'], 'rootdevice': None}}
    call(builder, 'host.completeImageBuild', number, info['id'], results)

    # signatures
    for release in '1', '4':
        path = '%s/rpmbuild/RPMS/noarch/tool-1.0-%s.noarch.rpm' % (directory, release)
        call(admin, 'addRPMSig', 'tool-1.0-%s.noarch' % release,
             base64.b64encode(signed(hub.koji, path)).decode())

    # repos
    number = task('newRepo', 'f40-build')
    repo, _ = call(builder, 'host.repoInit', 'f40-build', task_id=number)
    call(builder, 'host.repoDone', repo, {})
    number = task('newRepo', 'f40-build')
    repo, _ = call(builder, 'host.repoInit', 'f40-build', task_id=number)
    call(builder, 'host.repoDone', repo, {}, True)
    call(admin, 'distRepo', 'f40', [], allow_missing_signatures=True, arch=['x86_64'], comp=None, event=None,
         inherit=True, latest=True, multilib=False, split_debuginfo=False, skip_missing_signatures=False,
         allow_missing=True, comps=None, delta=None, zck=False, zck_dict_dir=None, write_signed_rpms=False,
         skip_stat=True, volume=None)

    # drafts
    if 'postBuildPromote' in hub.koji.plugin.callbacks:
        number, identity = build('draft', '1', draft=True)
        srpm, rpm = rpms(directory, 'draft', '1')
        call(builder, 'host.completeBuild', number, identity, srpm, [rpm], None, {})
        call(admin, 'promoteBuild', identity)

    call(admin, 'deleteBuild', 'tool-1.0-4')
    call(admin, 'multiCall', [
        {'methodName': 'packageListAdd', 'params': ['f41', 'tool', 'kojiadmin']},
        {'methodName': 'packageListAdd', 'params': ['f41', 'disk', 'kojiadmin']}])


def zip_of():
    import zipfile
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('META-INF/MANIFEST.MF', 'Manifest-Version: 1.0\n')
    return buffer.getvalue()


def signed(koji, path):
    """A package's signature header with a signature. The hub reads no more of it than the key's id."""
    import struct
    md5 = koji.RawHeader(koji.rip_rpm_sighdr(path)).get(koji.RPM_SIGTAG_MD5)
    packet = b'\x88\x13\x03\x05\x00\x66\x00\x00\x00' + bytes.fromhex('0011223344aabbcc') + b'\x01\x08'
    packet = b'\x88' + bytes([len(packet) - 2]) + packet[2:]
    entries = struct.pack('>4I4I', koji.RPM_SIGTAG_MD5, 7, 0, 16, koji.RPM_SIGTAG_GPG, 7, 16, len(packet))
    return b'\x8e\xad\xe8\x01\0\0\0\0' + struct.pack('>2I', 2, 16 + len(packet)) + entries + md5 + packet


def main():
    directory = tempfile.mkdtemp(prefix='hub-')
    try:
        hub = Hub(directory)
        with Relay(directory + '/hub.sock') as relay:
            recording = Recording(hub, relay, '%s/%s.jsonl' % (DIRECTORY, NAME))
            run(hub, recording)
            recording.file.close()
            print('%s: %d messages' % (NAME, recording.count))
    finally:
        shutil.rmtree(directory)


main()
