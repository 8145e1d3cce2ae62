#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make .venv from requirements/test.txt, once per content of that file, and link the clone where Ansible looks for collections.
# PYTHON=<interpreter> overrules the choice. pip takes its index, find-links, CA and proxy from the environment, as always.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly requirements=requirements/test.txt stamp=.venv/requirements.sha256

# A name on PATH proves nothing: a version manager's shim may exist and refuse to run, a distribution may ship without ensurepip.
works() {
    "$1" -c 'import sys, venv, ssl, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

version() {
    "$1" -c 'import platform; print(platform.python_version())'
}

find_python() {
    local candidate
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if works "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if command -v uv >/dev/null; then
        echo "setup: no Python 3.11 to 3.14 here; uv fetches one" >&2
        if uv python install --quiet 3.13 && candidate=$(uv python find 3.13) && works "$candidate"; then
            echo "$candidate"
            return
        fi
        echo "setup: uv could not provide Python 3.13" >&2
    fi
    cat >&2 <<'TEXT'
setup: no Python 3.11, 3.12, 3.13 or 3.14 with the modules venv, ssl and ensurepip was found. Any one of these helps:
  Debian, Ubuntu   apt-get install python3 python3-venv
  RHEL, Fedora     dnf install python3.12
  anywhere         install uv (it fetches a Python of its own), or: make PYTHON=/path/to/python3.12
TEXT
    return 1
}

link_collection() {
    mkdir -p .cache/collections/ansible_collections/h20
    ln -sfn ../../../.. .cache/collections/ansible_collections/h20/fleet
}

main() {
    local hash python
    link_collection
    hash=$(sha256sum <"$requirements" | cut -d' ' -f1)
    if [[ -n ${PYTHON:-} ]]; then
        works "$PYTHON" || { echo "setup: PYTHON=$PYTHON is not a Python 3.11 to 3.14 with venv, ssl and ensurepip" >&2; return 1; }
        python=$PYTHON
    elif works .venv/bin/python; then
        python=.venv/bin/python
    else
        python=$(find_python)
    fi
    if works .venv/bin/python && [[ $(version .venv/bin/python) == "$(version "$python")" ]]; then
        if [[ $(cat "$stamp" 2>/dev/null) == "$hash" ]]; then
            return
        fi
    else
        echo "setup: .venv from Python $(version "$python") ($python)"
        "$python" -m venv --clear .venv
    fi
    echo "setup: installing $requirements (the first time takes a minute or two)"
    # Byte-compiling the whole ansible bundle costs more than the few files that are used save.
    # pip says twice for every package that a configured file:// index lacks it; that is what further indexes are for.
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --requirement "$requirements" \
        2> >(grep -v 'it is neither a file nor a directory' >&2)
    echo "$hash" >"$stamp"
    echo "setup: $(.venv/bin/ansible --version | head -1), $(.venv/bin/python --version)"
}

main
