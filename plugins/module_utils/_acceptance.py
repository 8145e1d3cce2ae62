# SPDX-License-Identifier: Apache-2.0
"""Judge what was measured of a host: against floors, against the hosts beside it, and with the waivers of the site.

Pure functions. What was not measured is not guessed: it is not run, and a host of which a part is not run is not accepted.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import statistics
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _preflight

Facts = t.Mapping[str, t.Any]

SCHEMA = 1
GIB = 1024**3

PASS, FAIL, FLAGGED, NOT_RUN = "pass", "fail", "flagged", "not_run"
ACCEPTED, WAIVED, REFUSED = "accepted", "waived", "refused"

#: An outlier is so many deviations below the median (0.6745 of the distance by the MAD: Iglewicz and Hoaglin) ...
ROBUST_Z = -3.5
#: ... and by so much of it: among hosts that hardly differ, a few deviations are nothing.
OUTLIER_SHARE = 0.05
#: Fewer hosts have no median that one of them could be held against.
FEWEST_FOR_OUTLIERS = 5
FEWEST_FOR_CALIBRATION = 3
#: A calibrated floor is so many MADs below the median, but at least by this share of it.
FLOOR_MADS, FLOOR_SHARE = 5.0, 0.03
#: Days that a waiver may be ahead: what is borne for longer than a quarter is the hardware that one has.
LONGEST_WAIVER = 92
#: Share of the samples under load in which a reason to throttle has to stand to count.
THROTTLED_SHARE = 0.1
#: Reasons for a clock below the highest that mean a fault; a power cap by software, an idle GPU and set clocks do not.
THROTTLING = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


class Figure(t.NamedTuple):
    """A figure that is held against a floor and against other hosts: more is better for all of them."""

    check: str
    label: str
    unit: str
    #: Key of the hardware profile that has its floor, "" where the profile has none.
    profile: str
    remedy: str


_LINKS = (
    "see that nothing else uses the GPUs, then nvidia-smi nvlink --status and --errorcounters, nvidia-smi -q -d PERFORMANCE"
    " and systemctl status nvidia-fabricmanager"
)
_PCIE = "nvidia-smi -q -d PERFORMANCE; lspci -vv (LnkSta, DevSta); compare the GPUs in the report: one that is slow alone sits on a bad riser or slot"
_CLOCK = "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER; look at fans, power supplies and set clocks (nvidia-smi -rgc)"

FIGURES: dict[str, Figure] = {
    "allreduce_gb_s": Figure("ALLREDUCE", "all-reduce", "GB/s", "allreduce_floor_gb_s", _LINKS),
    "allgather_gb_s": Figure("ALLGATHER", "all-gather", "GB/s", "", _LINKS),
    "alltoall_gb_s": Figure("ALLTOALL", "all-to-all", "GB/s", "", _LINKS),
    "host_to_gpu_gb_s": Figure("HOST-TO-GPU", "host to GPU", "GB/s", "copy_floor_gb_s", _PCIE),
    "gpu_to_host_gb_s": Figure("GPU-TO-HOST", "GPU to host", "GB/s", "copy_floor_gb_s", _PCIE),
    "host_to_gpus_gb_s": Figure("HOST-TO-GPUS", "host to all GPUs at once", "GB/s", "", _PCIE),
    "gpus_to_host_gb_s": Figure("GPUS-TO-HOST", "all GPUs to host at once", "GB/s", "", _PCIE),
    "disk_read_gb_s": Figure(
        "DISK-READ",
        "disk",
        "GB/s",
        "",
        "nvme smart-log, iostat -x 1 and cat /proc/mdstat on the host; move fleet_model_root to faster disks, or allow the start more time"
        " (vllm_service_start_timeout)",
    ),
    "load_clock_mhz": Figure("CLOCKS", "clock under load", "MHz", "load_clock_floor_mhz", _CLOCK),
    "load_tflops": Figure("MATMUL", "matrix multiplication", "TFLOP/s", "", _CLOCK),
}
#: All checks, in the order in which they are shown.
CHECKS = ("MEASUREMENT", "TOPOLOGY", *(figure.check for figure in FIGURES.values()), "THROTTLE", "DCGM", "ECC", "XID")
#: What a waiver cannot cover: without a measurement there is nothing to waive, and the stage nccl stops the host before it is measured.
UNWAIVABLE = ("MEASUREMENT", "TOPOLOGY")
#: What the headline of an accepted host names.
HEADLINE = ("allreduce_gb_s", "host_to_gpu_gb_s", "disk_read_gb_s", "load_clock_mhz")

_BELOW = "below the median of"
_AGAIN = "run the stage again: --tags acceptance"


@dataclasses.dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    verdict: str
    evidence: str
    remedy: str = ""
    value: float | None = None
    unit: str = ""
    bound: float | None = None


def figures(measurement: Facts, collectives: Facts) -> dict[str, float | None]:
    """The figures of a host; None for what was not measured. Of GPUs it is the slowest, since a replica waits for it."""
    copies, load, disk = (measurement.get(part) or {} for part in ("copies", "load", "disk"))
    found: dict[str, float | None] = {
        "allreduce_gb_s": collectives.get("all_reduce"),
        "allgather_gb_s": collectives.get("all_gather"),
        "alltoall_gb_s": collectives.get("all_to_all"),
        "disk_read_gb_s": disk.get("gb_s"),
        "load_clock_mhz": min((gpu["clock_mhz"] for gpu in _loaded(load)), default=None),
        "load_tflops": min(load.get("tflops") or [], default=None),
    }
    for way, one, all_of_them in (
        ("host_to_gpu", "host_to_gpu_gb_s", "host_to_gpus_gb_s"),
        ("gpu_to_host", "gpu_to_host_gb_s", "gpus_to_host_gb_s"),
    ):
        measured = copies.get(way) or {}
        found[one] = min(measured.get("each") or [], default=None)
        found[all_of_them] = measured.get("together")
    return {name: found[name] for name in FIGURES}


def _loaded(load: Facts) -> list[Facts]:
    """The GPUs that the load reached, as the sampling saw them."""
    return [gpu for gpu in load.get("gpus") or [] if gpu["clock_mhz"] is not None]


def floors(profile: Facts, named: Facts, calibration: Facts, profile_name: str) -> dict[str, tuple[float, str]]:
    """Floor of each figure and where it is from: a calibration of this very hardware, else what the site names, else the profile. 0 is none."""
    calibrated = calibration.get("figures") or {} if calibration.get("profile") == profile_name else {}
    found = {}
    for name, figure in FIGURES.items():
        floor, origin = float(profile.get(figure.profile) or 0) if figure.profile else 0.0, f"profile {profile_name}"
        if name in named:
            floor, origin = float(named[name]), "acceptance_floors"
        if name in calibrated:
            entry = calibrated[name]
            floor, origin = (
                float(entry["floor"]),
                f"calibrated on {entry['n']} hosts, {calibration.get('date', 'undated')}",
            )
        found[name] = (floor, origin)
    return found


def checks(host: Facts, need: Facts) -> list[Check]:
    """The checks of one host, in the order of CHECKS.

    ``host``: ``measurement``, ``reason`` (why there is none), ``collectives``, ``topology``, ``gpus`` (how many answer).
    ``need``: ``floors``, ``nvlinks``, ``model_bytes``, ``start_seconds``, ``backend``.
    """
    measurement = host["measurement"]
    if not measurement:
        return [Check("MEASUREMENT", NOT_RUN, f"nothing is measured: {host['reason']}", _AGAIN)]
    if measurement.get("failed"):
        return [
            Check(
                "MEASUREMENT",
                FAIL,
                f"the measurement failed: {measurement['failed']}",
                f"journalctl --unit h20-fleet-acceptance on the host, then {_AGAIN}",
            )
        ]
    values = figures(measurement, host["collectives"])
    found = {check.name: check for check in (_figure(name, values[name], host, need) for name in FIGURES)}
    found |= {
        check.name: check
        for check in (
            _topology(host, need),
            _throttle(measurement.get("load") or {}),
            _dcgm(measurement.get("dcgm") or {}),
            _ecc(measurement),
            _xid(measurement),
        )
    }
    return [found[name] for name in CHECKS if name in found]


def _figure(name: str, value: float | None, host: Facts, need: Facts) -> Check:
    figure, (floor, origin) = FIGURES[name], need["floors"][name]
    if value is None:
        return _unmeasured(name, host, need)
    told = f"{figure.label} {number(value)} {figure.unit}"
    if name == "disk_read_gb_s":
        return _disk(value, host["measurement"]["disk"], floor, origin, need)
    if value < floor:
        told += f", the floor is {number(floor)} ({origin}){_which(name, host['measurement'])}"
        return Check(figure.check, FAIL, told, figure.remedy, value, figure.unit, floor)
    return Check(figure.check, PASS, told, value=value, unit=figure.unit, bound=floor or None)


def _which(name: str, measurement: Facts) -> str:
    """Which GPU is the slow one, and what the others reach."""
    parts: dict[str, list[float]] = {
        "host_to_gpu_gb_s": (measurement["copies"] or {}).get("host_to_gpu", {}).get("each", []),
        "gpu_to_host_gb_s": (measurement["copies"] or {}).get("gpu_to_host", {}).get("each", []),
        "load_clock_mhz": [gpu["clock_mhz"] for gpu in _loaded(measurement["load"] or {})],
    }
    each = parts.get(name) or []
    if len(each) < 2:
        return ""
    slowest = each.index(min(each))
    return f": GPU {slowest}; the median of its GPUs is {number(statistics.median(each))}"


def _unmeasured(name: str, host: Facts, need: Facts) -> Check:
    figure = FIGURES[name]
    if figure.check in ("ALLREDUCE", "ALLGATHER", "ALLTOALL"):
        if host["collectives"].get("ranks") == 1:
            return Check(figure.check, PASS, f"{figure.label}: one rank has nobody to send to", unit=figure.unit)
        why = host["collectives"].get("reason") or "none was measured for these GPUs"
        return Check(
            figure.check, NOT_RUN, f"{figure.label}: {why}", "run the stage: --tags nccl,acceptance", unit=figure.unit
        )
    if name == "load_clock_mhz" and need["backend"] == "cpu":
        return Check(figure.check, PASS, "backend cpu: no GPU is under load", unit=figure.unit)
    part = {"disk_read_gb_s": "disk", "load_clock_mhz": "load", "load_tflops": "load"}.get(name, "copies")
    why = (host["measurement"].get(part) or {}).get("error") or "it was not measured"
    return Check(figure.check, FAIL, f"{figure.label}: {why}", figure.remedy, unit=figure.unit)


def _disk(value: float, disk: Facts, floor: float, origin: str, need: Facts) -> Check:
    """The rate against what the start of a replica leaves for reading the weights, or against a higher floor."""
    figure = FIGURES["disk_read_gb_s"]
    size, seconds = need["model_bytes"], need["start_seconds"]
    budget = size / seconds / 1e9
    bound = max(floor, budget)
    how = (
        "" if disk["direct"] else " (through the page cache, which was dropped before: this filesystem has no O_DIRECT)"
    )
    if value < budget:
        taken = f"take {_span(size / value / 1e9)}" if value else "never arrive"
        told = f"{_size(size)} at {number(value)} GB/s {taken}, the start may take {_span(seconds)}{how}"
        return Check(figure.check, FAIL, told, figure.remedy, value, figure.unit, bound)
    if value < floor:
        told = f"disk {number(value)} GB/s{how}, the floor is {number(floor)} ({origin})"
        return Check(figure.check, FAIL, told, figure.remedy, value, figure.unit, bound)
    told = f"disk {number(value)} GB/s{how}: {_size(size)} take {_span(size / value / 1e9)} of the {_span(seconds)} that a start may take"
    return Check(figure.check, PASS, told, "", value, figure.unit, bound)


def _topology(host: Facts, need: Facts) -> Check:
    """What the stage nccl refuses as well; here so that the verdict of the host has it."""
    remedy = "systemctl status nvidia-fabricmanager; nvidia-smi nvlink --status"
    wanted, pairs = f"NV{need['nvlinks']}", host["topology"]
    strangers = [" ".join(pair) for pair in pairs if pair[2] != wanted]
    if strangers:
        return Check("TOPOLOGY", FAIL, f"GPUs are not joined by {wanted}: {some(strangers)}", remedy)
    if not pairs and host["gpus"] != 1:
        return Check("TOPOLOGY", FAIL, "nvidia-smi tells no topology", remedy)
    return Check("TOPOLOGY", PASS, f"{len(pairs)} pairs of GPUs by {wanted}")


def _throttle(load: Facts) -> Check:
    if load.get("error"):
        return Check("THROTTLE", FAIL, f"the load failed: {load['error']}", _CLOCK)
    if not load.get("gpus"):
        return Check(
            "THROTTLE", NOT_RUN, "nvidia-smi told nothing under load", "on the host: nvidia-smi -q -d PERFORMANCE"
        )
    throttled = [
        f"GPU {gpu['index']} {reason} in {share:.0%} of the samples ({gpu['clock']} MHz, {gpu['temperature']} C, {gpu['power_w']} W)"
        for gpu in load["gpus"]
        for reason, share in gpu["reasons"].items()
        if reason in THROTTLING and share >= THROTTLED_SHARE
    ]
    if throttled:
        return Check("THROTTLE", FAIL, f"throttled under load: {some(throttled)}", _CLOCK)
    hottest = max((gpu["temperature"] for gpu in load["gpus"] if gpu["temperature"] is not None), default=None)
    told = f", at most {hottest} C" if hottest is not None else ""
    return Check(
        "THROTTLE", PASS, f"no fault throttled a GPU in {load['samples']} samples over {load['seconds']:.0f} s{told}"
    )


def _dcgm(dcgm: Facts) -> Check:
    command = f"dcgmi diag -r {dcgm.get('level')}"
    if not dcgm:
        return Check("DCGM", NOT_RUN, "no diagnosis was made", _AGAIN)
    if dcgm.get("hung"):
        return Check(
            "DCGM",
            FAIL,
            f"{command} did not end within {dcgm['timeout']} s and was killed",
            "systemctl restart nvidia-dcgm, look for an Xid in the kernel log; where it hangs again, power-cycle the host; a longer level needs"
            " acceptance_dcgm_timeout",
        )
    if dcgm["status"] != 0:
        named = some(dcgm["failures"]) or "no test is named"
        return Check(
            "DCGM",
            FAIL,
            f"{command} ended with {dcgm['status']}: {named}",
            "mend what it names; a GPU that stays on the list goes back to its maker",
        )
    return Check("DCGM", PASS, f"{command} passed in {_span(dcgm['seconds'])}")


def _ecc(measurement: Facts) -> Check:
    """Memory errors that came with the load; those of before are preflight's to refuse."""
    before, after = measurement["before"]["ecc"], measurement["after"]["ecc"]
    rose = [
        f"{state['address']} from {before[uuid]['errors'] or 0} to {state['errors']}"
        for uuid, state in after.items()
        if uuid in before and (state["errors"] or 0) > (before[uuid]["errors"] or 0)
    ]
    remaps = [
        state["address"] for uuid, state in after.items() if state["remap"] and not before.get(uuid, state)["remap"]
    ]
    remedy = "reboot the host and run dcgmi diag -r 3; if they return, have the GPU replaced"
    if rose or remaps:
        told = [f"uncorrectable errors rose under load: {some(rose)}"] if rose else []
        told += [f"a row waits to be remapped: {some(remaps)}"] if remaps else []
        return Check("ECC", FAIL, "; ".join(told), remedy)
    missing = [state["address"] for uuid, state in before.items() if uuid not in after]
    if missing or not after:
        return Check(
            "ECC",
            FAIL,
            f"GPUs are gone after the load: {some(missing) or 'all'}",
            "look for an Xid and power-cycle the host",
        )
    return Check("ECC", PASS, "no uncorrectable error under load")


