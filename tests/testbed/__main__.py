# SPDX-License-Identifier: Apache-2.0
"""Command line of the test bed: python -m testbed up | describe | down | clean | status [--fleet NAME]."""

from __future__ import annotations

import argparse
import sys

from docker.errors import DockerException

from testbed import SetupError, Stopwatch, alone, engine, fleet, lifecycle, say


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="testbed", description="Containers that boot systemd and play bare H20 hosts."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up | describe | down | clean | status")
    helps = {
        "up": "bring a fleet up, or bring back what of it is missing",
        "describe": "give a host that runs other hardware, in place; it stays so until the next `up` or `describe`",
        "down": "remove a fleet: its containers, its network, its state",
        "clean": "remove every fleet, the image, the caches, all state, and stop the engine if it was started here",
        "status": "show what is there",
    }
    for verb, text in helps.items():
        command = verbs.add_parser(verb, help=text, description=text)
        if verb != "clean":
            command.add_argument(
                "--fleet", default=None if verb == "status" else "demo", help=f"one of: {', '.join(fleet.names())}"
            )
        if verb == "describe":
            command.add_argument("host", help="one of the fleet's")
            command.add_argument("description", help="a file of hardware/ by its name, or what such a file holds")
        if verb == "up":
            command.add_argument(
                "--bare", action="store_true", help="take the fleet down first, so that every host is bare"
            )
    return parser.parse_args()


def act(options: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    if options.verb == "up":
        watch = Stopwatch()
        with alone():
            lifecycle.up(fleet.load(options.fleet), watch, options.bare)
        say("time", watch.summary())
    elif options.verb == "clean":
        with alone():
            lifecycle.clean(engine.connect())
    elif (client := engine.connect()) is None:
        raise SetupError(
            "No container engine answers, so there is nothing to see or to remove. `up` starts one, or says how."
        )
    elif options.verb == "describe":
        lifecycle.describe(client, fleet.load(options.fleet), options.host, options.description)
    elif options.verb == "down":
        with alone():
            lifecycle.down(client, options.fleet)
    else:
        print(lifecycle.status(client, [options.fleet] if options.fleet else fleet.names()))


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        act(arguments())
    except SetupError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    except DockerException as error:
        print(
            f"testbed: the container engine refuses: {error}\nSee `docker ps -a` and `docker info`; `down`, then `up` starts afresh.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\ntestbed: interrupted. What exists stays: `up` goes on from here, `down` removes it.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
