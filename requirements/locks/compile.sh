#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Resolve the lock files of the role vllm: every package with its version and hashes, no source distribution, no index named.
# Options go to `uv pip compile`: without any, pins that still fit stay; `--upgrade` resolves anew.
# The CPU lock needs PyTorch's CPU wheel: where no folder of UV_FIND_LINKS holds it, add https://download.pytorch.org/whl/cpu/torch/ to that variable.
set -euo pipefail
cd "$(dirname "$0")/../.."
inputs=requirements/locks
locks=roles/vllm/files/locks
wheels=.testbed/services/mirror/wheels
newest=2026-11-20T00:00:00Z # what was uploaded later does not count: the same inputs give the same lock

compile() { # <name of the lock> <name of the inputs> <Python> [option ...]
  local command=(uv pip compile "$inputs/$2.in" --override "$inputs/$2.overrides.txt" --python-version "$3" --python-platform x86_64-manylinux_2_35
    --only-binary ":all:" --generate-hashes --no-annotate --no-emit-index-url --exclude-newer "$newest" --output-file "$locks/$1.txt")
  UV_CUSTOM_COMPILE_COMMAND="requirements/locks/compile.sh: ${command[*]}" "${command[@]}" --quiet "${@:4}"
}

mkdir -p "$locks"
PYTHONPATH=tests python3 -c 'from pathlib import Path; from testbed.hub import build_wheels; build_wheels(Path(".testbed/services/mirror"))'
UV_FIND_LINKS="$wheels${UV_FIND_LINKS:+,$UV_FIND_LINKS}" compile vllm-0.32.0-cpu-py311 vllm-0.32.0-cpu-py311 3.11 "$@"
unset UV_FIND_LINKS UV_EXTRA_INDEX_URL UV_INDEX # a CPU build of torch found there would win over the index's own
compile vllm-0.32.0-cu130-py311 vllm-0.32.0-cu130 3.11 "$@"
compile vllm-0.32.0-cu130-py312 vllm-0.32.0-cu130 3.12 "$@"
