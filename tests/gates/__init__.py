# SPDX-License-Identifier: Apache-2.0
"""The gates of the project: every check that `make test` runs, one after the other."""

import sys
from pathlib import Path

# Where `make setup` links the clone: what a gate shares with the collection's plugins it takes from them.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".cache" / "collections"))
