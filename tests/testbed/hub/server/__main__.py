# SPDX-License-Identifier: Apache-2.0
"""The command line: serve until told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import HubServer
from . import __doc__ as description


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds models/")
    parser.add_argument("--address", default="", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument(
        "--cdn", default="", help="origin of the addresses of large files (default: as the client came)"
    )
    parser.add_argument("--threads", type=int, default=128, help="connections served at once; more wait")
    parser.add_argument("--link-seconds", type=int, default=3600, help="how long the address of a large file is good")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process of a container ends at neither by itself
        signal.signal(number, lambda *_: sys.exit(0))
    address = (options.address, options.port)
    with HubServer(address, options.root, options.threads, options.link_seconds, options.cdn) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
