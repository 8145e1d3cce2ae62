# SPDX-License-Identifier: Apache-2.0
"""nvcc: it knows its version, and compiles nothing."""

from __future__ import annotations

import sys

BANNER = """\
nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2025 NVIDIA Corporation
Built on Wed_Aug_20_01:58:59_PM_PDT_2025
Cuda compilation tools, release {release}, V{version}
Build cuda_{release}.r{release}/compiler.36424714_0"""


def main(version: str) -> int:
    """Answer `--version`; anything else is an error."""
    if not {"-V", "--version"} & set(sys.argv[1:]):
        print("nvcc fatal   : this nvcc of the test bed knows --version only", file=sys.stderr)
        return 1
    print(BANNER.format(release=version.rpartition(".")[0], version=version))
    return 0
