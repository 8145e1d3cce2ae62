# SPDX-License-Identifier: Apache-2.0
"""nccl_tests_result: the table of all_reduce_perf."""

from __future__ import annotations

import importlib
from typing import Any

result: Any = (
    importlib.import_module("ansible_collections.h20.fleet.plugins.filter.nccl_tests_result")
    .FilterModule()
    .filters()["nccl_tests_result"]
)
# In the form of nccl-tests 2.x.
TABLE = """\
# nThread 1 nGpus 8 minBytes 4294967296 maxBytes 8589934592 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
  8589934592    2147483648     float     sum      -1    31418  273.41  478.47      0    31502  272.68  477.19      0
  4294967296    1073741824     float     sum      -1    15800  271.83  475.71      0    15811  271.65  475.38      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 476.688
"""


def test_the_slower_measurement_of_the_largest_size_counts() -> None:
    assert result(TABLE) == {"bytes": 8589934592, "busbw_gb_s": 477.19, "wrong": 0}


def test_wrong_numbers_are_counted_and_unchecked_ones_are_not() -> None:
    assert result(TABLE.replace("478.47      0", "478.47      7"))["wrong"] == 7
    assert result(TABLE.replace("478.47      0", "478.47    N/A"))["wrong"] == 0


def test_without_a_table_there_is_no_result() -> None:
    assert result("NCCL failure: unhandled system error") == {}