def _xid(measurement: Facts) -> Check:
    new = measurement["after"]["xids"]
    told = [f"Xid {entry['code']} ({entry['name']}) on {entry['address']}" for entry in new]
    fatal = [entry for entry in new if entry["fatal"]]
    if fatal:
        return Check("XID", FAIL, f"under load: {some(told)}", str(fatal[0]["action"]))
    if new:
        return Check("XID", FLAGGED, f"under load: {some(told)}", str(new[0]["action"]))
    return Check("XID", PASS, "no Xid under load")


# The fleet


def outliers(fleet: t.Mapping[str, t.Mapping[str, float | None]]) -> dict[str, dict[str, str]]:
    """Host -> figure -> in words, how far it lies below the others: by the median absolute deviation, which one bad host cannot spoil."""
    found: dict[str, dict[str, str]] = {}
    for name, figure in FIGURES.items():
        known = {host: value for host, values in fleet.items() if (value := values.get(name)) is not None}
        if len(known) < FEWEST_FOR_OUTLIERS:
            continue
        median = statistics.median(known.values())
        mad = statistics.median(abs(value - median) for value in known.values())
        for host, value in known.items():
            below = 1 - value / median if median else 0.0
            if below > OUTLIER_SHARE and 0.6745 * (value - median) < ROBUST_Z * mad:
                words = f"{below:.0%} {_BELOW} {len(known)} hosts ({number(median)} {figure.unit})"
                found.setdefault(host, {})[name] = words
    return found


