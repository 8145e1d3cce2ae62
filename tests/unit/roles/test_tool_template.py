# SPDX-License-Identifier: Apache-2.0
"""The chat template for tool calls of DeepSeek-V3: rendered as transformers does, read back as vLLM's parser does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = ROOT / "roles/vllm_service/files/deepseek_v3_tools.jinja"

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
#: As in vllm/tool_parsers/deepseekv3_tool_parser.py, the same in 0.26.0, 0.32.0 and 0.33.0.
CALL = re.compile(
    r"<｜tool▁call▁begin｜>(?P<type>.*)<｜tool▁sep｜>(?P<function_name>.*)\n```json\n(?P<function_arguments>.*)\n```<｜tool▁call▁end｜>"
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "天气 <now>",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Weather in Paris?"}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [call("weather", {"city": "Paris"}), call("time", '{"zone": "CET"}')],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "weather", "content": "18 °C"},
    {"role": "tool", "tool_call_id": "time", "content": "9"},
]
ANSWER = {"role": "assistant", "content": "18 °C."}


def render(messages: list[dict[str, Any]], prompt: bool = True, **more: Any) -> str:
    """As transformers/utils/chat_template_utils.py renders a template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(messages=messages, add_generation_prompt=prompt, bos_token=BOS, eos_token=EOS, **more)


def test_without_tools_it_is_the_model_s_own_format() -> None:
    assert render([SYSTEM, QUESTION]) == f"{BOS}Be brief.<｜User｜>Weather in Paris?<｜Assistant｜>"
    assert render([QUESTION, ANSWER, QUESTION]) == (
        f"{BOS}<｜User｜>Weather in Paris?<｜Assistant｜>18 °C.{EOS}<｜User｜>Weather in Paris?<｜Assistant｜>"
    )
    assert render([QUESTION], prompt=False) == f"{BOS}<｜User｜>Weather in Paris?"


@pytest.mark.parametrize("messages", [[SYSTEM, QUESTION], [QUESTION]], ids=["system", "no system"])
def test_the_tools_stand_in_the_system_prompt(messages: list[dict[str, Any]]) -> None:
    text = render(messages, tools=TOOLS)
    system, _user, rest = text.partition("<｜User｜>")
    assert rest == "Weather in Paris?<｜Assistant｜>"
    assert json.dumps(TOOLS[0]["function"], ensure_ascii=False) in system.splitlines()
    [shown] = CALL.findall(system)
    assert shown[:2] == ("function", "NAME"), "the form that the model is asked for is the one that the parser reads"
    json.loads(shown[2])


def test_calls_read_back_as_the_parser_reads_them() -> None:
    text = render([QUESTION, CALLS], prompt=False)
    calls = text.removeprefix(f"{BOS}<｜User｜>Weather in Paris?<｜Assistant｜>")
    assert calls.startswith("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function")
    assert calls.endswith(f"<｜tool▁call▁end｜><｜tool▁calls▁end｜>{EOS}")
    assert [(kind, name, json.loads(arguments)) for kind, name, arguments in CALL.findall(calls)] == [
        ("function", "weather", {"city": "Paris"}),
        ("function", "time", {"zone": "CET"}),
    ]


def test_the_model_goes_on_right_after_the_results() -> None:
    results = (
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>18 °C<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>9<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )
    asked: list[dict[str, Any]] = [QUESTION, CALLS, *RESULTS]
    assert render(asked).endswith(f"{EOS}{results}")
    assert render([*asked, ANSWER]).endswith(f"{results}18 °C.{EOS}<｜Assistant｜>")
    assert render([*asked, QUESTION]).endswith(f"{results}<｜User｜>Weather in Paris?<｜Assistant｜>")
    assert render([*asked, ANSWER, QUESTION, CALLS, RESULTS[0]]).endswith(
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>18 °C<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )


def test_content_before_calls_is_kept() -> None:
    text = render([QUESTION, CALLS | {"content": "I look."}], prompt=False)
    assert "<｜Assistant｜>I look.<｜tool▁calls▁begin｜>" in text
