"""protonmsg's rules once more, in the slowest and plainest way, to compare the relay's translation with.

    python3 restate.py SEED COUNT EXTRA_LIMIT
    python3 restate.py --serve EXTRA_LIMIT

Prints COUNT lines of JSON: {"callback", "kwargs" (the text that a hub would hand over), "want"}. What is
wanted is null (no message), "undeliverable", or {"address", "props": {key: value}, "body"}. It shares nothing
with the relay's code, not even the language.

With --serve it reads lines of {"callback", "kwargs"} and answers each with such a line. There kwargs is any
text, and comes back as json.dumps writes its value. "want" is "odd" for what no hub hands over.
"""
import json
import random
import sys

BUILD_STATES = ['BUILDING', 'COMPLETE', 'DELETED', 'FAILED', 'CANCELED']
TEXTS = ['bash', '', 'Žluťoučký', '日本', '\U0001f600', 'a"b\\c', 'line\nline', '\x7f', 'f40-updates', '%s',
         '</script>']


def scalar(dice):
    return dice.choice([None, True, False, 0, 7, -12345678901, 2 ** 62, 1.5, -0.0, 1e300, 3.0] + TEXTS)


def anything(dice, depth=3):
    if depth == 0 or dice.random() < 0.5:
        return scalar(dice)
    if dice.random() < 0.5:
        return [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
    keys = TEXTS + ['extra', 'build', 'name']
    return {dice.choice(keys): anything(dice, depth - 1) for _ in range(dice.randrange(5))}


def some(dice, *keys):
    """A dict with most of these keys, in any order, and others."""
    found = {key: scalar(dice) for key in keys if dice.random() < 0.9}
    found.update({'z%d' % n: anything(dice) for n in range(dice.randrange(3))})
    if dice.random() < 0.4:
        found['extra'] = anything(dice)
    keys = list(found)
    dice.shuffle(keys)
    return {key: found[key] for key in keys}


def pick(kwargs, *path):
    for key in path:
        if not isinstance(kwargs, dict) or key not in kwargs:
            return None
        kwargs = kwargs[key]
    return kwargs


def nvr(kwargs, where):
    return {key: pick(kwargs, where, key) for key in ('name', 'version', 'release')}


def trim(kwargs, where, limit):
    """The kwargs without the build's extra, where that is too long."""
    extra = pick(kwargs, where, 'extra')
    if not limit or extra is None or len(json.dumps(extra)) <= abs(limit):
        return kwargs
    return {key: {k: v for k, v in value.items() if k != 'extra'} if key == where else value
            for key, value in kwargs.items()}


def package_list_change(kwargs, limit):
    return 'package.', kwargs.get('action'), {
        'tag': pick(kwargs, 'tag', 'name'), 'package': pick(kwargs, 'package', 'name'),
        'action': kwargs.get('action'), 'user': pick(kwargs, 'user', 'name')}, kwargs


def task_state_change(kwargs, limit):
    if kwargs.get('attribute') != 'state':
        return None
    new = kwargs.get('new')
    return 'task.', new.lower() if isinstance(new, str) else new, {
        'id': pick(kwargs, 'info', 'id'), 'parent': pick(kwargs, 'info', 'parent'),
        'method': pick(kwargs, 'info', 'method'), 'attribute': 'state', 'old': kwargs.get('old'),
        'new': new}, kwargs


def build_state_change(kwargs, limit):
    if kwargs.get('attribute') != 'state':
        return None
    names = {key: None if kwargs.get(key) is None else BUILD_STATES[kwargs[key]] for key in ('old', 'new')}
    props = dict(nvr(kwargs, 'info'), attribute='state', **names)
    return 'build.', names['new'] and names['new'].lower(), props, trim(kwargs, 'info', limit)


def imported(kwargs, limit):
    props = dict(nvr(kwargs, 'build'), importType=kwargs.get('type'))
    return 'import.', kwargs.get('type'), props, trim(kwargs, 'build', limit)


def rpm_sign(kwargs, limit):
    if not kwargs.get('sigkey'):
        return None
    props = dict(nvr(kwargs, 'build'), sigkey=kwargs['sigkey'])
    props.update({'rpm_' + key: pick(kwargs, 'rpm', key) for key in ('name', 'version', 'release', 'arch')})
    return 'sign.rpm', '', props, trim(kwargs, 'build', limit)


def tag(address):
    def rule(kwargs, limit):
        props = dict(nvr(kwargs, 'build'), tag=pick(kwargs, 'tag', 'name'), user=pick(kwargs, 'user', 'name'))
        return address, '', props, trim(kwargs, 'build', limit)
    return rule


def with_task(kwargs):
    return kwargs if 'task_id' in kwargs else dict(kwargs, task_id=None)


def repo_init(kwargs, limit):
    return 'repo.init', '', {'tag': pick(kwargs, 'tag', 'name'), 'repo_id': kwargs.get('repo_id'),
                             'task_id': kwargs.get('task_id')}, with_task(kwargs)


def repo_done(kwargs, limit):
    return 'repo.done', '', {'tag': pick(kwargs, 'repo', 'tag_name'), 'repo_id': pick(kwargs, 'repo', 'id'),
                             'task_id': pick(kwargs, 'repo', 'task_id'),
                             'expire': kwargs.get('expire')}, with_task(kwargs)


def build_promote(kwargs, limit):
    props = dict(nvr(kwargs, 'build'), build_id=pick(kwargs, 'build', 'id'),
                 user=pick(kwargs, 'user', 'name'),
                 draft_release=kwargs.get('draft_release'), target_release=kwargs.get('target_release'))
    return 'build.promote', '', props, trim(kwargs, 'build', limit)


RULES = {'PackageListChange': package_list_change, 'TaskStateChange': task_state_change,
         'BuildStateChange': build_state_change, 'Import': imported, 'RPMSign': rpm_sign,
         'Tag': tag('build.tag'), 'Untag': tag('build.untag'), 'RepoInit': repo_init,
         'RepoDone': repo_done, 'BuildPromote': build_promote}


def make(dice, event):
    """The kwargs of a callback, most of the time whole."""
    build = some(dice, 'id', 'name', 'version', 'release')
    parts = {
        'PackageListChange': dict(action=dice.choice(['add', 'block', 'set owners']),
                                  package=some(dice, 'name')),
        'TaskStateChange': dict(attribute=dice.choice(['state', 'state', 'weight']), old='FREE',
                                new=dice.choice(['OPEN', 'CLOSED', 'FAILED', 'Žluť']),
                                info=some(dice, 'id', 'parent', 'method')),
        'BuildStateChange': dict(attribute=dice.choice(['state', 'state', 'volume_id']),
                                 old=dice.choice([None, 0, 1]), new=dice.randrange(5), info=build),
        'Import': dict(type=dice.choice(['build', 'rpm', 'cg', 'archive', 'image']), build=build),
        'RPMSign': dict(sigkey=dice.choice([None, '', 'deadbeef']), build=build,
                        rpm=some(dice, 'name', 'version', 'release', 'arch')),
        'Tag': dict(build=build), 'Untag': dict(build=build),
        'RepoInit': dict(repo_id=dice.randrange(10000)),
        'RepoDone': dict(repo=some(dice, 'id', 'tag_name', 'task_id'), expire=dice.random() < 0.5),
        'BuildPromote': dict(build=build, draft_release='1,draft_5', target_release='1'),
    }[event]
    parts.update(tag=some(dice, 'name'), user=dice.choice([None, some(dice, 'name')]), note=anything(dice))
    if dice.random() < 0.3:
        parts['task_id'] = scalar(dice)
    keys = [key for key in parts if dice.random() < 0.95]
    dice.shuffle(keys)
    return {key: parts[key] for key in keys}


def state(callback, kwargs, limit):
    event = callback[4:] if callback.startswith('post') else callback[3:]
    found = RULES[event](kwargs, limit)
    if found is None:
        return None
    address, suffix, props, body = found
    if suffix is None:
        return 'undeliverable'
    props['type'] = event if callback.startswith('post') else callback
    prefix = '' if callback.startswith('post') else 'pre.'
    return {'address': prefix + address + suffix, 'props': props, 'body': json.dumps(body)}


def serve(limit):
    def refuse(name):
        raise ValueError(name)      # NaN and infinities: the hub plugin hands none over
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            kwargs = json.loads(asked['kwargs'], parse_constant=refuse)
            asked['kwargs'] = json.dumps(kwargs, allow_nan=False)
            asked['want'] = state(asked['callback'], kwargs, limit) if isinstance(kwargs, dict) else 'odd'
        except Exception:
            asked['want'] = 'odd'
        print(json.dumps(asked), flush=True)


def main():
    if sys.argv[1] == '--serve':
        return serve(int(sys.argv[2]))
    seed, count, limit = map(int, sys.argv[1:])
    dice = random.Random(seed)
    for _ in range(count):
        event = dice.choice(list(RULES))
        callback = dice.choice(['post', 'pre']) + event
        kwargs = make(dice, event)
        want = state(callback, kwargs, limit)
        print(json.dumps({'callback': callback, 'kwargs': json.dumps(kwargs), 'want': want}))


main()