def kept_flags(record: Facts, found: t.Sequence[Check]) -> dict[str, str]:
    """Outliers that an earlier run saw of this very figure beside more hosts: a run of a few does not clear a host."""
    flags = {}
    for name, figure in FIGURES.items():
        before: Facts = next((entry for entry in record.get("checks", []) if entry["name"] == figure.check), {})
        now = next((check for check in found if check.name == figure.check), None)
        _told, separator, words = str(before.get("evidence", "")).partition(f" {figure.unit}, ")
        if now and separator and _BELOW in words and before["value"] == now.value:
            flags[name] = words
    return flags


def flag(found: t.Sequence[Check], host_outliers: t.Mapping[str, str], refuse: bool) -> list[Check]:
    """The checks with those marked in which the host lies below the others, although it is above the floor."""
    by_check = {FIGURES[name].check: (name, words) for name, words in host_outliers.items()}
    marked = []
    for check in found:
        if check.name in by_check and check.verdict == PASS:
            name, words = by_check[check.name]
            evidence = f"{FIGURES[name].label} {number(check.value or 0)} {check.unit}, {words}"
            verdict = FAIL if refuse else FLAGGED
            marked.append(dataclasses.replace(check, verdict=verdict, evidence=evidence, remedy=FIGURES[name].remedy))
        else:
            marked.append(check)
    return marked


