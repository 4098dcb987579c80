#!/bin/sh
# Prepares .venv with everything that the program, its tests and its checks need; does nothing if that is done.
#
# It is done again if pyproject.toml changed, the clone was moved (scripts in an environment name their own place) or
# the environment's Python cannot be run by this user. PYTHON names the Python to use; else the first good one is taken.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp="$(pwd) $(cksum <pyproject.toml)"

if [ "$(cat $venv/.ready 2>/dev/null)" = "$stamp" ] && $venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

good() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    # The system's own comes first: every user can run it, and distributions build it with the profile-guided
    # optimisation that one built by hand mostly lacks (a tenth of the server's time). One early on the PATH may belong to
    # another user or lack venv, so there are some to try.
    for name in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3; do
        if good "$name"; then
            command -v "$name"
            return
        fi
    done
    echo "no Python 3.11 or later with the venv module found (Debian: apt-get install python3-venv);" >&2
    echo "PYTHON=/path/to/python make setup takes another one" >&2
    return 1
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$(find_python)
elif ! good "$python"; then
    echo "PYTHON=$python is not a Python 3.11 or later with the venv module that this user can run" >&2
    exit 1
fi

echo "preparing $venv with $python"
if [ "$(cat $venv/.place 2>/dev/null)" != "$(pwd)" ] || ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear $venv
    pwd >$venv/.place
fi
rm -f $venv/.ready
$venv/bin/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
echo "$stamp" >$venv/.ready
