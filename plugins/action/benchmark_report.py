# SPDX-License-Identifier: Apache-2.0
"""Hold what was measured against the baseline, on the controller: print the table, draw the chart, write the reports."""

from __future__ import annotations

import typing as t

import yaml
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.module_utils import _benchmark
from ansible_collections.h20.fleet.plugins.modules import benchmark_report
from ansible_collections.h20.fleet.plugins.plugin_utils import _chart, _junit, _reports

Facts = t.Mapping[str, t.Any]
#: Of each host the checks of its replicas.
Checks = t.Mapping[str, t.Sequence[_benchmark.Check]]

DROPPED = "not measured: the run failed on it"


def judge(measured: t.Mapping[str, t.Sequence[Facts]], *, store: bool) -> dict[str, list[_benchmark.Check]]:
    """What is said of each host. What becomes the baseline is not held against the one before."""
    return {
        host: [
            check
            for found in replicas
            for check in _benchmark.checks(
                found, [] if store else found["need"]["baseline"], found["need"]["tolerance"]
            )
        ]
        for host, replicas in measured.items()
    }


def failed(checks: t.Sequence[_benchmark.Check]) -> list[_benchmark.Check]:
    return [check for check in checks if check.verdict == _benchmark.FAIL]


def message(checks: t.Sequence[_benchmark.Check]) -> str:
    """One line for whoever sees the result and not the table."""
    told = "; ".join(f"{check.name}: {check.evidence}" for check in checks)
    return f"{told} -> {'; '.join(dict.fromkeys(check.remedy for check in checks))}"


def verdict(host: str, replicas: t.Sequence[Facts], checks: Checks) -> str:
    if failed(checks[host]):
        return "failed"
    known = all(_benchmark.baseline_of(found, found["need"]["baseline"]) for found in replicas)
    return "as the baseline" if known else "no baseline"


def drawn(measured: t.Mapping[str, t.Sequence[Facts]]) -> list[_chart.Line]:
    """A line a replica, and one a baseline."""
    lines = []
    baselines: dict[str, _chart.Line] = {}
    for host, replicas in measured.items():
        for found in replicas:
            lines.append(_chart.Line(f"{host}  {found['instance']}", _points(found["rounds"])))
            if entry := _benchmark.baseline_of(found, found["need"]["baseline"]):
                name = f"baseline of {entry['instance']}, release {entry['release']}"
                baselines[name] = _chart.Line(name, _points(entry["rounds"]), is_baseline=True)
    return lines + list(baselines.values())


def _points(rounds: t.Sequence[Facts]) -> list[tuple[int, float, float]]:
    return sorted((entry["concurrency"], entry["output_tok_s"], entry["tpot_p50_ms"]) for entry in rounds)


def about(measured: t.Mapping[str, t.Sequence[Facts]]) -> str:
    """What was measured, in a line: all that the replicas have in common or differ in."""
    told = [
        f"{found['model']}, {found['profile'] or 'no profile'}, {_hardware(found)}, vLLM {found['vllm'] or 'unknown'};"
        f" {found['input_tokens']:,} tokens in, {found['output_tokens']:,} out, {found['requests']} requests for each at once"
        for replicas in measured.values()
        for found in replicas
    ]
    kinds = list(dict.fromkeys(told))
    return kinds[0] + (f"; and {len(kinds) - 1} other kinds" if len(kinds) > 1 else "") if kinds else "nothing measured"


def _hardware(found: Facts) -> str:
    return f"{found['gpus']} x {found['gpu']}" if found["gpus"] else "GPUs unknown"


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.benchmark_report)."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(benchmark_report.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        measured: dict[str, list[Facts]] = {host: found for host, found in arguments["measured"].items() if found}
        store, folder = arguments["store"], arguments["folder"]
        checks = judge(measured, store=store)
        messages = {host: message(failed(found)) for host, found in checks.items() if failed(found)}
        good = [found for host, replicas in measured.items() if host not in messages for found in replicas]
        # Each host may have a baseline of its own, in its group's variables: what is stored is added to all of them.
        before = {
            str(entry): entry
            for replicas in measured.values()
            for found in replicas
            for entry in found["need"]["baseline"]
        }
        result |= {"changed": False, "messages": messages}
        result["baseline"] = _benchmark.store(good, list(before.values())) if store and good else []
        dropped = [host for host in arguments["hosts"] if host not in arguments["measured"]]
        if not measured and not dropped:
            return result  # check mode
        told = about(measured)
        self._display.display("\n".join([f"benchmark of {told}", *self._lines(measured, checks, dropped, store=store)]))
        for host, replicas in measured.items():
            kept = [{name: value for name, value in found.items() if name != "need"} for found in replicas]
            words = "stored" if store and host not in messages else verdict(host, replicas, checks)
            said = [check._asdict() for check in checks[host]]
            _reports.keep(folder, "benchmark", host, {"host": host, "verdict": words, "checks": said, "replicas": kept})
        if measured:
            names = [f"{found['instance']} on {host}" for host, replicas in measured.items() for found in replicas]
            title = f"Benchmark of {names[0] if len(names) == 1 else f'{len(names)} replicas'}"
            _reports.keep_text(folder, "benchmark.svg", _chart.document(title, told, drawn(measured)))
        records = {
            host: {"waivers": [], "checks": [check._asdict() for check in found]} for host, found in checks.items()
        }
        _reports.keep_text(
            folder, "benchmark.xml", _junit.document("benchmark", records, dict.fromkeys(dropped, DROPPED))
        )
        return result

    @staticmethod
    def _lines(
        measured: t.Mapping[str, t.Sequence[Facts]], checks: Checks, dropped: t.Sequence[str], *, store: bool
    ) -> list[str]:
        rows = [
            (f"{host}  {found['instance']}", found, found["need"]["baseline"])
            for host, replicas in measured.items()
            for found in replicas
        ]
        lines = _benchmark.table(rows)
        for host, found in checks.items():
            lines += [f"{host}  FAILED  {check.name}: {check.evidence}  -> {check.remedy}" for check in failed(found)]
        without = [host for host, replicas in measured.items() if verdict(host, replicas, checks) == "no baseline"]
        if without and not store:
            lines.append(
                f"no baseline for {', '.join(without)} -> where the figures are as they should be, keep them: -e benchmark_store=true"
            )
        return lines + [f"{host}  {DROPPED}" for host in dropped]
