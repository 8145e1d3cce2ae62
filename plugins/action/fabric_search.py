# SPDX-License-Identifier: Apache-2.0
"""Decide on the controller which hosts measure together next; at the end print the table, write the report, and end as the verdict is."""

from __future__ import annotations

import typing as t

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.module_utils import _fabric
from ansible_collections.h20.fleet.plugins.modules import fabric_search
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports

#: Share of the adapters' rate that all-reduce has to reach where a site names no floor.
SHARE = 0.7
#: A host that differs from most of the others, which the search itself does not look for.
DIFFERS = "DIFFERS"
Entry = dict[str, t.Any]


def collect(
    before: t.Mapping[str, t.Any], answers: t.Mapping[str, t.Mapping[str, t.Any]]
) -> tuple[list[Entry], list[str]]:
    """What was measured up to and in the round that has just ended, and the hosts that did not answer."""
    number, seats = before.get("number", 0), before.get("seats", {})
    measured, silent = list(before.get("measured", [])), list(before.get("silent", []))
    groups: dict[tuple[str, int], list[str]] = {}
    for host, seat in sorted(seats.items(), key=lambda item: item[1]["node_rank"]):
        groups.setdefault((seat["master"], seat["adapter"]), []).append(host)
    for (_master, adapter), hosts in groups.items():
        said = {host: answers[host] for host in hosts if answers.get(host, {}).get("number") == number}
        silent += [host for host in hosts if host not in said]
        figures = [answer["busbw_gb_s"] for answer in said.values() if answer["busbw_gb_s"] is not None]
        measured.append(
            {
                "round": number,
                "hosts": hosts,
                "adapter": adapter,
                "busbw_gb_s": min(figures) if len(figures) == len(hosts) else None,
                "errors": {host: answer["error"] for host, answer in said.items() if answer["error"]},
            }
        )
    return measured, silent


def probe(entry: Entry) -> _fabric.Probe:
    return _fabric.Probe(tuple(entry["hosts"]), None if entry["adapter"] < 0 else entry["adapter"])


def seats(probes: t.Sequence[_fabric.Probe]) -> dict[str, Entry]:
    """The place of each host in its group."""
    return {
        host: {
            "nodes": len(each.hosts),
            "node_rank": rank,
            "master": each.hosts[0],
            "adapter": -1 if each.adapter is None else each.adapter,
        }
        for each in probes
        for rank, host in enumerate(each.hosts)
    }


def group(hosts: t.Sequence[str]) -> str:
    """A group in few words."""
    return " ".join(hosts) if len(hosts) < 5 else f"{len(hosts)} hosts from {hosts[0]} to {hosts[-1]}"


def with_errors(finding: _fabric.Finding, measured: t.Sequence[Entry]) -> str:
    """The evidence, and what the hosts themselves said where a group had no result."""
    if "no result" not in finding.evidence:
        return finding.evidence
    said = {host: text for entry in measured for host, text in entry["errors"].items() if host in finding.hosts}
    return "; ".join([finding.evidence, *(f"{host}: {text}" for host, text in said.items())])


def found(
    search: _fabric.Search, measured: t.Sequence[Entry], silent: t.Sequence[str], differences: t.Mapping[str, str]
) -> list[Entry]:
    """All findings, those that stand in the way of the others first."""
    rounds = {host: entry["round"] for entry in measured for host in entry["hosts"]}
    findings = [
        {
            "id": _fabric.SILENT,
            "hosts": [host],
            "adapters": [],
            "evidence": f"did not answer in round {rounds[host]}"
            if host in rounds
            else "was lost before the first round",
            "remedy": _fabric.REMEDIES[_fabric.SILENT],
        }
        for host in silent
    ]
    findings += [
        {
            "id": each.id,
            "hosts": list(each.hosts),
            "adapters": list(each.adapters),
            "evidence": with_errors(each, measured),
            "remedy": each.remedy,
        }
        for each in search.findings
    ]
    for host, line in differences.items():
        evidence, _arrow, remedy = line.removeprefix(f"{host} ").rpartition(" -> ")
        findings.append({"id": DIFFERS, "hosts": [host], "adapters": [], "evidence": evidence, "remedy": remedy})
    return findings


def table(
    about: str, hosts: t.Sequence[str], search: _fabric.Search, measured: t.Sequence[Entry], findings: list[Entry]
) -> str:
    """Every measurement in one line, then every finding."""
    rows = []
    for entry in measured:
        over = "" if entry["adapter"] < 0 else f" over {search.adapters[entry['hosts'][0]][entry['adapter']]}"
        figure = "no result" if entry["busbw_gb_s"] is None else f"{entry['busbw_gb_s']:.3g} GB/s"
        rows.append(
            (
                f"round {entry['round']}",
                f"{group(entry['hosts'])}{over}",
                figure,
                "" if search.fine(probe(entry)) else "SLOW",
            )
        )
    rows += [
        (
            each["id"],
            " - ".join(each["hosts"]) + "".join(f" {name}" for name in each["adapters"]),
            each["evidence"],
            f"-> {each['remedy']}",
        )
        for each in findings
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    lines = ["  " + "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *row[2:]]).rstrip() for row in rows]
    verdict = "FAULTS FOUND" if findings else "as it should be"
    return "\n".join([f"fabric of {len(hosts)} hosts  {verdict}  {about}".rstrip(), *lines])


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.fabric_search)."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(fabric_search.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        if len(arguments["hosts"]) < 2:
            raise AnsibleActionFail("a fabric has at least two hosts -> name more of them in fleet_hosts or --limit")
        measured, silent = collect(arguments["before"], arguments["answers"])
        limits = _fabric.Limits(
            arguments["floor"] or _fabric.adapter_floor(arguments["rates"], SHARE), arguments["tolerance"]
        )
        search = _fabric.Search(
            [host for host in arguments["hosts"] if host not in silent],
            {probe(entry): entry["busbw_gb_s"] or 0.0 for entry in measured},
            limits,
            arguments["adapters"],
            pairs=arguments["pairs"],
        )
        probes = search.round(parallel=arguments["parallel"])
        number = arguments["before"].get("number", 0)
        result.update(changed=False, number=number, seats={}, measured=measured, silent=silent)
        if probes:
            result.update(number=number + 1, seats=seats(probes))
            self._display.display(
                f"fabric, round {number + 1}: "
                + ", ".join(
                    group(each.hosts) + (f" over adapter {each.adapter}" if each.adapter is not None else "")
                    for each in probes
                )
            )
            return result
        about = f"{arguments['about']}, floor {limits.floor:g} GB/s" if limits.floor else arguments["about"]
        findings = found(search, measured, [*arguments["lost"], *silent], arguments["differences"])
        self._display.display(table(about, arguments["hosts"], search, measured, findings))
        document = {
            "hosts": arguments["hosts"],
            "verdict": "not_fit" if findings else "fit",
            "about": about,
            "findings": findings,
            "measured": measured,
        }
        path = _reports.keep(arguments["folder"], "fabric", arguments["name"], document)
        named = [
            f"{each['id']} {' - '.join(each['hosts'])}" + "".join(f" {name}" for name in each["adapters"])
            for each in findings
        ]
        result = {"changed": False, "number": number, "seats": {}, "findings": named, "report_path": str(path)}
        if findings:
            told = "; ".join(named)
            result.update(
                failed=True, msg=f"{told} -> mend what the table says and run it again; all that was measured: {path}"
            )
        return result
