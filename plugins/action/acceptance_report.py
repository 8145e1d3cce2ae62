# SPDX-License-Identifier: Apache-2.0
"""Judge the hosts of a run on the controller: each by its floors, by the others and with its waivers; print the table, write the reports."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t
from collections import Counter
from pathlib import Path

import yaml
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.module_utils import _acceptance, _preflight
from ansible_collections.h20.fleet.plugins.modules import acceptance_report
from ansible_collections.h20.fleet.plugins.plugin_utils import _junit, _reports

Facts = t.Mapping[str, t.Any]
Record = dict[str, t.Any]

#: States of a host in check mode of which nothing can be said yet.
AHEAD = {
    "due": "would be measured",
    "lacking": "would be measured, once the stages before it have run",
}
DROPPED = "not measured: the run failed on it before this stage"


def checks_of(found: Facts) -> list[_acceptance.Check]:
    """What the host says by itself."""
    need = found["need"]
    hardware = found["hardware"]
    known = {
        "floors": _acceptance.floors(hardware, need["floors"], need["calibration"], found["profile"]),
        "nvlinks": hardware.get("nvlinks", 0),
        **{key: need[key] for key in ("model_bytes", "start_seconds", "backend")},
    }
    host = {
        "measurement": found["record"].get("measurement") or {},
        "reason": found["reason"],
        **{key: found[key] for key in ("collectives", "topology", "gpus")},
    }
    return _acceptance.checks(host, known)


def figures_of(found: Facts) -> dict[str, float | None]:
    measurement = found["record"].get("measurement") or {}
    return _acceptance.figures(measurement, found["collectives"])


def record_of(host: str, found: Facts, checks: t.Sequence[_acceptance.Check], held: t.Sequence[Facts]) -> Record:
    """What is kept of the host: the measurement and what follows from it."""
    verdict, waivers = _acceptance.judge(checks, held)
    kept = found["record"]
    return {
        "schema": _acceptance.SCHEMA,
        "host": host,
        "verdict": verdict,
        "measured": kept.get("measured", ""),
        "profile": found["profile"],
        "backend": found["need"]["backend"],
        "key": kept.get("key", {}),
        "waivers": waivers,
        "checks": [dataclasses.asdict(check) for check in checks],
        "figures": figures_of(found),
        "measurement": kept.get("measurement", {}),
    }


def judge(measured: t.Mapping[str, Facts], today: datetime.date) -> dict[str, tuple[Record, list[Facts]]]:
    """The record of each host, with its waivers that have expired. Hosts are compared with those of their own hardware."""
    alike: dict[tuple[str, str], list[str]] = {}
    for host, found in measured.items():
        alike.setdefault((found["profile"], found["need"]["backend"]), []).append(host)
    judged = {}
    for hosts in alike.values():
        outliers = _acceptance.outliers({host: figures_of(measured[host]) for host in hosts})
        for host in hosts:
            found = measured[host]
            checks = checks_of(found)
            flags = outliers.get(host, {})
            if len(hosts) < _acceptance.FEWEST_FOR_OUTLIERS:
                flags = _acceptance.kept_flags(found["record"], checks)
            checks = _acceptance.flag(checks, flags, found["need"]["outliers"] == "refuse")
            held, expired = _acceptance.waivers_of(found["need"]["waivers"], host, today)
            judged[host] = (record_of(host, found, checks, held), expired)
    return judged


def notes(measured: t.Mapping[str, Facts], records: t.Mapping[str, Record], today: datetime.date) -> list[str]:
    """Waivers that have expired or cover nothing: whoever reads the inventory should know."""
    used = {waiver["name"] for record in records.values() for waiver in record["waivers"]}
    known: dict[str, Facts] = {
        waiver["name"]: waiver for found in measured.values() for waiver in found["need"]["waivers"]
    }
    lines = []
    for name, waiver in known.items():
        told = _acceptance.days_left(waiver["until"], today)
        if told.startswith("expired"):
            lines.append(f"  waiver {name} ({waiver['check']}) {told} -> renew it in fleet_waivers, or take it out")
        elif name not in used and len(records) > 1:
            lines.append(f"  waiver {name} ({waiver['check']}) {told} covers nothing that fails in this run")
    return lines


def table(
    hosts: t.Sequence[str],
    judged: t.Mapping[str, tuple[Record, list[Facts]]],
    others: t.Mapping[str, str],
    today: datetime.date,
) -> list[str]:
    """A line a host, refused ones with what to mend."""
    lines = []
    for host in hosts:
        if host not in judged:
            lines.append(f"{host}  {others[host]}")
            continue
        record, expired = judged[host]
        lines += [
            _acceptance.headline(host, record, today),
            *_preflight.table(_acceptance.rows(record, expired, today)),
        ]
    return lines


def message(record: Record, path: Path) -> str:
    """One line for whoever sees the result and not the table."""
    covered = {waiver["check"] for waiver in record["waivers"]}
    failed = [
        check
        for check in record["checks"]
        if check["verdict"] in (_acceptance.FAIL, _acceptance.NOT_RUN) and check["name"] not in covered
    ]
    told = "; ".join(f"{check['name']}: {check['evidence']}" for check in failed)
    return (
        f"not accepted: {told} -> mend what the table says and run the stage again: --tags acceptance;"
        f" a fault that is known and borne gets a named waiver (fleet_waivers); all that was measured: {path}"
    )


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.acceptance_report)."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(acceptance_report.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        measured: dict[str, Facts] = arguments["measured"]
        today = datetime.datetime.now(datetime.timezone.utc).date()
        others = {host: DROPPED for host in arguments["hosts"] if host not in measured}
        others |= {host: AHEAD[found["status"]] for host, found in measured.items() if found["status"] in AHEAD}
        judged = judge({host: found for host, found in measured.items() if host not in others}, today)
        records = {host: record for host, (record, _expired) in judged.items()}
        lines = table(arguments["hosts"], judged, others, today) + notes(measured, records, today)
        counts = Counter(record["verdict"] for record in records.values())
        counted = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items())) or "none judged"
        dropped = sum(why == DROPPED for why in others.values())
        counted += f", {dropped} not measured" if dropped else ""
        self._display.display("\n".join([f"acceptance of {len(arguments['hosts'])} hosts: {counted}", *lines]))
        folder = arguments["folder"]
        paths = {host: _reports.keep(folder, "acceptance", host, record) for host, record in records.items()}
        failed = {host: why for host, why in others.items() if why == DROPPED}
        _reports.keep_text(folder, "acceptance.xml", _junit.document("acceptance", records, failed))
        refused = {
            host: message(record, paths[host])
            for host, record in records.items()
            if record["verdict"] == _acceptance.REFUSED
        }
        return result | {"changed": False, "records": records, "messages": refused}
