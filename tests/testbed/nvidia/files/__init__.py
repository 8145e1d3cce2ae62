# SPDX-License-Identifier: Apache-2.0
"""The programs of the stand-in packages: they run on the hosts, under the distribution's Python (3.10 or later), with its standard library alone."""
