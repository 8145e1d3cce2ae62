# SPDX-License-Identifier: Apache-2.0
"""Acceptance: what is judged of a host, of hosts beside each other, of waivers and of a calibration."""

from __future__ import annotations

import copy
import datetime
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from ansible_collections.h20.fleet.plugins.action import acceptance_report
from ansible_collections.h20.fleet.plugins.filter import allreduce_floor
from ansible_collections.h20.fleet.plugins.module_utils import _acceptance
from ansible_collections.h20.fleet.plugins.module_utils._profiles import PROFILES
from ansible_collections.h20.fleet.plugins.plugin_utils import _junit

GIB = 1024**3
TODAY = datetime.date(2026, 11, 25)
UUIDS = [f"GPU-{number}" for number in range(8)]
WAIVER = {"name": "disk", "check": "DISK-READ", "hosts": ["h20-*"], "reason": "on order", "until": "2026-12-24"}


def measurement() -> dict[str, Any]:
    """Of a good host."""
    gpus = [
        {"index": number, "uuid": uuid, "clock": 1890.0, "clock_mhz": 1890.0, "temperature": 61.0, "power_w": 390.0}
        | {"reasons": {"sw_power_cap": 0.4}}
        for number, uuid in enumerate(UUIDS)
    ]
    ecc = {
        uuid: {"address": f"0000:{number:02x}:00.0", "errors": 0, "remap": False} for number, uuid in enumerate(UUIDS)
    }
    return {
        "backend": "cuda",
        "torch": "2.13.0",
        "dcgm": {"level": 2, "timeout": 900, "hung": False, "status": 0, "seconds": 190.0, "failures": []},
        "copies": {way: {"each": [54.9] * 8, "together": 300.0} for way in ("host_to_gpu", "gpu_to_host")},
        "load": {"seconds": 30, "samples": 30, "tflops": [120.0] * 8, "gpus": gpus},
        "disk": {"bytes": 10**11, "seconds": 20.0, "gb_s": 5.12, "direct": True, "threads": 16, "files": 163},
        "before": {"ecc": ecc},
        "after": {"ecc": copy.deepcopy(ecc), "xids": []},
    }


def found(**changes: Any) -> dict[str, Any]:
    """What the action returns of a good host, with parts of its measurement replaced."""
    made = measurement() | changes
    return {
        "status": "valid",
        "reason": "",
        "record": {
            "measured": "2026-11-25T04:00:00+00:00",
            "key": {"gpus": UUIDS, "release": "2026.11", "driver": "580"},
            "measurement": made,
        },
        "collectives": {"all_reduce": 471.3, "all_gather": 380.0, "all_to_all": 350.0, "ranks": 8},
        "need": {
            "profile": "auto",
            "floors": {},
            "calibration": {},
            "waivers": [],
            "outliers": "flag",
            "backend": "cuda",
        }
        | {"model_bytes": 641 * GIB, "start_seconds": 3600},
        "profile": "h20_141g",
        "hardware": PROFILES["h20_141g"],
        "topology": [[f"GPU{one}", f"GPU{two}", "NV18"] for one in range(8) for two in range(one + 1, 8)],
        "gpus": 8,
    }


