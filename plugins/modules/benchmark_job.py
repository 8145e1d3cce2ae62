#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The host's part of a benchmark: see that it can be told what it measures, have it made by a unit, and take in the figures."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: benchmark_job
short_description: Have a replica measured by vLLM's own benchmark in a unit of systemd
version_added: 1.0.0
description:
  - Refuses a replica that does not serve, answers somebody else, or would refuse the requests; and a second benchmark on the host.
  - Starts the program that measures as a transient unit without rights, so that it outlives the connection; whoever asks for the same joins it.
  - All files lie below O(folder), which is of memory, and are deleted once the figures are taken in. Nothing on the host changes for good.
  - M(h20.fleet.benchmark_measurement) leads it through its steps.
options:
  step:
    description:
      - V(begin) judges the replica and starts the unit.
      - V(look) says how far it is, and takes in what a unit that has ended left.
    type: str
    choices: [begin, look]
    default: begin
  program:
    description: Text of the program that measures.
    type: str
    required: true
  url:
    description: Root URL of the API, without C(/v1).
    type: str
    required: true
  model:
    description: Name of the model in the API.
    type: str
    required: true
  instance:
    description: Instance of this host behind O(url), whose unit has to be active and whose key is used. Empty for anything else.
    type: str
    default: ""
  api_key:
    description: Key that the API wants, where O(instance) is empty; it is written to a file that root alone reads.
    type: str
    default: ""
  tokenizer:
    description: Folder of the tokenizer on this host. Empty for the one that the API names as the model's.
    type: str
    default: ""
  concurrencies:
    description: Requests that are in flight at once, a round each, in this order.
    type: list
    elements: int
    required: true
  requests:
    description: Requests of a round for each of those in flight.
    type: int
    required: true
  input_tokens:
    description: Tokens of each prompt.
    type: int
    required: true
  output_tokens:
    description: Tokens of each answer.
    type: int
    required: true
  timeout:
    description: Seconds that a round may take.
    type: int
    required: true
  while_serving:
    description: Whether to measure a replica that answers somebody else.
    type: bool
    default: false
  current:
    description: Symbolic link to the release that serves, whose vLLM measures.
    type: path
    default: /opt/vllm/current
  folder:
    description: Folder of the files of the benchmark.
    type: path
    default: /run/h20-fleet-benchmark
  user:
    description: Account that the benchmark runs as.
    type: str
    default: vllm
attributes:
  check_mode:
    description: Judges the replica and says that it would be measured.
    support: full
  diff_mode:
    description: Nothing stays, so there is no diff.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See how far the benchmark is
  h20.fleet.benchmark_job:
    step: look
    program: "{{ lookup('ansible.builtin.file', 'benchmark.py') }}"
    url: http://127.0.0.1:8000
    model: deepseek-v3
    instance: deepseek-v3
    concurrencies: [1, 16]
    requests: 4
    input_tokens: 1024
    output_tokens: 256
    timeout: 600
"""

RETURN = r"""
status:
  description: V(running) and V(ended) of the unit; V(due) where check mode would measure.
  returned: always
  type: str
said:
  description: What the unit has said so far.
  returned: always
  type: list
  elements: str
rounds:
  description: Figures of each round; of a unit that has ended.
  returned: always
  type: list
  elements: dict
vllm:
  description: Version of vLLM behind the URL; empty where it does not say.
  returned: V(step=begin)
  type: str
"""

import json
import pwd
import shutil
import typing as t
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.h20.fleet.plugins.module_utils import _benchmark, _jobs, _programs

UNIT = "h20-fleet-benchmark.service"
ANSWER_SECONDS = 30
#: Seconds that everything may take beside its rounds: vLLM is imported from a cold disk.
SLACK = 600
#: What tells one benchmark from another.
SAME = ("url", "model", "concurrencies", "requests", "input_tokens", "output_tokens", "timeout")

Document = dict[str, t.Any]


class RefusalError(Exception):
    """It cannot be measured; the text says why and what to do."""


def ask(url: str, key: str = "") -> bytes:
    """The answer to a GET; raises RefusalError where there is none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with open_url(url, headers=headers, timeout=ANSWER_SECONDS, use_proxy=False) as response:
            return t.cast(bytes, response.read())
    except HTTPError as error:
        error.close()
        remedy = "name the key in benchmark_api_key" if error.code in (401, 403) else "see what serves there"
        raise RefusalError(f"{url} answers HTTP {error.code} {error.reason} -> {remedy}") from error
    except (OSError, HTTPException) as error:
        raise RefusalError(
            f"{url} does not answer: {getattr(error, 'reason', error)} -> see what serves there"
        ) from error


