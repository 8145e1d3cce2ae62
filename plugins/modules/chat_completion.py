#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ask an OpenAI compatible API for a chat completion."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: chat_completion
short_description: Prove a replica by a real chat completion
version_added: 1.0.0
description:
  - Sends one chat completion and fails where the API does not answer, refuses, or answers without a token.
  - C(/health) of an engine that hangs still says that all is well; a completion does not.
options:
  url:
    description: Root URL of the API, without C(/v1).
    type: str
    required: true
  model:
    description: Name of the model, which is that of the instance.
    type: str
    required: true
  prompt:
    description: Text of the user's message.
    type: str
    default: Are you there?
  max_tokens:
    description: Most tokens of the answer.
    type: int
    default: 8
  api_key:
    description: Key that the API wants; empty for none.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for the answer.
    type: int
    default: 120
extends_documentation_fragment: [h20.fleet.attributes.read_only]
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Ask the replica
  h20.fleet.chat_completion:
    url: http://127.0.0.1:8000
    model: deepseek-v3
    api_key: "{{ vault_vllm_api_key }}"
"""

RETURN = r"""
text:
  description: Text of the answer.
  returned: success
  type: str
tokens:
  description: Tokens of the answer.
  returned: success
  type: int
"""

import json
import typing as t
from http.client import HTTPException
from urllib.error import HTTPError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url


class CompletionError(Exception):
    """The API did not complete; the text says what it did."""


def complete(params: dict[str, t.Any]) -> tuple[str, int]:
    """Text of the answer and number of its tokens; raises CompletionError."""
    url = f"{params['url'].rstrip('/')}/v1/chat/completions"
    body = {
        "model": params["model"],
        "messages": [{"role": "user", "content": params["prompt"]}],
        "max_tokens": params["max_tokens"],
    }
    headers = {"Content-Type": "application/json"}
    if params["api_key"]:
        headers["Authorization"] = f"Bearer {params['api_key']}"
    try:
        with open_url(
            url, data=json.dumps(body), headers=headers, method="POST", timeout=params["timeout"], use_proxy=False
        ) as response:
            answer = json.load(response)
        text, tokens = answer["choices"][0]["message"]["content"] or "", int(answer["usage"]["completion_tokens"])
    except HTTPError as error:
        raise CompletionError(f"{url} answers HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise CompletionError(f"{url} does not answer: {getattr(error, 'reason', error)}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CompletionError(f"{url} does not answer as the OpenAI API does: {error!r}") from error
    if tokens < 1:
        raise CompletionError(f"{url} answers without a token")
    return text, tokens


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "prompt": {"type": "str", "default": "Are you there?"},
            "max_tokens": {"type": "int", "default": 8, "no_log": False},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        text, tokens = complete(module.params)
    except CompletionError as error:
        module.fail_json(
            msg=f"{error} -> journalctl --unit vllm@{module.params['model']}.service, then restart that unit"
        )
    module.exit_json(changed=False, text=text, tokens=tokens)


if __name__ == "__main__":
    main()
