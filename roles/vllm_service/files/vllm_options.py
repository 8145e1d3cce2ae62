#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask vLLM's own parser whether it takes a configuration: without a GPU, and before anything is restarted.

    vllm_options.py CONFIG...

Run by the Python of a release, for what `vllm serve --config CONFIG` of that release would be given; it goes through the very command, to where that would
begin to serve. Exit code 0 where every file is taken; 1 with the parser's own words. Importing vLLM takes 10 s and more.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import sys
import tempfile
import typing as t
from pathlib import Path

#: What vLLM and what it imports would write below the home of whoever runs this, or send out, happens in a folder that is deleted.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}


def vllm_command() -> t.Callable[[], object]:
    """The command `vllm`, with a `serve` that returns where it would begin."""
    # Not before HOME is another one, and once for all files.
    serve = importlib.import_module("vllm.entrypoints.cli.serve")
    serve.ServeSubcommand.cmd = staticmethod(lambda _args: None)
    command: t.Callable[[], object] = importlib.import_module("vllm.entrypoints.cli.main").main
    return command


def refusal(command: t.Callable[[], object], config: Path) -> str:
    """Why `vllm serve` does not take the file, in its own words; "" where it does."""
    said = io.StringIO()
    sys.argv = ["vllm", "serve", "--config", str(config)]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            command()
    except SystemExit as ended:
        words = re.findall(r"error: (.*)", said.getvalue())
        return "" if not ended.code else words[-1] if words else said.getvalue().strip()
    except Exception as error:  # noqa: BLE001 (whatever the parser raises is its verdict)
        return f"{type(error).__name__}: {error}"
    return ""


def main(arguments: list[str]) -> int:
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(ENVIRONMENT, HOME=folder)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                command = vllm_command()
        except Exception as error:  # noqa: BLE001 (an import raises what it likes)
            print(
                f"error: {sys.executable} has no vLLM that starts: {error} -> run the stage again: --tags vllm",
                file=sys.stderr,
            )
            return 1
        for path in arguments:
            # vLLM takes no file of another ending, and what writes a file has it under another name first.
            config = Path(folder) / "config.yaml"
            shutil.copyfile(path, config)
            if why := refusal(command, config):
                refused = 1
                print(
                    f"error: vLLM does not take {path}: {why} -> correct the arguments of the instance; `vllm serve --help=all` lists them",
                    file=sys.stderr,
                )
    return refused


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
