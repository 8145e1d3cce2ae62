#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load a replica with vLLM's own benchmark, round after round, and keep what each round measured.

    benchmark.py JOB

Run by systemd with the interpreter of the release that serves and the key of the API in VLLM_API_KEY. JOB is JSON. What has been measured so far, what there
is to say of it and why it ended stand in the file that JOB names, whole at any time. Each round is `vllm bench serve` in a process of its own that can be
ended; they are forked from one that has imported vLLM, which takes 10 to 30 s and is done once.

Each concurrency is measured twice in a row and the first time is discarded: of a load that a replica has not had yet the first round reaches little more than
half of the speed. Each round has prompts of its own, since a replica that keeps prefixes would answer the same ones without reading them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import typing as t
import urllib.request
from pathlib import Path

#: Counter of the requests that the replica has answered, whoever sent them.
ANSWERED = "vllm:request_success_total"
#: Seconds until a replica has counted what it answered.
SETTLE = 1.0
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

Document = dict[str, t.Any]


class BenchmarkError(Exception):
    """A round has no result; the text says why."""


class State:
    """The file that says how far the benchmark is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rounds: list[Document] = []
        self._said: list[str] = []

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._said.append(line)
        self.write()

    def write(self, error: str = "", *, done: bool = False) -> None:
        text = json.dumps({"said": self._said, "rounds": self.rounds, "error": error, "done": done})
        temporary = self._path.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)


def command(job: Document, concurrency: int, requests: int, seed: int, result: Path) -> list[str]:
    """The command line of a round. Neither vLLM waits for an answer first nor does anything decide when an answer ends but its length."""
    return [
        "vllm", "bench", "serve", "--backend", "vllm", "--base-url", job["url"], "--endpoint", "/v1/completions",
        "--model", job["model"], "--tokenizer", job["tokenizer"], "--dataset-name", "random",
        "--random-input-len", str(job["input_tokens"]), "--random-output-len", str(job["output_tokens"]), "--ignore-eos",
        "--temperature", "0", "--num-prompts", str(requests), "--max-concurrency", str(concurrency), "--seed", str(seed),
        "--ready-check-timeout-sec", "0", "--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,99",
        "--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", str(result.parent), "--result-filename", result.name,
    ]  # fmt: skip


def answered(url: str) -> float | None:
    """Requests that the replica has answered since its start; None where it does not say."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
    except (OSError, ValueError):
        return None
    counted = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{ANSWERED}{{")]
    return sum(counted) if counted else None


def environment(folder: Path) -> dict[str, str]:
    """What vLLM's client is told: the key, no way to the hub, and a home that goes away with the job."""
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"HOME": str(folder), "VLLM_CACHE_ROOT": str(folder / "cache"), "HF_HOME": str(folder / "cache")}
    settings |= {"OPENAI_API_KEY": os.environ["VLLM_API_KEY"]} if os.environ.get("VLLM_API_KEY") else {}
    return settings | ({"SSL_CERT_FILE": str(AUTHORITIES)} if AUTHORITIES.exists() else {})


def client() -> t.Callable[[], object]:
    """vLLM's command line, imported."""
    try:
        import vllm.benchmarks.serve  # noqa: F401, PLC0415 (what a round needs, before it is forked)
        from vllm.entrypoints.cli.main import main  # noqa: PLC0415 (a release without it is told so)
    except ImportError as error:
        raise BenchmarkError(
            f"the release's vLLM cannot run `vllm bench serve`: {error} -> add what is missing to the release's lock (docs/releases.md)"
        ) from error
    return t.cast("t.Callable[[], object]", main)


def play(run: t.Callable[[], object], arguments: list[str], log: Path) -> None:
    """A round, in its own process: what it prints goes to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = arguments
    run()


def measure(
    run: t.Callable[[], object], job: Document, concurrency: int, requests: int, seed: int, folder: Path
) -> Document:
    """What `vllm bench serve` says of a round, without what it says of each request; raises BenchmarkError where it has no result in time."""
    result, log = folder / "round.json", folder / "round.log"
    result.unlink(missing_ok=True)
    arguments = command(job, concurrency, requests, seed, result)
    process = multiprocessing.get_context("fork").Process(target=play, args=(run, arguments, log))
    process.start()
    process.join(job["timeout"])
    if process.is_alive():
        process.kill()
        process.join()
        raise BenchmarkError(
            f"{requests} requests at c={concurrency} did not end within {job['timeout']} s"
            " -> see whether the replica answers (h20.fleet.verify --tags vllm_service); benchmark_timeout allows more, benchmark_requests asks less"
        )
    try:
        found: Document = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        words = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise BenchmarkError(
            f"`vllm bench serve` ended with status {process.exitcode} at c={concurrency}: {words[-1] if words else 'it said nothing'}"
        ) from None
    errors = [str(error) for error in found.get("errors", []) if error]
    kept = {name: value for name, value in found.items() if not isinstance(value, (list, dict))}
    return kept | {"first_error": errors[0].strip().splitlines()[-1] if errors else ""}


def benchmark(job: Document, state: State, folder: Path) -> None:
    """All rounds."""
    state.say("importing vLLM")
    run = client()
    seed = int(time.time())
    for number, concurrency in enumerate(job["concurrencies"]):
        requests = concurrency * job["requests"]
        state.say(f"c={concurrency}  warming up with {requests} requests")
        measure(run, job, concurrency, requests, seed + 2 * number, folder)
        time.sleep(SETTLE)
        before = answered(job["url"])
        found = measure(run, job, concurrency, requests, seed + 2 * number + 1, folder)
        time.sleep(SETTLE)
        after = answered(job["url"])
        own = found["completed"] + found["failed"]
        others = None if before is None or after is None else max(0, round(after - before - own))
        state.rounds.append({"concurrency": concurrency, "others": others, "result": found})
        state.say(
            f"c={concurrency}  {found['output_throughput']:,.0f} tokens/s of output, TTFT {found['median_ttft_ms']:,.0f} ms,"
            f" TPOT {found['median_tpot_ms']:,.1f} ms, {requests} requests in {found['duration']:,.3g} s"
            + (f", {found['failed']} FAILED" if found["failed"] else "")
        )


def main(arguments: list[str]) -> int:
    job: Document = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    path = Path(job["state"])
    state = State(path)
    os.environ.update(environment(path.parent))
    try:
        benchmark(job, state, path.parent)
    except BenchmarkError as error:
        state.write(str(error))
        print(f"error: {error}", file=sys.stderr)
        return 1
    state.write(done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
