"""Random events through the real protonmsg and through the hub plugin, side by side.

    /usr/bin/python3 protonmsg_random.py PROTONMSG KOJI SEED COUNT EXTRA_LIMIT

PROTONMSG is Koji's plugins/hub/protonmsg.py, KOJI a directory with Koji's library; python-proton is needed.
Prints COUNT lines of JSON: {"callback", "kwargs", "want"}. kwargs is the text that the hub plugin hands over.
What is wanted is null (no message), "failed" (protonmsg makes the hub call fail), "odd" (JSON or AMQP has no
form for it, and protonmsg sends it all the same, or cannot) or {"address", "props": {key: value}, "body"}.
props are as they come from the wire; body is null where it is kwargs to the byte.
"""
import contextlib
import datetime
import importlib.util
import json
import logging
import os
import random
import sys
import types
import xmlrpc.client

HERE = os.path.dirname(os.path.abspath(__file__))
protonmsg_path, library, seed, count, extra_limit = sys.argv[1:]
sys.path.insert(0, library)

import koji  # noqa: E402
import koji.plugin  # noqa: E402
import proton  # noqa: E402
from koji.context import context  # noqa: E402

logging.disable(logging.CRITICAL)
hub = types.ModuleType('kojihub')
hub.__path__ = []
hub.get_build_type = lambda info: {'rpm': None, 'image': {'build_id': info.get('id')}}
database = types.ModuleType('kojihub.db')
database.QueryProcessor = database.InsertProcessor = database.DeleteProcessor = database.db_lock = None
sys.modules.update({'kojihub': hub, 'kojihub.db': database})


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in vars(module).values():
        for callback in getattr(function, 'callbacks', ()):
            if not callback.endswith('Commit'):
                koji.plugin.register_callback(callback, function)
    return module


protonmsg = load('protonmsg', protonmsg_path)
protonmsg.CONFIG = koji.read_config_files([])
protonmsg.CONFIG.read_dict({'message': {'extra_limit': extra_limit}})
plugin = load('koji_relay', os.path.join(HERE, '..', '..', 'hubplugin', 'koji_relay.py'))
plugin.CONFIG_FILE = os.devnull
plugin.load_config()
plugin.savepoint = contextlib.nullcontext   # the types of a build are asked for in one

dice = random.Random('%s %s' % (seed, extra_limit))
TEXTS = ['bash', '', 'Žluťoučký', '日本', '\U0001f600', 'a"b\\c', 'line\nline', '\x7f', '\x00', 'f40-updates',
         '%s', '/', '</script>', '\u2028', 'x' * 300]
NUMBERS = [0, 1, -1, 7, 2 ** 31, 2 ** 53 + 1, 2 ** 63 - 1, -2 ** 63, 1.5, -0.0, 3.0, 1e16, 1e300, 5e-324, 0.1]
DATES = [datetime.datetime(2026, 11, 26, 1, 2, 3), datetime.datetime(2026, 11, 26, 1, 2, 3, 45000),
         datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
         xmlrpc.client.DateTime('20240229T01:02:03')]
ODD = [2 ** 63, 2 ** 70, float('nan'), float('inf'), '\ud800', b'bytes', object]


def scalar():
    kind = dice.random()
    if kind < 0.01:
        return dice.choice(ODD)
    return dice.choice([None, True, False] if kind < 0.2 else NUMBERS if kind < 0.5 else TEXTS)


def anything(depth=4):
    kind = dice.random()
    if depth == 0 or kind < 0.4:
        return scalar()
    if kind < 0.5:
        return dice.choice(DATES)
    if kind < 0.55:
        return {dice.choice(TEXTS + [7])}
    if kind < 0.75:
        items = [anything(depth - 1) for _ in range(dice.randrange(5))]
        return items if dice.random() < 0.8 else tuple(items)
    keys = TEXTS + ['extra', 'build', 'name', 7, 1.5, None, True]
    return {dice.choice(keys): anything(depth - 1) for _ in range(dice.randrange(6))}


def some(*keys):
    """A dict with these keys, most of the time, in any order and among others."""
    found = {key: dice.choice(TEXTS) if dice.random() < 0.8 else scalar()
             for key in keys if dice.random() < 0.99}
    found.update({'z%d' % n: anything() for n in range(dice.randrange(4))})
    keys = list(found)
    dice.shuffle(keys)
    return {key: found[key] for key in keys}


