# SPDX-License-Identifier: Apache-2.0
"""The report of preflight: the exit status of ansible-playbook, what is printed, and the file on the controller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports
from unit.plugins.fit_host import NGINX, changed

ROOT = Path(__file__).resolve().parents[3]
CAPTURE = Path(__file__).parent / "captures" / "nvidia-smi-h200.xml"
HOSTS: dict[str, dict[str, Any]] = {
    "fit": {"gpu.kernel.headers": False},
    "taken": {"host.ports": {"8000": NGINX}},
    "silent": {"gpu.smi": None, "gpu.smi_error": "nvidia-smi did not answer within 60 s"},
}
PLAYBOOK = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "name": "Judge",
                "h20.fleet.preflight_report": {
                    **{key: f"{{{{ facts[inventory_hostname].{key} }}}}" for key in ("host", "gpu", "model", "need")},
                    "folder": "{{ playbook_dir }}/reports",
                },
            }
        ],
    }
]


def play(playbook: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook in its own folder, as an operator would."""
    program = Path(sys.executable).with_name("ansible-playbook")
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [str(program), str(playbook), *arguments],
        cwd=playbook.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def playbook(tmp_path: Path) -> Path:
    """A playbook that judges hosts of that name, which no connection could reach."""
    facts = {name: changed(changes) for name, changes in HOSTS.items()}
    for name, parts in facts.items():
        parts["gpu"] |= {"changed": False, "invocation": {"module_args": {"token": f"secret of {name}"}}}
    (tmp_path / "facts.json").write_text(json.dumps({"facts": facts}), encoding="utf-8")
    path = tmp_path / "judge.yml"
    path.write_text(yaml.safe_dump(PLAYBOOK), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("hosts", "rc"), [(["fit"], 0), (["fit", "taken"], 2), (["fit", "silent"], 4), (["silent", "taken"], 4)]
)
def test_the_exit_status_tells_the_verdict(playbook: Path, hosts: list[str], rc: int) -> None:
    done = play(playbook, "-i", f"{','.join(hosts)},", "-e", f"@{playbook.parent / 'facts.json'}", "--check")
    assert done.returncode == rc, done.stdout + done.stderr
    reports = sorted((playbook.parent / "reports/preflight").iterdir())
    assert [path.name for path in reports] == sorted(f"{host}.json" for host in hosts)
    verdicts = {path.stem: json.loads(path.read_text(encoding="utf-8"))["verdict"] for path in reports}
    assert verdicts == {host: {"fit": "fit", "taken": "not_fit", "silent": "unknown"}[host] for host in hosts}


def test_a_table_a_host_is_printed_and_the_message_says_what_to_do(playbook: Path) -> None:
    done = play(playbook, "-i", f"{','.join(HOSTS)},", "-e", f"@{playbook.parent / 'facts.json'}")
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("fit  fit  8 x NVIDIA H20-3e"))
    assert lines[start + 1].startswith("  KERNEL-HEADERS  warning: ")
    assert "taken  NOT FIT  profile h20_141g" in lines
    assert "silent  COULD NOT TELL  profile h20_141g" in lines
    words = " ".join((done.stdout + done.stderr).split())
    assert (
        "could not tell whether the host is fit: NVIDIA-SMI: the driver 580.173.02 is loaded, but nvidia-smi" in words
    )
    assert "not fit: PORT -> mend what the table says" in words


def test_the_report_has_all_that_was_read_and_no_arguments_of_modules(playbook: Path) -> None:
    play(playbook, "-i", "taken,", "-e", f"@{playbook.parent / 'facts.json'}")
    text = (playbook.parent / "reports/preflight/taken.json").read_text(encoding="utf-8")
    report, facts = json.loads(text), changed(HOSTS["taken"])
    assert list(report) == ["host", "verdict", "profile", "release", "findings", "hardware", "system", "plans", "time"]
    assert (report["host"], report["profile"], report["release"]) == ("taken", "h20_141g", "2026.11")
    assert [set(finding) for finding in report["findings"]] == [{"id", "severity", "evidence", "remedy"}]
    assert report["hardware"] == {key: value for key, value in facts["gpu"].items() if key != "profiles"}
    assert report["system"] == facts["host"]
    assert [(plan["instance"], plan["fits"]) for plan in report["plans"]] == [("deepseek", True)]
    assert "secret" not in text


def test_a_folder_that_cannot_be_written_is_named(playbook: Path) -> None:
    (playbook.parent / "reports").write_text("a file", encoding="utf-8")
    done = play(playbook, "-i", "fit,", "-e", f"@{playbook.parent / 'facts.json'}")
    assert done.returncode == 2
    assert "-> set fleet_reports to a folder that can be" in " ".join((done.stdout + done.stderr).split())


def test_a_report_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "deep/host.json"
    _reports.write(path, '{"verdict": "fit"}\n')
    with pytest.raises(UnicodeEncodeError):
        _reports.write(path, '{"verdict": "\ud800"}\n')
    assert json.loads(path.read_text(encoding="utf-8")) == {"verdict": "fit"}
    assert list(path.parent.iterdir()) == [path]


def test_the_documented_playbook_judges_a_support_bundle(tmp_path: Path) -> None:
    """The example of docs/hardware.md, on the capture of a real H200 of a virtual machine with one GPU."""
    document = (ROOT / "docs/hardware.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(- name: Judge a support bundle.*?)```", document, re.DOTALL)
    path = tmp_path / "judge.yml"
    path.write_text(example, encoding="utf-8")
    (tmp_path / "h200-01").mkdir()
    (tmp_path / "h200-01/nvidia-smi.xml").write_bytes(CAPTURE.read_bytes())
    (tmp_path / "h200-01/dmesg.txt").touch()
    done = play(path, "-e", "bundle=h200-01")
    assert done.returncode == 2, done.stdout + done.stderr
    report = json.loads((tmp_path / "reports/preflight/h200-01.json").read_text(encoding="utf-8"))
    assert (report["profile"], [finding["id"] for finding in report["findings"]]) == ("h200", ["GPU-COUNT"])
