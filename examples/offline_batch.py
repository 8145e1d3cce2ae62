#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answer a file of prompts without a server, with the LLM class of the release that is installed on the host.

    sudo systemctl stop vllm@deepseek-v3          # the GPUs are free then
    sudo -u vllm env HOME=/var/lib/vllm /opt/vllm/current/bin/python offline_batch.py \
        --model /data/models/deepseek-ai/DeepSeek-V3-0324/current prompts.jsonl answers.jsonl

Both files have a JSON object a line: ``{"id": ..., "prompt": ...}`` in (without an id the number of the line counts), the same with ``text`` out. What
is answered already is not asked again, so the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import typing as t
from pathlib import Path

from tqdm import tqdm
from vllm import LLM, SamplingParams


def answered(path: Path) -> set[t.Any]:
    """The ids of the answers in a file; a last line that was cut off is taken away."""
    if not path.exists():
        return set()
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(whole), encoding="utf-8")
    return {json.loads(line)["id"] for line in whole}


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a file of prompts, and go on where it was stopped.")
    parser.add_argument("prompts", type=Path, help="file of prompts")
    parser.add_argument("answers", type=Path, help="file that the answers are added to")
    parser.add_argument("--model", required=True, help="folder of the weights")
    parser.add_argument("--tensor-parallel-size", type=int, default=8, help="GPUs that share the model (default 8)")
    parser.add_argument(
        "--max-model-len", type=int, default=8192, help="tokens of prompt and answer together (default 8192)"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of an answer at most (default 512)")
    parser.add_argument("--chunk", type=int, default=1024, help="prompts between two writes (default 1024)")
    parser.add_argument("--enforce-eager", action="store_true", help="start sooner, answer slower")
    options = parser.parse_args()

    lines = enumerate(options.prompts.read_text(encoding="utf-8").splitlines(), start=1)
    asked = [{"id": number} | json.loads(line) for number, line in lines if line.strip()]
    done = answered(options.answers)
    left = [entry for entry in asked if entry["id"] not in done]
    progress = tqdm(total=len(asked), initial=len(asked) - len(left), unit="prompt")
    if not left:
        return
    model = LLM(
        model=options.model,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=options.max_model_len,
        enforce_eager=options.enforce_eager,
    )
    sampling = SamplingParams(max_tokens=options.max_tokens)
    with options.answers.open("a", encoding="utf-8") as answers:
        for start in range(0, len(left), options.chunk):
            chunk = left[start : start + options.chunk]
            messages = [[{"role": "user", "content": entry["prompt"]}] for entry in chunk]
            outputs = model.chat(messages, sampling, use_tqdm=False)
            for entry, output in zip(chunk, outputs, strict=True):
                answers.write(json.dumps(entry | {"text": output.outputs[0].text}, ensure_ascii=False) + "\n")
            answers.flush()
            progress.update(len(chunk))


if __name__ == "__main__":
    main()