def bad(host: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Verdict and evidence of all checks that do not pass."""
    return {
        check.name: (check.verdict, check.evidence)
        for check in acceptance_report.checks_of(host)
        if check.verdict != "pass"
    }


def test_a_good_host_passes_every_check_in_order() -> None:
    checks = acceptance_report.checks_of(found())
    assert [check.name for check in checks] == [name for name in _acceptance.CHECKS if name != "MEASUREMENT"]
    assert {check.verdict for check in checks} == {"pass"}


def change(part: str, **values: Any) -> dict[str, Any]:
    made = measurement()
    return {part: made[part] | values}


def slow_gpu(**values: Any) -> dict[str, Any]:
    gpus = measurement()["load"]["gpus"]
    gpus[3] |= values
    return change("load", gpus=gpus)


def after(**values: Any) -> dict[str, Any]:
    made = measurement()["after"]
    made["ecc"]["GPU-2"] |= values
    return {"after": made}


XID = {
    "code": 31,
    "name": "GPU memory page fault",
    "address": "0000:18:00.0",
    "action": "restart what ran",
    "fatal": False,
}
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "copy": (
        change("copies", host_to_gpu={"each": [54.9] * 7 + [25.2], "together": 280.0}),
        "HOST-TO-GPU",
        "fail",
        "host to GPU 25.2 GB/s, the floor is 40 (profile h20_141g): GPU 7; the median of its GPUs is 54.9",
    ),
    "disk": (
        change("disk", gb_s=0.15),
        "DISK-READ",
        "fail",
        "641 GiB at 0.15 GB/s take 76 min, the start may take 60 min",
    ),
    "dead disk": (
        change("disk", gb_s=0.0),
        "DISK-READ",
        "fail",
        "641 GiB at 0 GB/s never arrive, the start may take 60 min",
    ),
    "cached disk": (
        change("disk", gb_s=0.1, direct=False),
        "DISK-READ",
        "fail",
        "641 GiB at 0.1 GB/s take 115 min, the start may take 60 min (through the page cache, which was dropped before: this filesystem has no O_DIRECT)",
    ),
    "disk that fails": ({"disk": {"error": "it cannot be read"}}, "DISK-READ", "fail", "disk: it cannot be read"),
    "brake": (
        slow_gpu(reasons={"hw_power_brake_slowdown": 1.0}, clock=345.0),
        "THROTTLE",
        "fail",
        "throttled under load: GPU 3 hw_power_brake_slowdown in 100% of the samples (345.0 MHz, 61.0 C, 390.0 W)",
    ),
    "clock": (
        slow_gpu(clock_mhz=345.0),
        "CLOCKS",
        "fail",
        "clock under load 345 MHz, the floor is 1000 (profile h20_141g): GPU 3; the median of its GPUs is 1890",
    ),
    "DCGM fails": (
        change("dcgm", status=226, failures=["memory, GPU 3: 2 bits"]),
        "DCGM",
        "fail",
        "dcgmi diag -r 2 ended with 226: memory, GPU 3: 2 bits",
    ),
    "DCGM hangs": (
        change("dcgm", hung=True),
        "DCGM",
        "fail",
        "dcgmi diag -r 2 did not end within 900 s and was killed",
    ),
    "ECC": (after(errors=2), "ECC", "fail", "uncorrectable errors rose under load: 0000:02:00.0 from 0 to 2"),
    "remap": (after(remap=True), "ECC", "fail", "a row waits to be remapped: 0000:02:00.0"),
    "Xid": (
        {"after": measurement()["after"] | {"xids": [XID]}},
        "XID",
        "flagged",
        "under load: Xid 31 (GPU memory page fault) on 0000:18:00.0",
    ),
    "fatal Xid": (
        {"after": measurement()["after"] | {"xids": [XID | {"code": 79, "fatal": True}]}},
        "XID",
        "fail",
        "under load: Xid 79 (GPU memory page fault) on 0000:18:00.0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_fault_is_found_and_nothing_else(name: str) -> None:
    changes, check, verdict, evidence = CASES[name]
    assert bad(found(**changes)) == {check: (verdict, evidence)}


def test_a_few_samples_and_a_power_cap_are_no_fault() -> None:
    assert bad(found(**slow_gpu(reasons={"sw_power_cap": 1.0, "sw_thermal_slowdown": 0.05}))) == {}


def test_gpus_that_are_gone_after_the_load_are_a_fault() -> None:
    gone = measurement()["after"]
    del gone["ecc"]["GPU-5"]
    assert bad(found(after=gone)) == {"ECC": ("fail", "GPUs are gone after the load: 0000:05:00.0")}


def test_a_part_that_hung_is_told_by_every_check_that_rests_on_it() -> None:
    hung = {"error": "it did not end in time and was killed"}
    assert set(bad(found(copies=hung, load=hung))) == {
        *("HOST-TO-GPU", "GPU-TO-HOST", "HOST-TO-GPUS", "GPUS-TO-HOST", "CLOCKS", "MATMUL", "THROTTLE"),
    }


def test_what_was_not_measured_is_not_accepted() -> None:
    nothing = found() | {"record": {}, "reason": "none was made on this host"}
    assert bad(nothing) == {"MEASUREMENT": ("not_run", "nothing is measured: none was made on this host")}
    failed = found() | {"record": {"measurement": {"failed": "no space left"}}}
    assert bad(failed) == {"MEASUREMENT": ("fail", "the measurement failed: no space left")}
    unproved = found() | {"collectives": {"reason": "none was measured on this host"}}
    assert {name: verdict for name, (verdict, _evidence) in bad(unproved).items()} == dict.fromkeys(
        ("ALLREDUCE", "ALLGATHER", "ALLTOALL"), "not_run"
    )


def test_phb_between_two_gpus_and_one_gpu_alone() -> None:
    crossed = found()
    crossed["topology"][0][2] = "PHB"
    assert bad(crossed) == {"TOPOLOGY": ("fail", "GPUs are not joined by NV18: GPU0 GPU1 PHB")}
    alone = found() | {"topology": [], "gpus": 1, "collectives": {"all_reduce": None, "ranks": 1}}
    assert bad(alone) == {}


def test_without_a_gpu_under_load_the_clock_is_not_judged() -> None:
    idle = found(**change("load", gpus=[gpu | {"clock_mhz": None} for gpu in measurement()["load"]["gpus"]]))
    assert set(bad(idle)) == {"CLOCKS"}
    idle["need"]["backend"] = "cpu"
    assert bad(idle) == {}


# Floors


def test_a_calibration_of_this_hardware_stands_before_the_site_and_the_profile() -> None:
    profile, named = PROFILES["h20_141g"], {"host_to_gpu_gb_s": 50.0}
    calibration = {
        "profile": "h20_141g",
        "date": "2026-11-20",
        "figures": {"host_to_gpu_gb_s": {"floor": 53.0, "n": 8}},
    }
    assert _acceptance.floors(profile, {}, {}, "h20_141g")["host_to_gpu_gb_s"] == (40.0, "profile h20_141g")
    assert _acceptance.floors(profile, named, {}, "h20_141g")["host_to_gpu_gb_s"] == (50.0, "acceptance_floors")
    assert _acceptance.floors(profile, named, calibration, "h20_141g")["host_to_gpu_gb_s"] == (
        53.0,
        "calibrated on 8 hosts, 2026-11-20",
    )
    assert _acceptance.floors(profile, named, calibration, "h200")["host_to_gpu_gb_s"][0] == 50.0


def test_the_stage_nccl_has_the_same_floor_and_leaves_a_waived_host_to_acceptance() -> None:
    calibration = {"profile": "h20_141g", "figures": {"allreduce_gb_s": {"floor": 455.0, "n": 8}}}
    of = allreduce_floor.allreduce_floor
    hardware = PROFILES["h20_141g"]
    assert of("h20_141g", hardware, 0.0, {}, [], "h20-01") == 430.0
    assert of("h20_141g", hardware, 400.0, {}, [], "h20-01") == 400.0
    assert of("h20_141g", hardware, 400.0, calibration, [], "h20-01") == 455.0
    far = str(datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=2))
    waiver = WAIVER | {"check": "ALLREDUCE", "until": far}
    assert of("h20_141g", hardware, 0.0, {}, [waiver], "h20-01") == 0.0
    assert of("h20_141g", hardware, 0.0, {}, [waiver | {"until": "2020-01-01"}], "h20-01") == 430.0
    assert of("h20_141g", hardware, 0.0, {}, [waiver], "other") == 430.0


# The fleet


def fleet(values: list[float]) -> dict[str, dict[str, Any]]:
    hosts = {}
    for number, value in enumerate(values):
        hosts[f"h20-{number:02}"] = found()
        hosts[f"h20-{number:02}"]["collectives"]["all_reduce"] = value
    return hosts


def flagged(values: list[float], **need: Any) -> dict[str, str]:
    hosts = fleet(values)
    for host in hosts.values():
        host["need"] |= need
    judged = acceptance_report.judge(hosts, TODAY)
    return {
        host: f"{record['verdict']} {check['verdict']} {check['evidence']}"
        for host, (record, _expired) in judged.items()
        for check in record["checks"]
        if check["verdict"] != "pass"
    }


GOOD = [470.0, 471.0, 472.0, 469.5, 470.5, 471.5, 470.0, 472.0]


def test_one_far_below_the_others_is_flagged_although_it_is_above_the_floor() -> None:
    words = "all-reduce 440 GB/s, 6% below the median of 9 hosts (470 GB/s)"
    assert flagged([*GOOD, 440.0]) == {"h20-08": f"accepted flagged {words}"}
    assert flagged([*GOOD, 440.0], outliers="refuse") == {"h20-08": f"refused fail {words}"}


@pytest.mark.parametrize(
    "values", [[*GOOD, 460.0], [*GOOD, 520.0], [470.0, 471.0, 472.0, 440.0], [470.0, 440.0, 500.0, 520.0, 455.0, 490.0]]
)
def test_a_little_less_one_that_is_better_too_few_hosts_and_a_wide_spread_flag_nobody(values: list[float]) -> None:
    assert flagged(values) == {}


def test_hosts_of_other_hardware_are_not_compared() -> None:
    hosts = fleet([*GOOD, 440.0])
    hosts["h20-08"]["profile"] = "h200"
    judged = acceptance_report.judge(hosts, TODAY)
    assert {record["verdict"] for record, _expired in judged.values()} == {"accepted"}
    assert all(check["verdict"] == "pass" for record, _expired in judged.values() for check in record["checks"])


def test_a_run_of_few_hosts_does_not_clear_a_flag() -> None:
    hosts = fleet([*GOOD, 440.0])
    record, _expired = acceptance_report.judge(hosts, TODAY)["h20-08"]
    alone = hosts["h20-08"] | {"record": record}
    again, _expired = acceptance_report.judge({"h20-08": alone}, TODAY)["h20-08"]
    assert again == record
    alone["collectives"] = alone["collectives"] | {"all_reduce": 470.0}
    cleared, _expired = acceptance_report.judge({"h20-08": alone}, TODAY)["h20-08"]
    assert all(check["verdict"] == "pass" for check in cleared["checks"])


# Waivers


def judged(waivers: list[dict[str, Any]], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    host = found(**changes)
    host["need"]["waivers"] = waivers
    record, expired = acceptance_report.judge({"h20-03": host}, TODAY)["h20-03"]
    return record, acceptance_report.table(["h20-03"], {"h20-03": (record, expired)}, {}, TODAY)


SLOW_DISK = change("disk", gb_s=0.15)


def test_a_waived_fault_is_shown_with_its_waiver_and_the_days_left() -> None:
    record, lines = judged([WAIVER], **SLOW_DISK)
    assert record["verdict"] == "waived"
    assert record["waivers"] == [{key: WAIVER[key] for key in ("name", "check", "reason", "until")}]
    assert lines[0].startswith("h20-03  accepted by waiver until 2026-12-24 (29 days left)")
    assert "waived by disk until 2026-12-24 (29 days left): on order" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize(
    "waiver",
    [WAIVER | {"check": "DCGM"}, WAIVER | {"hosts": ["other"]}, WAIVER | {"until": "2026-11-24"}],
)
def test_a_waiver_for_another_check_or_host_or_of_yesterday_does_not_help(waiver: dict[str, Any]) -> None:
    record, lines = judged([waiver], **SLOW_DISK)
    assert (record["verdict"], record["waivers"]) == ("refused", [])
    assert lines[0] == "h20-03  REFUSED"
    if waiver["until"] == "2026-11-24":
        assert "the waiver disk does not help, it expired 2026-11-24, 1 day ago" in " ".join(" ".join(lines).split())


def test_a_waiver_holds_on_its_last_day() -> None:
    assert judged([WAIVER | {"until": datetime.date(2026, 11, 25)}], **SLOW_DISK)[0]["verdict"] == "waived"


def test_one_waiver_does_not_cover_two_faults() -> None:
    assert judged([WAIVER], **SLOW_DISK, **change("dcgm", hung=True))[0]["verdict"] == "refused"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"check": "DISK"}, "DISK is no check that can be waived -> one of ALLREDUCE"),
        ({"check": "TOPOLOGY"}, "TOPOLOGY is no check that can be waived"),
        ({"hosts": []}, "it names no host"),
        ({"reason": " "}, "it has no reason"),
        ({"until": "soon"}, "until is 'soon' -> a date, such as 2026-12-24"),
        ({"until": "2027-11-25"}, "until 2027-11-25 is 365 days ahead -> at most 92"),
        ({"name": ""}, "two have this name, or it has none"),
    ],
)
def test_waivers_that_cannot_hold_are_named(changes: dict[str, Any], words: str) -> None:
    errors = _acceptance.waiver_errors([WAIVER | changes], TODAY)
    assert any(words in error for error in errors), errors


def test_names_are_used_once_and_an_expired_waiver_is_no_error() -> None:
    assert _acceptance.waiver_errors([WAIVER, WAIVER | {"check": "DCGM"}], TODAY) == [
        "waiver disk: two have this name, or it has none -> give each its own"
    ]
    assert _acceptance.waiver_errors([WAIVER | {"until": "2020-01-01"}], TODAY) == []


# Calibration


def records(values: list[float]) -> dict[str, dict[str, Any]]:
    return {host: record for host, (record, _expired) in acceptance_report.judge(fleet(values), TODAY).items()}


def test_a_floor_is_five_mads_below_the_median_and_at_least_three_percent() -> None:
    known = _acceptance.calibrate(records([460.0, 470.0, 480.0]))
    assert known["figures"]["allreduce_gb_s"] == {
        "median": 470.0,
        "mad": 10.0,
        "min": 460.0,
        "max": 480.0,
        "floor": 420.0,
        "n": 3,
    }
    assert known["figures"]["host_to_gpu_gb_s"]["floor"] == 53.25
    assert (known["profile"], known["releases"], known["date"]) == ("h20_141g", ["2026.11"], "2026-11-25")


def test_too_few_hosts_hosts_that_are_not_accepted_and_mixed_hardware_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of 2 hosts are accepted, at least 3"):
        _acceptance.calibrate(records([470.0, 471.0]))
    four = records([470.0, 471.0, 472.0, 300.0])
    assert four["h20-03"]["verdict"] == "refused"
    assert _acceptance.calibrate(four)["hosts"] == ["h20-00", "h20-01", "h20-02"]
    with pytest.raises(ValueError, match=r"2 of 3 .* \(not accepted: h20-02\)"):
        _acceptance.calibrate(records([470.0, 471.0, 300.0]))
    mixed = records([470.0, 471.0, 472.0])
    mixed["h20-00"]["profile"] = "h200"
    with pytest.raises(ValueError, match="different hardware profiles: h200, h20_141g"):
        _acceptance.calibrate(mixed)


# Reports


def test_junit_has_a_case_a_check_and_an_error_for_a_host_that_fell_out() -> None:
    waived, _lines = judged([WAIVER], **SLOW_DISK)
    refused, _lines = judged([], **SLOW_DISK)
    text = _junit.document("acceptance", {"waived": waived, "refused": refused}, {"gone": "not measured"})
    root = ET.fromstring(text)  # noqa: S314
    counts = {suite.get("name"): [suite.get(name) for name in ("failures", "errors", "skipped")] for suite in root}
    assert counts == {"waived": ["0", "0", "1"], "refused": ["1", "0", "0"], "gone": ["0", "1", "0"]}
    [skipped] = [case.find("skipped") for case in root[0] if case.find("skipped") is not None]
    assert skipped is not None
    assert "waived by disk until 2026-12-24: on order; 641 GiB at 0.15 GB/s" in skipped.get("message", "")


def test_waivers_that_are_over_or_not_needed_are_named() -> None:
    host = found()
    host["need"]["waivers"] = [WAIVER, WAIVER | {"name": "old", "until": "2026-11-20"}]
    hosts = {"h20-01": host, "h20-02": host}
    made = {name: record for name, (record, _expired) in acceptance_report.judge(hosts, TODAY).items()}
    assert acceptance_report.notes(hosts, made, TODAY) == [
        "  waiver disk (DISK-READ) until 2026-12-24 (29 days left) covers nothing that fails in this run",
        "  waiver old (DISK-READ) expired 2026-11-20, 5 days ago -> renew it in fleet_waivers, or take it out",
    ]
