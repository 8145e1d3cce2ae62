# SPDX-License-Identifier: Apache-2.0
"""One revision of a model on a host: fetched from its sources, spread among the hosts of a site, proved against its manifest.

The module model_revision installs this package on a host, where a unit runs it as `python3 -m weights`; so it needs the standard library alone.
"""
