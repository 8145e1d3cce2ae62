#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Have a replica answer in JSON of a given schema: the server lets the model write nothing else.

pip install openai
OPENAI_API_KEY=... python structured.py --base-url http://h20-01:8000/v1 "The driver was quick, the parcel was wet."
"""

from __future__ import annotations

import argparse

import openai

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "mixed"]},
        "complaint": {"type": "boolean"},
    },
    "required": ["sentiment", "complaint"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a customer's words, as JSON.")
    parser.add_argument("text")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="URL of the API (default %(default)s)")
    parser.add_argument("--model", default="deepseek-v3", help="name of the instance (default %(default)s)")
    options = parser.parse_args()

    answer = openai.OpenAI(base_url=options.base_url).chat.completions.create(
        model=options.model,
        messages=[
            {"role": "user", "content": f"What does this customer feel, and is it a complaint?\n\n{options.text}"}
        ],
        response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True}},
        temperature=0,
        max_tokens=200,
    )
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main()
