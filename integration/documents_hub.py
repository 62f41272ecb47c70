"""A hub in a box: it does what its web server would, with the plugins that hub.conf named at its last start.

    python documents_hub.py ROOT DSN BUILD TAG USER [TIMES]

ROOT is the box's root directory as this process sees it. The plugin, its configuration and its socket are the
installed ones below it. One build is tagged in a commit of its own, TIMES times. What the plugin logs goes to
standard error. Without koji_relay among the plugins nothing is announced, and nothing is said.
"""
import logging
import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'hubplugin', 'tests'))

import conftest  # noqa: E402
import koji.plugin  # noqa: E402
from hub import Hub, dml  # noqa: E402


def main():
    root, dsn, build, tag, user = sys.argv[1:6]
    times = int(sys.argv[6]) if len(sys.argv) > 6 else 1
    with open(root + '/run/apache2/plugins') as f:      # as its start found them
        plugins = re.sub(r'^\s*Plugins\s*=', '', f.read()).split()
    logging.basicConfig(stream=sys.stderr)
    if 'koji_relay' in plugins:
        conftest.PLUGIN_DIR = root + '/usr/lib/koji-hub-plugins'
        plugin = conftest.load_plugin()
        with open(root + '/etc/koji-hub/plugins/koji_relay.conf') as f:
            conf = re.sub(r'(?m)^(socket\s*=\s*)', r'\1' + root, f.read())
        with tempfile.NamedTemporaryFile('w', suffix='.conf') as f:
            f.write(conf)
            f.flush()
            plugin.CONFIG_FILE = f.name
            plugin.load_config()
    name, version, release = build.rsplit('-', 2)
    hub = Hub(dsn)

    def method():
        dml('INSERT INTO work (what) VALUES (%s)', build)
        koji.plugin.run_callbacks(
            'postTag', tag={'id': 7, 'name': tag}, force=False, user={'id': 1, 'name': user},
            build={'build_id': 1, 'id': 1, 'name': name, 'version': version, 'release': release, 'nvr': build,
                   'extra': None})

    for _ in range(times):
        result = hub.request(method)
        if isinstance(result, Exception):
            raise result


main()
