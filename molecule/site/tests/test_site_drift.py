# SPDX-License-Identifier: Apache-2.0
"""Drift: what was changed on a host behind the stages' back is named in one run, all of it, and one run of the site takes it back."""

from __future__ import annotations

import json
import re

import pytest
from conftest import INSTANCE, ROOT, UNIT, Api, Run, play, shell

HOST, OTHER = "h20-11", "h20-12"
RELEASE = "/opt/vllm/releases/demo"
MODEL = "/data/models/h20-fleet/tiny-deepseek-v3"
NEWER_KERNEL = "/boot/vmlinuz-99.0.0-1-generic"

#: What somebody does on the host, and the line that has to name it.
DEEDS = {
    "apt-mark unhold nvidia-fabricmanager": r"HOLD +nvidia-fabricmanager is not held",
    "apt-mark unhold cuda-nvcc-13-0": r"HOLD +cuda-nvcc-13-0 is not held",
    f"touch {NEWER_KERNEL}": r"KERNEL +\S+ runs, the next boot brings 99\.0\.0-1-generic",
    f"/opt/vllm/tools/uv-*/bin/uv --offline pip uninstall --quiet --python {RELEASE}/bin/python rignore": r"VENV +rignore is missing",
    f"""sed -i 's/"13.0"/"12.9"/' {RELEASE}/release.json""": r"RELEASE +demo was installed with cuda.version 12\.9",
    "ln -sfn releases/other /opt/vllm/current": r"CURRENT +current names other, not demo",
    f"touch {MODEL}/current/config.json": r"MODEL +\S+/config.json is not what was proved",
    "echo NCCL_P2P_DISABLE=1 >> /etc/nccl.conf": r"FILE +/etc/nccl.conf is not what the stage writes",
    f"echo 'max-num-seqs: 4' >> /etc/vllm/{INSTANCE}.yaml": rf"FILE +/etc/vllm/{INSTANCE}.yaml is not what",
    f"echo VLLM_LOGGING_LEVEL=DEBUG >> /etc/vllm/{INSTANCE}.env": rf"FILE +/etc/vllm/{INSTANCE}.env is not what",
    "sed -i s/RestartSec=15/RestartSec=5/ /etc/systemd/system/vllm@.service": r"FILE +/etc/systemd/system/vllm@.service is not what",
    "rm /etc/sysctl.d/90-h20-fleet.conf": r"FILE +/etc/sysctl.d/90-h20-fleet.conf is not there",
    "sed -i s/1001/500/ /etc/apt/preferences.d/h20-fleet.pref": r"FILE +/etc/apt/preferences.d/h20-fleet.pref is not what",
    f"systemctl disable {UNIT}": rf"SERVICE +{re.escape(UNIT)} is not enabled",
}
#: What no deed does by itself: the process is older than what is on disk now.
FOLLOWS = rf"SERVICE +{re.escape(UNIT)} changed since the start: .*/etc/nccl.conf"


def drift() -> Run:
    return play("verify", "--tags", "drift")


@pytest.fixture(scope="module")
def drifted() -> Run:
    """What one run says after all of it."""
    for deed in DEEDS:
        shell(HOST, deed)
    return drift()


@pytest.mark.parametrize("line", [*DEEDS.values(), FOLLOWS])
def test_every_difference_is_named(drifted: Run, line: str) -> None:
    assert re.search(line, drifted.words), drifted.output


def test_the_exit_status_and_the_reports_tell_the_hosts_apart(drifted: Run) -> None:
    assert drifted.rc == 2
    assert f"{OTHER} no drift" in drifted.words
    reports = [json.loads((ROOT / f".testbed/reports/drift/{name}.json").read_text("utf-8")) for name in (HOST, OTHER)]
    assert [report["drift"] for report in reports] == [True, False]


def test_no_secret_is_in_the_report(drifted: Run) -> None:
    assert Api(HOST).key not in drifted.output
    assert Api(HOST).key not in (ROOT / f".testbed/reports/drift/{HOST}.json").read_text("utf-8")


def test_every_file_that_the_stages_have_marked_is_compared() -> None:
    """A file that a role writes and the comparison does not know would drift unseen."""
    marked = shell(OTHER, "grep -rl 'Managed by h20.fleet' /etc /usr/local").splitlines()
    report = json.loads((ROOT / f".testbed/reports/drift/{OTHER}.json").read_text("utf-8"))
    assert marked
    assert set(marked) <= set(report["compared"]["files"])


def test_one_run_of_the_site_takes_it_back(drifted: Run) -> None:
    assert drifted.rc == 2
    shell(HOST, f"rm {NEWER_KERNEL}")
    site = play("site", "--limit", HOST)
    assert site.rc == 0, site.output
    after = drift()
    assert after.rc == 0, after.output
    assert f"{HOST} no drift" in after.words
    assert Api(HOST).chat()