def calibrate(records: t.Mapping[str, Facts]) -> dict[str, t.Any]:
    """Floors from hosts that are accepted; raises ValueError where they are too few or of different hardware."""
    good = {host: record for host, record in records.items() if record.get("verdict") == ACCEPTED}
    others = sorted(set(records) - set(good))
    left_out = f" (not accepted: {some(others)})" if others else ""
    if len(good) < FEWEST_FOR_CALIBRATION:
        raise ValueError(
            f"{len(good)} of {len(records)} hosts are accepted{left_out}, at least {FEWEST_FOR_CALIBRATION} are needed"
            " -> h20.fleet.verify --tags acceptance shows why; --limit chooses the hosts"
        )
    for key, what in (("profile", "hardware profiles"), ("backend", "backends")):
        if len(kinds := sorted({str(record[key]) for record in good.values()})) > 1:
            raise ValueError(
                f"the hosts are of different {what}: {', '.join(kinds)} -> calibrate each by itself: --limit"
            )
    spread = {}
    for name in FIGURES:
        values = [record["figures"][name] for record in good.values() if record["figures"].get(name) is not None]
        if len(values) < FEWEST_FOR_CALIBRATION:
            continue
        median = statistics.median(values)
        mad = statistics.median(abs(value - median) for value in values)
        floor = max(median - max(FLOOR_MADS * mad, FLOOR_SHARE * median), 0.0)
        known = {"median": median, "mad": mad, "min": min(values), "max": max(values), "floor": floor}
        spread[name] = {key: _rounded(value) for key, value in known.items()} | {"n": len(values)}
    first = next(iter(good.values()))
    return {
        "profile": first["profile"],
        "backend": first["backend"],
        "releases": sorted({str(record["key"]["release"]) for record in good.values()}),
        "drivers": sorted({str(record["key"]["driver"]) for record in good.values()}),
        # Of the last measurement, so that the same records make the same file.
        "date": max(str(record["measured"]) for record in good.values())[:10],
        "hosts": sorted(good),
        "figures": spread,
    }


