# SPDX-License-Identifier: Apache-2.0
"""acceptance.py: what it makes of samples, how it reads, how it ends what hangs; the real thing on the CPU where torch is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from unit.plugins.support import write_program

PROGRAM = Path(__file__).parents[3] / "roles/acceptance/files/acceptance.py"
sys.path.insert(0, str(PROGRAM.parent))
acceptance: Any = importlib.import_module(PROGRAM.stem)

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed here")
SMI = "print('0, GPU-a, 1200, 88, 350.5, 0x0000000000000048'); print('1, GPU-b, 345, [N/A], [N/A], 0x0000000000000001')"
#: Folders of a test are closed to others.
USER = pwd.getpwuid(os.geteuid()).pw_name


def test_a_line_of_nvidia_smi_says_clock_heat_power_and_reasons() -> None:
    known = acceptance.gpu_state("3, GPU-x, 1410, 71, 402.31, 0x00000000000000A4")
    assert (known["index"], known["clock"], known["temperature"], known["power_w"]) == (3, 1410.0, 71.0, 402.31)
    assert known["reasons"] == ["sw_power_cap", "sw_thermal_slowdown", "hw_power_brake_slowdown"]
    untold = acceptance.gpu_state("0, GPU-x, [N/A], [N/A], [N/A], [N/A]")
    assert (untold["clock"], untold["temperature"], untold["power_w"], untold["reasons"]) == (None, None, None, [])


def test_the_first_quarter_of_the_samples_warms_up_and_an_idle_gpu_has_no_clock_under_load() -> None:
    def state(clock: float, *reasons: str, uuid: str = "a") -> dict[str, Any]:
        return {
            "index": 0,
            "uuid": uuid,
            "clock": clock,
            "temperature": clock / 20,
            "power_w": 300.0,
            "reasons": list(reasons),
        }

    samples = [
        [state(345, "gpu_idle"), state(345, "gpu_idle", uuid="b")],
        *([[state(1400, "sw_power_cap"), state(345, "gpu_idle", uuid="b")]] * 3),
    ]
    busy, idle = acceptance.summarise(samples)
    assert (busy["clock_mhz"], busy["temperature"], busy["reasons"]) == (1400, 70.0, {"sw_power_cap": 1.0})
    assert (idle["clock_mhz"], idle["clock"]) == (None, 345)


def run(folder: Path, *arguments: str, torch: str = "") -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the program as the unit does, with a torch that runs the body; its document, {} where it wrote none."""
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    if torch:
        (folder / "torch").mkdir()
        (folder / "torch/__init__.py").write_text(torch, encoding="utf-8")
        environment |= {"PYTHONPATH": str(folder)}
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "model.safetensors").write_bytes(os.urandom(6 * 1024 * 1024 + 5))
    output = folder / "output.json"
    command = [sys.executable, str(PROGRAM), "--gpus=2", "--backend=cpu", f"--model={model}", f"--output={output}"]
    command += ["--load-seconds=1", "--disk-seconds=2", "--dcgm-timeout=2", f"--user={USER}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    return done, json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}


def programs(folder: Path, dcgmi: str = "print('{}')") -> None:
    write_program(folder / "bin/nvidia-smi", SMI)
    write_program(folder / "bin/dcgmi", f"import time\n{dcgmi}")


def test_a_part_that_fails_says_why_and_the_others_are_measured(tmp_path: Path) -> None:
    programs(tmp_path, "print(ARGUMENTS); sys.exit(226)")
    done, document = run(tmp_path, torch="raise ImportError('libcuda.so.1 is missing')")
    assert done.returncode == 0, done.stderr
    assert document["copies"] == document["load"] == {"error": "ImportError: libcuda.so.1 is missing"}
    assert (document["dcgm"]["status"], document["dcgm"]["hung"]) == (226, False)
    assert "['diag', '-r', '2', '--json']" in document["dcgm"]["output"]
    assert document["disk"]["gb_s"] > 0
    assert document["disk"]["bytes"] >= 6 * 1024 * 1024 + 5
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["dcgmi", "read", "done"]


def test_a_diagnosis_that_hangs_is_killed_and_is_no_error(tmp_path: Path) -> None:
    programs(tmp_path, "(HERE / 'pid').write_text(str(__import__('os').getpid())); time.sleep(600)")
    begun = time.monotonic()
    _done, document = run(tmp_path, torch="raise ImportError('x')")
    assert (document["dcgm"]["hung"], document["dcgm"]["timeout"]) == (True, 2)
    assert time.monotonic() - begun < 60
    pid = int((tmp_path / "bin/pid").read_text(encoding="utf-8"))
    assert not Path(f"/proc/{pid}").exists()


def test_a_dcgm_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_program(tmp_path / "bin/nvidia-smi", SMI)
    _done, document = run(tmp_path, torch="raise ImportError('x')")
    assert (document["dcgm"]["status"], document["dcgm"]["output"]) == (
        127,
        "dcgmi cannot be run: No such file or directory",
    )


def test_gpus_that_hang_are_ended_with_all_that_drives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "pid"
    (tmp_path / "torch").mkdir()
    body = f"import os, pathlib, time\npathlib.Path({str(seen)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    (tmp_path / "torch/__init__.py").write_text(body, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("STARTUP", "SLACK"):
        monkeypatch.setattr(acceptance, name, 0)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "x",
            "--gpus=1",
            "--backend=cpu",
            f"--model={tmp_path}",
            f"--output={tmp_path / 'o'}",
            "--load-seconds=1",
            f"--user={USER}",
        ],
    )
    document = acceptance.gpus(acceptance.parse(sys.argv[1:]))
    assert document["load"] == {"error": "it did not end in time and was killed"}
    assert not Path(f"/proc/{seen.read_text(encoding='utf-8')}").exists()


def test_weights_that_are_not_there_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(sys, "argv", ["x", "--gpus=1", f"--model={empty}", f"--output={tmp_path / 'o'}"])
    assert acceptance.disk(acceptance.parse(sys.argv[1:])) == {"error": f"{empty} has no file that could be read"}


@pytest.mark.parametrize(
    "arguments",
    [[], ["--gpus=0", "--model=/", "--output=/x"], ["--gpus=1", "--model=/", "--output=/x", "--backend=hip"]],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        acceptance.main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


@needs_torch
def test_copies_and_load_on_the_cpu(tmp_path: Path) -> None:
    programs(tmp_path)
    _done, document = run(tmp_path)
    for way in ("host_to_gpu", "gpu_to_host"):
        assert len(document["copies"][way]["each"]) == 2
        assert min(*document["copies"][way]["each"], document["copies"][way]["together"]) > 0
    load = document["load"]
    assert (len(load["tflops"]), [gpu["uuid"] for gpu in load["gpus"]]) == (2, ["GPU-a", "GPU-b"])
    assert load["gpus"][0]["reasons"] == {"hw_slowdown": 1.0, "hw_thermal_slowdown": 1.0}
