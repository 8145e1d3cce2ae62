# SPDX-License-Identifier: Apache-2.0
"""From a clone to two hosts that answer: starts the test bed, runs the site playbook on it, and asks each host for a chat completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import openai
import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = "inventories/local"
STATE = ROOT / ".testbed/demo"
ASK = "What is tensor parallelism?"


class DemoError(Exception):
    """A step failed; what it printed stands above."""


def main() -> int:
    os.chdir(ROOT)
    times: dict[str, float] = {}
    try:
        _timed(times, "test bed", lambda: _run([sys.executable, "-m", "testbed", "up", "--fleet", "demo"]))
        recap = _timed(times, "site.yml", lambda: _play("site.yml"))
        _timed(times, "status.yml", lambda: _play("status.yml"))
        _timed(times, "chat completions", _chat)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    changed = sum(int(count) for count in re.findall(r"changed=(\d+)", recap))
    print(
        "\nsite.yml changed nothing: both hosts were what the release says."
        if not changed
        else f"\nsite.yml changed {changed} things."
    )
    print("Time:  " + ",  ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()))
    print(_next_lines())
    return 0


def _timed(times: dict[str, float], name: str, step: t.Callable[[], str]) -> str:
    begun = time.monotonic()
    result = step()
    times[name] = time.monotonic() - begun
    return result


def _run(command: list[str]) -> str:
    """Run a command, show its output as it comes, and return it; raises DemoError where it fails."""
    print(
        f"\n$ {' '.join(['python' if word == sys.executable else word.removeprefix(f'{ROOT}/') for word in command])}",
        flush=True,
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output = ""
        for line in t.cast(t.IO[str], process.stdout):
            print(line, end="", flush=True)
            output += line
    if process.returncode:
        raise DemoError(f"failed with exit code {process.returncode}: {' '.join(command)}")
    return output


def _play(name: str) -> str:
    program = Path(sys.executable).with_name("ansible-playbook")
    return _run([str(program), "-i", INVENTORY, f"playbooks/{name}"])


def hosts() -> dict[str, str]:
    """Address of each host of the demo, by name."""
    environment = json.loads((STATE / "environment.json").read_text(encoding="utf-8"))
    return {name: host["address"] for name, host in environment["hosts"].items()}


def _service() -> dict[str, t.Any]:
    """The only instance of the demo's inventory."""
    variables = yaml.safe_load((ROOT / INVENTORY / "group_vars/all/service.yml").read_text(encoding="utf-8"))
    return t.cast(dict[str, t.Any], variables["fleet_instances"][0])


def _chat() -> str:
    instance, key = _service(), (STATE / "api_key").read_text(encoding="utf-8").strip()
    print()
    for name, address in hosts().items():
        client = openai.OpenAI(base_url=f"http://{address}:{instance['port']}/v1", api_key=key, timeout=120)
        answer = client.chat.completions.create(
            model=instance["name"], messages=[{"role": "user", "content": ASK}], max_tokens=16
        )
        text = answer.choices[0].message.content
        if not text or answer.usage is None or not answer.usage.completion_tokens:
            raise DemoError(f"{name} answered without a token: {answer}")
        print(
            f"{name}  {ASK!r} -> {text!r}  ({answer.usage.completion_tokens} tokens; the model is tiny and random, the road is real)"
        )
    return ""


def _next_lines() -> str:
    instance, (name, address) = _service(), next(iter(hosts().items()))
    key = "$(cat .testbed/demo/api_key)"
    return f"""
What an operator types next:
  curl http://{address}:{instance["port"]}/v1/models -H "Authorization: Bearer {key}"
  ssh -F .testbed/demo/ssh_config {name} journalctl -fu vllm@{instance["name"]}
  .venv/bin/ansible-playbook -i {INVENTORY} playbooks/verify.yml      prove every stage
  .venv/bin/ansible-playbook -i {INVENTORY} playbooks/benchmark.yml   tokens a second, as a table and reports/benchmark.svg
  .venv/bin/ansible-playbook -i {INVENTORY} playbooks/remove.yml      take the collection's work away
  make clean                                                        take the hosts away"""


if __name__ == "__main__":
    sys.exit(main())