# Waivers


def waiver_errors(waivers: t.Sequence[Facts], today: datetime.date) -> list[str]:
    """What is wrong with the waivers of a site, each with its remedy."""
    found, names = [], [str(waiver.get("name")) for waiver in waivers]
    for waiver in waivers:
        name = f"waiver {waiver.get('name') or '(without a name)'}"
        if names.count(str(waiver.get("name"))) > 1 or not waiver.get("name"):
            found.append(f"{name}: two have this name, or it has none -> give each its own")
        if waiver.get("check") not in CHECKS or waiver.get("check") in UNWAIVABLE:
            known = ", ".join(name for name in CHECKS if name not in UNWAIVABLE)
            found.append(f"{name}: {waiver.get('check')} is no check that can be waived -> one of {known}")
        if not waiver.get("hosts"):
            found.append(f"{name}: it names no host -> list names or patterns (h20-0*) in hosts")
        if len(str(waiver.get("reason") or "").split()) < 2:
            found.append(f"{name}: it has no reason -> say in reason why the fault is borne, and who mends it")
        try:
            ahead = (_date(waiver.get("until")) - today).days
        except ValueError:
            found.append(f"{name}: until is {waiver.get('until')!r} -> a date, such as 2026-12-24")
        else:
            if ahead > LONGEST_WAIVER:
                found.append(
                    f"{name}: until {waiver['until']} is {ahead} days ahead -> at most {LONGEST_WAIVER}; renew it then"
                )
    return list(dict.fromkeys(found))


