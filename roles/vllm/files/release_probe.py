# SPDX-License-Identifier: Apache-2.0
"""Run by a release's Python from standard input: import vLLM, run its command, and count the GPUs that torch sees, as one line of JSON.

The one argument is the target device. {"version": of the distribution, "command": what `vllm --version` says, "gpus": that the host has, "seen": by torch}.
The command is null for the target empty, whose vLLM finds no device to start for; the counts are null for any other than cuda. Ends with a traceback
where the import fails.
"""

import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

target = sys.argv[1]
# Beside the import: each takes its seconds. In place of a command that is not asked, one that ends at once.
command = [str(Path(sys.executable).with_name("vllm")), "--version"] if target != "empty" else ["true"]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
    importlib.import_module("vllm")

    gpus = seen = None
    if target == "cuda":
        import torch

        smi = shutil.which("nvidia-smi")
        listed = (
            subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=120, check=True).stdout if smi else ""
        )
        gpus = sum(line.startswith("GPU ") for line in listed.splitlines())
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    said = process.communicate()[0].strip().splitlines() or ["nothing"]
told = said[-1] if target != "empty" else None
print(json.dumps({"version": importlib.metadata.version("vllm"), "command": told, "gpus": gpus, "seen": seen}))
