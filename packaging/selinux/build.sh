#!/bin/sh
# build.sh [DIRECTORY]: compiles koji_relay.pp there, by default here. Needs checkmodule and semodule_package
# (checkpolicy and policycoreutils on Fedora and RHEL, checkpolicy and semodule-utils on Debian).
set -eu
source=$(cd "$(dirname "$0")" && pwd)
cd "${1:-.}"
checkmodule -M -m -o koji_relay.mod "$source/koji_relay.te"
semodule_package -o koji_relay.pp -m koji_relay.mod -f "$source/koji_relay.fc"
rm -f koji_relay.mod
