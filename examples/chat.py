#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask a replica for a chat completion through the OpenAI client, and print the answer as it comes.

pip install openai
OPENAI_API_KEY=... python chat.py --base-url http://h20-01:8000/v1 --model deepseek-v3 "What is tensor parallelism?"
"""

from __future__ import annotations

import argparse

import openai


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a replica for a chat completion.")
    parser.add_argument("question")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="URL of the API (default %(default)s)")
    parser.add_argument("--model", default="deepseek-v3", help="name of the instance (default %(default)s)")
    parser.add_argument(
        "--max-tokens", type=int, default=1000, help="tokens of the answer at most (default %(default)s)"
    )
    options = parser.parse_args()

    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": options.question}]
    client = openai.OpenAI(base_url=options.base_url)
    stream = client.chat.completions.create(
        model=options.model, messages=messages, max_tokens=options.max_tokens, temperature=0.7, stream=True
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
