#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Refuse to start vLLM on weights that are torn, before any GPU is touched.

    vllm_check.py CONFIG

Run by systemd before the service (ExecStartPre). CONFIG is the file that vLLM is started with, and its model is what is looked at: the headers of its
safetensors, by the program of the stage model, which takes milliseconds. It need not be a model that this stage has brought. Exit code 0 where nothing speaks
against a start; 1 with the names of what is torn or missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

#: Where the stage model installs its program.
WEIGHTS = Path("/usr/local/lib/h20-fleet/weights")


def main(arguments: list[str]) -> int:
    model = str(yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))["model"])
    if not model.startswith("/"):
        print(f"{model} is no folder of this host: its weights are not checked", flush=True)
        return 0
    if not Path(model).is_dir():
        print(f"error: {model} is not there -> run the stage again: --tags model", file=sys.stderr)
        return 1
    if not WEIGHTS.is_dir():
        print(f"{WEIGHTS} is not there: {model} is not checked -> run the stage: --tags model", flush=True)
        return 0
    # Only there is the program on the path: vLLM shall not find a package `weights`.
    environment = {**os.environ, "PYTHONPATH": str(WEIGHTS.parent)}
    return subprocess.run([sys.executable, "-m", "weights", "check", model], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
