#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answer a batch of prompts without a server, with the LLM class of the release that is installed on the host.

    sudo systemctl stop vllm@deepseek-v3          # the GPUs are free then
    sudo -u vllm env HOME=/var/lib/vllm /opt/vllm/current/bin/python offline_batch.py \
        --model /data/models/deepseek-ai/DeepSeek-V3-0324/current --tensor-parallel-size 8 < prompts.txt

Reads a prompt a line from standard input and prints a JSON object a line: ``{"prompt": ..., "text": ...}``.
"""

from __future__ import annotations

import argparse
import json
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer prompts from standard input, one a line.")
    parser.add_argument("--model", required=True, help="folder of the weights")
    parser.add_argument("--tensor-parallel-size", type=int, default=8, help="GPUs that share the model (default 8)")
    parser.add_argument(
        "--max-model-len", type=int, default=8192, help="tokens of prompt and answer together (default 8192)"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of an answer at most (default 512)")
    parser.add_argument("--enforce-eager", action="store_true", help="start sooner, answer slower")
    options = parser.parse_args()

    prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    model = LLM(
        model=options.model,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=options.max_model_len,
        enforce_eager=options.enforce_eager,
    )
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    for prompt, output in zip(
        prompts, model.chat(messages, SamplingParams(max_tokens=options.max_tokens)), strict=True
    ):
        print(json.dumps({"prompt": prompt, "text": output.outputs[0].text}, ensure_ascii=False))


if __name__ == "__main__":
    main()