def waivers_of(waivers: t.Sequence[Facts], host: str, today: datetime.date) -> tuple[list[Facts], list[Facts]]:
    """The waivers of the host that hold today, and those that have expired."""
    mine: list[Facts] = [
        waiver | {"until": str(waiver["until"])}
        for waiver in map(dict, waivers)
        if any(fnmatch.fnmatchcase(host, pattern) for pattern in waiver["hosts"])
    ]
    held = [waiver for waiver in mine if _date(waiver["until"]) >= today]
    return held, [waiver for waiver in mine if waiver not in held]


def days_left(until: t.Any, today: datetime.date) -> str:
    """How long a waiver holds, in words."""
    days = (_date(until) - today).days
    if days < 0:
        return f"expired {until}, {-days} day{'s' * (days != -1)} ago"
    return f"until {until} ({days} day{'s' * (days != 1)} left)"


def _date(value: t.Any) -> datetime.date:
    """A date of YAML, or one in words; raises ValueError."""
    return datetime.date.fromisoformat(str(value))


def judge(found: t.Sequence[Check], held: t.Sequence[Facts]) -> tuple[str, list[dict[str, str]]]:
    """The verdict of a host, and the waivers on which it rests."""
    failed = [check.name for check in found if check.verdict in (FAIL, NOT_RUN)]
    used = [
        {key: str(waiver[key]) for key in ("name", "check", "reason", "until")}
        for waiver in held
        if waiver["check"] in failed
    ]
    if not failed:
        return ACCEPTED, []
    covered = {waiver["check"] for waiver in used}
    return (WAIVED if covered >= set(failed) else REFUSED), used


# Words


def headline(host: str, record: Facts, today: datetime.date) -> str:
    """One line a host: the verdict, and what an accepted one reaches."""
    if record["verdict"] == REFUSED:
        return f"{host}  REFUSED"
    told = [
        f"{FIGURES[name].label} {number(record['figures'][name])} {FIGURES[name].unit}"
        for name in HEADLINE
        if record["figures"].get(name) is not None
    ]
    if record["verdict"] == WAIVED:
        nearest = min(waiver["until"] for waiver in record["waivers"])
        return f"{host}  accepted by waiver {days_left(nearest, today)}  {', '.join(told)}"
    return f"{host}  accepted  {', '.join(told)}"


def rows(record: Facts, expired: t.Sequence[Facts], today: datetime.date) -> list[_preflight.Finding]:
    """What of a host is not as it should be, for the table of preflight."""
    waived = {waiver["check"]: waiver for waiver in record["waivers"]}
    lapsed = {waiver["check"]: waiver for waiver in expired}
    found = []
    for check in record["checks"]:
        if check["verdict"] == PASS:
            continue
        evidence, name = check["evidence"], check["name"]
        if check["verdict"] == FLAGGED:
            evidence = f"flagged: {evidence}"
        elif name in waived:
            waiver = waived[name]
            evidence += f"; waived by {waiver['name']} {days_left(waiver['until'], today)}: {waiver['reason']}"
        elif name in lapsed:
            waiver = lapsed[name]
            evidence += f"; the waiver {waiver['name']} does not help, it {days_left(waiver['until'], today)}"
        found.append(_preflight.Finding(name, _preflight.REFUSE, evidence, check["remedy"]))
    return found


def number(value: float) -> str:
    """A figure with three digits that say something: 471, 54.9, 5.12, 0.0123."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def some(items: t.Sequence[str], most: int = 4) -> str:
    """The first few of a list, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _size(size: float) -> str:
    return f"{size / GIB:.0f} GiB" if size >= GIB else f"{size / 1024**2:.1f} MiB"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
