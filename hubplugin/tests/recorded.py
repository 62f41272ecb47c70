"""Python values as JSON and back: what a hub gives its callbacks is more than JSON can say."""
import datetime
import decimal
import re
import xmlrpc.client


def typed(value):
    """A value that json.dumps can write. Raises TypeError for one that was never seen in a hub."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: typed(item) for key, item in value.items()}
        return {'$dict': [[typed(key), typed(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, (tuple, set, frozenset)):
        return {'$' + type(value).__name__: [typed(item) for item in value]}
    if isinstance(value, datetime.datetime):
        return {'$datetime': value.isoformat()}
    if isinstance(value, xmlrpc.client.DateTime):
        return {'$DateTime': value.value}
    if isinstance(value, decimal.Decimal):
        return {'$Decimal': str(value)}
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError('%s: %r' % (type(value), value))


def moment(text):
    """datetime.fromisoformat, which Python 3.6 has not."""
    text, zone = re.fullmatch(r'(.*?)([+-]\d\d:\d\d)?', text).groups()
    form = '%Y-%m-%dT%H:%M:%S' + ('.%f' if '.' in text else '')
    if zone:
        text, form = text + zone.replace(':', ''), form + '%z'
    return datetime.datetime.strptime(text, form)


REVIVE = {
    '$dict': lambda items: {untyped(key): untyped(value) for key, value in items},
    '$tuple': lambda items: tuple(map(untyped, items)),
    '$set': lambda items: set(map(untyped, items)),
    '$frozenset': lambda items: frozenset(map(untyped, items)),
    '$datetime': moment,
    '$Decimal': decimal.Decimal,
    '$DateTime': xmlrpc.client.DateTime,
}


def untyped(value):
    """The value again."""
    if isinstance(value, list):
        return [untyped(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            (key, item), = value.items()
            if key in REVIVE:
                return REVIVE[key](item)
        return {key: untyped(item) for key, item in value.items()}
    return value
