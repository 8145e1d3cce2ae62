# SPDX-License-Identifier: Apache-2.0
"""Write the options of `vllm serve` as its own parser has them to a JSON file. Run by a Python that has what vLLM imports; `gates.parsers` does.

A `boolean` has a `no-` form, a `switch` has none; `value` takes one value, `list` some. `choices` are those of the parser, as text.
"""

from __future__ import annotations

import argparse
import json
import sys
import typing as t
from pathlib import Path

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser


def kind(parser: argparse.ArgumentParser, action: argparse.Action, name: str) -> str:
    """What an option takes."""
    if action.nargs == 0:
        return "boolean" if f"--no-{name}" in parser._option_string_actions else "switch"  # noqa: SLF001 (hidden ones stand there alone)
    return "list" if action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction) else "value"  # noqa: SLF001


def options(parser: argparse.ArgumentParser) -> dict[str, dict[str, t.Any]]:
    """Every long option by its name without dashes in front; a `no-` form belongs to its positive one."""
    found: dict[str, dict[str, t.Any]] = {}
    for action in parser._actions:  # noqa: SLF001 (argparse has no other list of them)
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        for name in names:
            if action.dest == "help" or (name.startswith("no-") and len(names) > 1):
                continue
            found[name] = {"kind": kind(parser, action, name)}
            if action.choices:
                found[name]["choices"] = sorted(str(choice) for choice in action.choices)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    serve = ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())
    lines = [f'"{name}": {json.dumps(entry)}' for name, entry in options(serve).items()]
    Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