def build():
    made = some('name', 'version', 'release')
    made.update(nvr='n-v-r', id=dice.randrange(1 << 40), completion_time=dice.choice([None] + DATES))
    if dice.random() < 0.7:
        url = {'source': {'original_url': 'x' * dice.randrange(400)}}
        made['extra'] = dice.choice([None, {}, anything(), url])
    return made


def event():
    name = dice.choice(['PackageListChange', 'TaskStateChange', 'BuildStateChange', 'Import', 'RPMSign',
                        'Tag', 'Untag', 'RepoInit', 'RepoDone', 'BuildPromote'])
    user, tag = some('name', 'id'), some('name', 'id')
    state = dice.choice(['state'] * 4 + ['volume_id'])
    kwargs = {
        'PackageListChange': lambda: dict(action=dice.choice(['add', 'block', 'set owners']), tag=tag,
                                          package=some('name', 'id'), user=user, owner=3),
        'TaskStateChange': lambda: dict(attribute=state, old=dice.choice(['FREE', 'OPEN', None]),
                                        new=dice.choice(['OPEN', 'CLOSED', 'FAILED', 'Žluť']),
                                        info=dict(some('method'), id=dice.randrange(1 << 31),
                                                  parent=dice.choice([None, 7]), request=[anything()])),
        'BuildStateChange': lambda: dict(attribute=state, old=dice.choice([None, 0, 1]),
                                         new=dice.randrange(5), info=build()),
        'Import': lambda: dict(type=dice.choice(['build', 'rpm', 'cg', 'archive', 'image']), build=build(),
                               metadata=anything()),
        'RPMSign': lambda: dict(sigkey=dice.choice([None, '', 'deadbeef', 'a1']), sighash=scalar(),
                                build=build(), rpm=some('name', 'version', 'release', 'arch')),
        'Tag': lambda: dict(tag=tag, build=build(), user=user, force=scalar()),
        'Untag': lambda: dict(tag=tag, build=build(), user=user, force=scalar(), strict=True),
        'RepoInit': lambda: dict(tag=tag, with_src=True, repo_id=dice.randrange(1 << 31)),
        'RepoDone': lambda: dict(repo=some('id', 'tag_name', 'task_id'), expire=dice.random() < 0.5),
        'BuildPromote': lambda: dict(build=build(), draft_release='1,draft_5', target_release='1', user=user),
    }[name]()
    if dice.random() < 0.3:
        kwargs['task_id'] = scalar()
    kwargs = {key: value for key, value in kwargs.items() if dice.random() < 0.998}
    return 'post' + name, kwargs


def from_wire(message):
    """The properties of a message as a consumer gets them, or None where AMQP has no form for one."""
    if not all(isinstance(v, (type(None), bool, int, float, str)) for v in message['props'].values()):
        return None
    try:
        encoded = proton.Message(properties=message['props'], body=message['body']).encode()
    except Exception:
        return None
    got = proton.Message()
    got.decode(encoded)
    assert got.body == message['body'] and got.subject is None and got.address is None and got.id is None
    return got.properties


def wanted(kwargs, failed):
    messages = getattr(context, 'protonmsg_msgs', [])
    if failed or not messages:
        return 'failed' if failed else None
    message, = messages
    props = from_wire(message)
    try:
        json.loads(message['body'], parse_constant=lambda name: 1 / 0)      # NaN is not JSON
        json.dumps(props, allow_nan=False)
    except (ZeroDivisionError, ValueError):
        return 'odd'
    if props is None or any(isinstance(value, float) and value != value for value in props.values()):
        return 'odd'
    body = message['body']
    return {'address': message['address'], 'props': props, 'body': None if body == kwargs else body}


def main():
    for _ in range(int(count)):
        callback, kwargs = event()
        context._threadclear()
        try:
            koji.plugin.run_callbacks(callback, **kwargs)
            failed = False
        except koji.CallbackError:
            failed = True
        kept = getattr(context, 'koji_relay', None)
        text = kept.events[0][2] if kept else plugin.to_json(kwargs)
        print(json.dumps({'callback': callback, 'kwargs': text, 'want': wanted(text, failed)}))


main()
