#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Let a replica call a function of this program, give it the result, and print what it makes of it.

pip install openai
OPENAI_API_KEY=... python tools.py --base-url http://h20-01:8000/v1 "What time is it in Shanghai?"

The instance needs ``tool_calls: true``. Whether it calls is the model's choice; --force leaves it none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import typing as t
import zoneinfo

import openai

ZONES = ["Asia/Shanghai", "Europe/Berlin", "UTC"]
TOOLS: t.Any = [
    {
        "type": "function",
        "function": {
            "name": "time_in",
            "description": "The time of day in a time zone.",
            "strict": True,  # the server then lets the model write no other arguments than these
            "parameters": {
                "type": "object",
                "properties": {"zone": {"type": "string", "enum": ZONES}},
                "required": ["zone"],
                "additionalProperties": False,
            },
        },
    }
]


def time_in(zone: str) -> str:
    return f"{datetime.datetime.now(zoneinfo.ZoneInfo(zone)):%H:%M}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a question that takes a look at the clock.")
    parser.add_argument("question")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="URL of the API (default %(default)s)")
    parser.add_argument("--model", default="deepseek-v3", help="name of the instance (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=500, help="tokens of an answer at most (default %(default)s)")
    parser.add_argument("--force", action="store_true", help="make the model call the function")
    options = parser.parse_args()

    client = openai.OpenAI(base_url=options.base_url)
    settings: dict[str, t.Any] = {"model": options.model, "max_tokens": options.max_tokens, "temperature": 0}
    choice: t.Any = {"type": "function", "function": {"name": "time_in"}} if options.force else "auto"
    messages: t.Any = [{"role": "user", "content": options.question}]
    answer = client.chat.completions.create(messages=messages, tools=TOOLS, tool_choice=choice, **settings)
    message = answer.choices[0].message
    if message.tool_calls:
        messages.append({"role": "assistant", "content": message.content, "tool_calls": message.tool_calls})
        for call in message.tool_calls:
            result = time_in(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        message = client.chat.completions.create(messages=messages, **settings).choices[0].message
    print(message.content)


if __name__ == "__main__":
    main()