def key_of(params: Document) -> str:
    """The key of the API: that of the instance's own environment, else the given one."""
    if not params["instance"]:
        return str(params["api_key"])
    path = Path("/etc/vllm") / f"{params['instance']}.env"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition("=")[2] for line in lines if line.startswith("VLLM_API_KEY=")), "")


def see_unit(instance: str) -> None:
    """Refuse an instance that does not serve."""
    unit = f"vllm@{instance}.service"
    state = _programs.run(["systemctl", "is-active", unit]).out.strip()
    if state != "active":
        raise RefusalError(f"{unit} is {state} -> start it, or run the stage: h20.fleet.site --tags vllm_service")


def see_others(metrics: bytes) -> None:
    """Refuse a replica that answers somebody: both would be the slower for it."""
    at_work = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0}
    for line in metrics.decode(errors="replace").splitlines():
        name = line.partition("{")[0]
        if name in at_work:
            at_work[name] += float(line.rpartition(" ")[2])
    if sum(at_work.values()):
        running, waiting = (int(number) for number in at_work.values())
        raise RefusalError(
            f"the replica answers somebody else: {running} requests run, {waiting} wait"
            " -> take it out of service first, or accept that both are slower: -e benchmark_while_serving=true"
        )


def model_of(params: Document, answer: bytes) -> Document:
    """What the API says of the model; refuses one that it does not have, and requests that it would refuse."""
    try:
        models = {str(entry["id"]): entry for entry in json.loads(answer)["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise RefusalError(
            f"{params['url']} does not answer as the OpenAI API does: {error!r} -> see what serves there"
        ) from error
    if params["model"] not in models:
        raise RefusalError(
            f"{params['url']} has no model {params['model']} -> name one of those that it has: {', '.join(models)}"
        )
    found: Document = models[params["model"]]
    wanted, longest = params["input_tokens"] + params["output_tokens"], found.get("max_model_len")
    if longest and wanted > longest:
        raise RefusalError(
            f"prompts of {params['input_tokens']} tokens with answers of {params['output_tokens']} are longer than max-model-len {longest}"
            " -> lower benchmark_input_tokens or benchmark_output_tokens"
        )
    return found


def metrics_of(params: Document) -> bytes:
    """The replica's metrics; nothing where a gateway does not hand them on."""
    try:
        return ask(f"{params['url']}/metrics")
    except RefusalError:
        if params["instance"]:
            raise
        return b""


def version_of(url: str) -> str:
    """The version that serves, "" where a gateway does not hand it on."""
    try:
        return str(json.loads(ask(f"{url}/version"))["version"])
    except (RefusalError, ValueError, KeyError, TypeError):
        return ""


class Job:
    """A benchmark on its way: its folder and its unit."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.params = module, module.params
        self.folder = Path(module.params["folder"])
        self.note, self.key = self.folder / "job.json", self.folder / "key.env"
        self.state = self.folder / "work" / "state.json"

    def is_running(self) -> bool:
        return _programs.run(["systemctl", "is-active", UNIT]).out.strip() in ("active", "activating", "deactivating")

    def is_same(self) -> bool:
        note = read(self.note)
        return all(note.get(name) == self.params[name] for name in SAME)

    def start(self, tokenizer: str, key: str) -> None:
        """Write the files, whatever another benchmark has left, and start the unit."""
        params = self.params
        shutil.rmtree(self.folder, ignore_errors=True)
        work, program = self.state.parent, self.folder / "benchmark.py"
        work.mkdir(parents=True)
        self.folder.chmod(0o755)
        program.write_text(params["program"], encoding="utf-8")
        self.key.touch(mode=0o600)
        self.key.write_text(f"VLLM_API_KEY={key}\n", encoding="utf-8")
        job = {name: params[name] for name in SAME} | {"tokenizer": tokenizer, "state": str(self.state)}
        self.note.write_text(json.dumps(job), encoding="utf-8")
        for path in (program, self.note):
            path.chmod(0o644)
        account = pwd.getpwnam(params["user"])
        shutil.chown(work, account.pw_uid, account.pw_gid)
        work.chmod(0o700)
        limit = 2 * len(params["concurrencies"]) * params["timeout"] + SLACK
        properties = [
            "Type=exec",
            f"User={params['user']}",
            f"RuntimeMaxSec={limit}",
            "KillMode=control-group",
            "Nice=5",
        ]
        properties += [
            f"EnvironmentFile={self.key}",
            "ProtectSystem=strict",
            f"ReadWritePaths={work}",
            "PrivateTmp=yes",
            "NoNewPrivileges=yes",
        ]
        command = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--description=Benchmark a replica of vLLM"]
        command += [f"--property={entry}" for entry in properties]
        answer = _programs.run([*command, f"{params['current']}/bin/python", "-B", str(program), str(self.note)])
        if answer.error:
            self.delete()
            raise RefusalError(f"the benchmark cannot be started: {answer.error} -> systemctl status {UNIT}")

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def look(self) -> Document:
        """How far it is; of a unit that has ended the figures, or why there are none."""
        running = self.is_running()
        state = read(self.state)
        found: Document = {"status": "running" if running else "ended", "said": state.get("said", []), "rounds": []}
        if running:
            return found
        self.delete()
        if not state.get("done"):
            failure = _jobs.failure(self.module, UNIT)
            last = next((line for line in reversed(failure.journal) if line.strip()), "it said nothing")
            why = state.get("error") or failure.reason or f"the benchmark was ended: {last} -> run it again"
            raise RefusalError(why)
        return found | {"rounds": [_benchmark.figures(entry) for entry in state["rounds"]]}


def read(path: Path) -> Document:
    """A document, {} where there is none that can be used."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def begin(module: AnsibleModule, job: Job) -> Document:
    """Judge, and start or join."""
    params = module.params
    numbers = {name: params[name] for name in ("requests", "input_tokens", "output_tokens", "timeout")}
    if not params["concurrencies"] or min(*params["concurrencies"], *numbers.values()) < 1:
        raise RefusalError(
            f"concurrencies {params['concurrencies']} with {numbers}: there is nothing to measure -> set each to at least 1"
        )
    if not (Path(params["current"]) / "bin/vllm").exists():
        raise RefusalError(f"{params['current']}/bin/vllm is not there -> run the stages first: h20.fleet.site")
    if params["instance"]:
        see_unit(params["instance"])
    running = job.is_running()
    if running and not job.is_same():
        other = read(job.note)
        named = f" (of {other['model']} at {other['url']})" if other else ""
        raise RefusalError(
            f"another benchmark runs on this host{named} -> wait for it, or end it: systemctl stop {UNIT}"
        )
    key = key_of(params)
    model = model_of(params, ask(f"{params['url']}/v1/models", key))
    tokenizer = params["tokenizer"] or str(model.get("root") or "")
    if not Path(tokenizer).is_dir():
        raise RefusalError(
            f"there is no folder {tokenizer or 'of a tokenizer'} on this host -> name one in benchmark_tokenizer"
        )
    if not running and not params["while_serving"]:
        see_others(metrics_of(params))
    result: Document = {"said": [], "rounds": [], "vllm": version_of(params["url"])}
    if module.check_mode:
        return result | {"status": "due"}
    if not running:
        job.start(tokenizer, key)
    return result | {"status": "running"}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["begin", "look"], "default": "begin"},
            "program": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "instance": {"type": "str", "default": ""},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "tokenizer": {"type": "str", "default": "", "no_log": False},
            "concurrencies": {"type": "list", "elements": "int", "required": True},
            "requests": {"type": "int", "required": True},
            "input_tokens": {"type": "int", "required": True, "no_log": False},
            "output_tokens": {"type": "int", "required": True, "no_log": False},
            "timeout": {"type": "int", "required": True},
            "while_serving": {"type": "bool", "default": False},
            "current": {"type": "path", "default": "/opt/vllm/current"},
            "folder": {"type": "path", "default": "/run/h20-fleet-benchmark"},
            "user": {"type": "str", "default": "vllm"},
        },
        supports_check_mode=True,
    )
    job = Job(module)
    try:
        found = job.look() if module.params["step"] == "look" else begin(module, job)
    except RefusalError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
