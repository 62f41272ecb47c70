"""The SELinux module compiles, where the tools are; and it covers the path that the plugin uses."""
import os
import re
import shutil
import subprocess

from conftest import ROOT

SOURCE = ROOT + '/packaging/selinux/'

if shutil.which('checkmodule') and shutil.which('semodule_package'):
    def test_policy_module_compiles(tmp_path):
        subprocess.run([SOURCE + 'build.sh', str(tmp_path)], check=True)
        assert os.listdir(str(tmp_path)) == ['koji_relay.pp']


def test_default_socket_gets_the_type_that_httpd_may_write(load):
    socket = load().KEYS['socket'][0]
    with open(SOURCE + 'koji_relay.fc') as contexts:
        lines = [line.split() for line in contexts if line.strip()]
    assert any(re.fullmatch(path, socket) for path, _ in lines)
    with open(SOURCE + 'koji_relay.te') as source:
        rules = source.read()
    for _, context in lines:
        assert 'allow httpd_t %s:sock_file' % context.split(':')[2] in rules
