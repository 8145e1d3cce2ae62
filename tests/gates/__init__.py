# SPDX-License-Identifier: Apache-2.0
"""The gates of the project: every check that `make test` runs, one after the other."""
