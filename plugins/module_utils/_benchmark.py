# SPDX-License-Identifier: Apache-2.0
"""What a benchmark of a replica says: figures of a round, what they are held against, and the table.

Pure functions. A record is what was measured of one replica: what it is (``KEY`` names what has to be the same before two are compared), and its rounds, one
a concurrency. A baseline is a list of entries with the same fields, as the inventory keeps it.
"""

from __future__ import annotations

import statistics
import typing as t

SCHEMA = 1
#: Two replicas are compared where these are the same. Release, vLLM and driver are what a baseline is there to judge.
KEY = ("profile", "model", "instance", "gpu", "gpus", "input_tokens", "output_tokens", "requests")
#: What of a record says how a baseline came about.
ORIGIN = ("release", "vllm", "driver", "measured")
#: Figures of a round that a baseline keeps.
KEPT = ("output_tok_s", "tpot_p50_ms")
PASS, FAIL = "pass", "fail"

Document = dict[str, t.Any]
Record = t.Mapping[str, t.Any]


class Check(t.NamedTuple):
    """What is said of a round: names of check and verdict, evidence, remedy."""

    name: str
    verdict: str
    evidence: str
    remedy: str


#: What `vllm bench serve` calls the figures.
_FIGURES = {
    "output_tok_s": "output_throughput",
    "total_tok_s": "total_token_throughput",
    "ttft_p50_ms": "median_ttft_ms",
    "ttft_p99_ms": "p99_ttft_ms",
    "tpot_p50_ms": "median_tpot_ms",
    "tpot_p99_ms": "p99_tpot_ms",
    "seconds": "duration",
}


def figures(entry: Record) -> Document:
    """A round as the reports keep it, from what the program on the host kept of ``vllm bench serve``."""
    result = entry["result"]
    round_: Document = {"concurrency": int(entry["concurrency"])}
    round_ |= {name: round(float(result[there]), 3) for name, there in _FIGURES.items()}
    round_ |= {"completed": int(result["completed"]), "failed": int(result["failed"]), "others": entry["others"]}
    return round_ | {"first_error": str(result.get("first_error", ""))}


def baseline_of(record: Record, baseline: t.Sequence[Record]) -> Record | None:
    """The entry that the record is held against."""
    return next((entry for entry in baseline if all(entry.get(name) == record[name] for name in KEY)), None)


def unfit(round_: Record) -> list[str]:
    """Why a round says nothing of the replica's speed."""
    found = []
    if round_["failed"]:
        said = f" ({round_['first_error']})" if round_["first_error"] else ""
        found.append(f"{round_['failed']} of {round_['completed'] + round_['failed']} requests failed{said}")
    if round_["others"]:
        found.append(f"{round_['others']} requests of others were answered meanwhile")
    return found


def slower(round_: Record, expected: Record, tolerance: float) -> list[str]:
    """In what a round is worse than the baseline by more than is borne."""
    borne = f"the baseline of {{:,.4g}} ({tolerance:.0%} are borne)"
    found = []
    output, tpot = expected["output_tok_s"], expected["tpot_p50_ms"]
    if round_["output_tok_s"] < output * (1 - tolerance):
        share = 1 - round_["output_tok_s"] / output
        found.append(f"{round_['output_tok_s']:,.4g} tokens/s of output, {share:.1%} below {borne.format(output)}")
    if round_["tpot_p50_ms"] > tpot * (1 + tolerance):
        share = round_["tpot_p50_ms"] / tpot - 1
        found.append(f"TPOT {round_['tpot_p50_ms']:,.4g} ms, {share:.1%} above {borne.format(tpot)}")
    return found


def checks(record: Record, baseline: t.Sequence[Record], tolerance: float) -> list[Check]:
    """A check a round. One that failed or was disturbed is not held against the baseline: what it measured is something else."""
    entry = baseline_of(record, baseline)
    expected = {round_["concurrency"]: round_ for round_ in entry["rounds"]} if entry else {}
    found = []
    for round_ in record["rounds"]:
        name = f"{record['instance']} c={round_['concurrency']}"
        if evidence := unfit(round_):
            remedy = "mend the replica, or keep others away from it, and measure again"
            found.append(Check(name, FAIL, "; ".join(evidence), remedy))
            continue
        against = expected.get(round_["concurrency"])
        evidence = slower(round_, against, tolerance) if against else []
        if evidence:
            remedy = "see what else uses the host, and measure again; where the new figures are meant: -e benchmark_store=true"
            found.append(Check(name, FAIL, "; ".join(evidence), remedy))
        else:
            said = f"{round_['output_tok_s']:,.4g} tokens/s of output, TPOT {round_['tpot_p50_ms']:,.4g} ms"
            found.append(Check(name, PASS, said + ("" if against else "; there is no baseline"), ""))
    return found


def store(records: t.Sequence[Record], baseline: t.Sequence[Record]) -> list[Document]:
    """The baseline with what was measured now: other replicas and other concurrencies stay as they were. Of alike replicas the median counts."""
    merged = {tuple(entry.get(name) for name in KEY): dict(entry) for entry in baseline}
    alike: dict[tuple[t.Any, ...], list[Record]] = {}
    for record in records:
        alike.setdefault(tuple(record[name] for name in KEY), []).append(record)
    for key, same in alike.items():
        rounds = {round_["concurrency"]: round_ for round_ in merged.get(key, {}).get("rounds", [])}
        measured = {round_["concurrency"] for record in same for round_ in record["rounds"]}
        for concurrency in measured:
            own = [round_ for record in same for round_ in record["rounds"] if round_["concurrency"] == concurrency]
            medians = {name: round(statistics.median(round_[name] for round_ in own), 3) for name in KEPT}
            rounds[concurrency] = {"concurrency": concurrency, **medians}
        origin = {name: same[-1][name] for name in ORIGIN} | {"replicas": len(same)}
        merged[key] = (
            dict(zip(KEY, key, strict=True)) | origin | {"rounds": [rounds[number] for number in sorted(rounds)]}
        )
    return list(merged.values())


_HEAD = ("", "c", "output tok/s", "total tok/s", "TTFT p50", "p99 ms", "TPOT p50", "p99 ms", "failed", "baseline")


def table(rows: t.Sequence[tuple[str, Record, t.Sequence[Record]]]) -> list[str]:
    """The lines of a table: what each (name, record, baseline) measured, and how its output lies beside the baseline's."""
    lines: list[tuple[str, ...]] = [_HEAD]
    for name, record, baseline in rows:
        entry = baseline_of(record, baseline)
        expected = {round_["concurrency"]: round_["output_tok_s"] for round_ in entry["rounds"]} if entry else {}
        for number, round_ in enumerate(record["rounds"]):
            output = expected.get(round_["concurrency"])
            beside = f"{round_['output_tok_s'] / output - 1:+.1%}" if output else "-"
            milliseconds = [round_[figure] for figure in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")]
            rates = [f"{round_['output_tok_s']:,.0f}", f"{round_['total_tok_s']:,.0f}"]
            words = [*rates, *(f"{value:,.1f}" for value in milliseconds), str(round_["failed"]), beside]
            lines.append(("" if number else name, str(round_["concurrency"]), *words))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
