# SPDX-License-Identifier: Apache-2.0
"""What the scenarios' tests share: the fleet as the test bed describes it, playbooks run as an operator runs them, and the API of a host."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing as t
import urllib.request
from pathlib import Path

import docker
import pytest

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".testbed/molecule"
REPORTS = ROOT / ".testbed/reports/preflight"
INSTANCE = "tiny-deepseek"
UNIT = f"vllm@{INSTANCE}.service"


def backend(name: str, fleet: str = "molecule") -> str:
    """Testinfra's address of a host: root, over the same SSH as Ansible."""
    return f"ssh://{name}?sudo=true&ssh_config={ROOT / '.testbed' / fleet / 'ssh_config'}"


def address_of(name: str, fleet: str = "molecule") -> str:
    """Address of a host, as the test bed wrote it down."""
    known = json.loads((ROOT / ".testbed" / fleet / "environment.json").read_text(encoding="utf-8"))
    return str(known["hosts"][name]["address"])


@dataclasses.dataclass(frozen=True)
class Run:
    """How a playbook ended: exit status and what it printed."""

    rc: int
    output: str

    @property
    def words(self) -> str:
        """The output with every run of white space as one blank: messages are found however they were wrapped."""
        return " ".join(self.output.split())


@dataclasses.dataclass(frozen=True)
class Api:
    """The OpenAI API of one host."""

    host: str
    port: int = 8000
    fleet: str = "molecule"

    @property
    def url(self) -> str:
        return f"http://{address_of(self.host, self.fleet)}:{self.port}"

    @property
    def key(self) -> str:
        return (ROOT / ".testbed" / self.fleet / "api_key").read_text(encoding="utf-8").strip()

    def call(self, path: str, body: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """The answer to a GET, or to a POST of ``body``; raises OSError where there is none."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: dict[str, t.Any] = json.load(response)
        return answer

    def chat(self) -> str:
        """The text of a chat completion of a few tokens."""
        messages = [{"role": "user", "content": "Are you there?"}]
        answer = self.call("/v1/chat/completions", {"model": INSTANCE, "messages": messages, "max_tokens": 8})
        assert answer["usage"]["completion_tokens"] > 0
        return str(answer["choices"][0]["message"]["content"])


def play(name: str, *arguments: str, inventory: str = "molecule/inventory") -> Run:
    """Run a playbook of the collection on the fleet, as an operator would type it."""
    with start(name, *arguments, inventory=inventory) as process:
        output, _none = process.communicate(timeout=1200)
    return Run(process.returncode, output)


def start(name: str, *arguments: str, inventory: str = "molecule/inventory") -> subprocess.Popen[str]:
    """Start a playbook of the collection, in a process group of its own that can be killed."""
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [str(program), "-i", str(ROOT / inventory), f"h20.fleet.{name}", *arguments]
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    pipes: dict[str, t.Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)


def on_console(name: str, *command: str) -> str:
    """What a command prints on a host without a login, as on a real one's console: it works while SSH does not."""
    output = docker.from_env().containers.get(name).exec_run(list(command)).output
    assert isinstance(output, bytes)
    return output.decode()


def shell(name: str, script: str) -> str:
    """What a script prints that runs on a host's console; it must succeed."""
    done = docker.from_env().containers.get(name).exec_run(["sh", "-euc", script])
    assert isinstance(done.output, bytes)
    assert done.exit_code == 0, f"{name}: {script}\n{done.output.decode()}"
    return done.output.decode().strip()


def describe(name: str, description: str | dict[str, t.Any], fleet: str = "molecule") -> None:
    """Give a host that runs other hardware: a description of the test bed by its name, or one in place."""
    text = description if isinstance(description, str) else json.dumps(description)
    command = [sys.executable, "-m", "testbed", "describe", "--fleet", fleet, name, text]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@dataclasses.dataclass(frozen=True)
class Packages:
    """What dpkg has on a host: every package with its version and status, what is held, and what it would rather have mended."""

    installed: str
    held: str
    audit: str

    @classmethod
    def of(cls, name: str) -> Packages:
        query = r"dpkg-query --show --showformat='${Package} ${Version} ${db:Status-Abbrev}\n'"
        return cls(shell(name, query), shell(name, "apt-mark showhold"), shell(name, "dpkg --audit"))


def follows_release(name: str, version: str) -> None:
    """Assert it of driver, fabric manager and nscq: one version to the digit, held, from NVIDIA's repository, and what apt would install.

    All other packages of the driver are of that version as well, and one pinning package is there.
    """
    held = shell(name, "apt-mark showhold").split()
    for package in ("nvidia-open", "nvidia-fabricmanager", "libnvidia-nscq"):
        policy = shell(name, f"apt-cache policy {package}")
        fields = dict(re.findall(r"^  (Installed|Candidate): (\S+)", policy, re.MULTILINE))
        assert fields["Installed"] == fields["Candidate"], policy
        assert fields["Installed"].startswith(f"{version}-"), policy
        source = re.search(rf" \*\*\* {re.escape(fields['Installed'])} \d+\n +\d+ (\S+)", policy)
        assert source, policy
        assert source[1].startswith("http://mirror.test/compute/cuda/repos/"), policy
        assert package in held, held
    upstream = r"dpkg-query --show --showformat='${db:Status-Status} ${Package} ${source:Upstream-Version}\n'"
    lines = [line.split() for line in shell(name, f"{upstream} '*nvidia*' 'libcuda1'").splitlines()]
    versions = {words[1]: words[2] for words in lines if words[0] == "installed" and len(words) == 3}
    pinnings = {package for package in versions if package.startswith("nvidia-driver-pinning-")}
    assert pinnings == {f"nvidia-driver-pinning-{version}"}
    assert {versions[package] for package in versions.keys() - pinnings} == {version}, versions
    assert shell(name, "dpkg --audit") == ""
    assert shell(name, "cat /sys/module/nvidia/version") == version


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> t.Iterator[None]:
    """Add the journal of the service to the report of a failed test that looked at a host."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    host = getattr(item, "funcargs", {}).get("host")
    if report.when == "call" and report.failed and host is not None and not isinstance(host, str):
        report.sections.append(
            ("journal", on_console(host.backend.host.name, "journalctl", "--lines", "80", "--no-pager"))
        )
