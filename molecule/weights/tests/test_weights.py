# SPDX-License-Identifier: Apache-2.0
"""Weights from every kind of source and under every fault, on hosts alone and in a site of four: the right bytes, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import re
import signal
import typing as t

import pytest
from conftest import on_console, play, shell, start
from testbed import hub
from testbed.hub.server import s3
from weights import (
    DISK,
    GATED,
    HOSTS,
    HTTP,
    HUB,
    INVENTORY,
    MIB,
    MODELS,
    MODELSCOPE,
    NEXT,
    PATH,
    PUBLIC,
    RELEASES,
    S3,
    SHARDED,
    SMALL,
    address_of,
    bytes_flow,
    carry,
    control,
    counts,
    destination,
    fetch_model,
    fill,
    flip,
    found,
    hub_with,
    inventory,
    kill,
    lock_disk,
    make_room,
    reboot,
    reset,
    sent_to,
    told,
    unlock_disk,
    until,
)

Act = t.Callable[[str], None]
#: A shard of each model, as faults name it: where it is asked for as where its bytes flow.
SHARD = "*model-00002-of*"


def nothing(_host: str) -> None:
    """Do nothing."""


def carried(target: str, *, wrong: str = "", lost: str = "") -> Act:
    """A revision that is on the host in advance; one of its files is wrong, another is lost."""

    def act(host: str) -> None:
        carry(host, target, SHARDED if SHARDED.commit in target else GATED)
        if wrong:
            flip(host, f"{target}/{wrong}", unseen=False)
        if lost:
            shell(host, f"rm {target}/{lost}")

    return act


@dataclasses.dataclass(frozen=True)
class Case:
    """One host's fate: its sources, what goes wrong there and at the hub, and how it ends: right, or with a refusal that `says` something.

    Cases of one wave run at once, each on a host of its own; faults strike that host alone. `before` acts on the host in advance, `during` when
    bytes flow. What is refused has to come right by the same command once the fault is over: `after` ends it, `variables` stay as they were if they
    `stay`.
    """

    wave: str
    sources: tuple[dict[str, str], ...] = (HUB,)
    faults: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    says: tuple[str, ...] = ()
    most: float = 1.01  # how often the hub may send the model to this host
    gives: str = ""  # what has to have given bytes, by a pattern for paths
    variables: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    stay: bool = False
    before: Act = nothing
    during: Act = nothing
    after: Act = nothing

    @property
    def slow(self) -> bool:
        """Whether bytes have to come slowly, so that there is a middle."""
        return self.during is not nothing


#: What all hosts of a wave share: release, distribution.
WAVES: dict[str, tuple[str, str]] = {
    "sources": ("gated", "source"),
    "more sources": ("gated", "source"),
    "a shared filesystem": ("gated", "shared"),
    "faults that pass": ("gated", "source"),
    "faults of the content": ("gated", "source"),
    "faults that stay": ("gated", "source"),
    "sources in turn": ("gated", "source"),
    "other revisions": ("sharded", "source"),
    "troubles of hosts": ("sharded", "source"),
}
SILENT = {"kind": "silent", "seconds": 600}
HANG = {"kind": "hang", "seconds": 600}
SECOND = "model-00002-of-000002.safetensors"
THIRD = "model-00003-of-000012.safetensors"  # differs between the revisions

CASES: dict[str, Case] = {
    # Every kind of source.
    "s3": Case("sources", (S3,)),
    "hub": Case("sources", (HUB,)),
    "modelscope": Case("sources", (MODELSCOPE,)),
    "plain files": Case("sources", (HTTP,)),
    "the site's hub, where no sources are named": Case("more sources", ()),
    "s3 for anybody": Case("more sources", (PUBLIC,), variables={"fleet_s3_access_key": "", "fleet_s3_secret_key": ""}),
    "a disk": Case("more sources", (PATH,), before=carried(f"{DISK}/{GATED.repo}/{GATED.commit}"), most=0),
    "a disk with nothing but the files": Case("more sources", (PATH,), before=carried(DISK), most=0),
    # A shared filesystem is proved, and never written.
    "shared": Case("a shared filesystem", before=carried(destination(GATED)), most=0),
    "shared, with a wrong byte": Case(
        "a shared filesystem",
        before=carried(destination(GATED), wrong="config.json"),
        says=("config.json", "shared"),
        most=0,
    ),
    "shared, with a file missing": Case(
        "a shared filesystem",
        before=carried(destination(GATED), lost="config.json"),
        says=("config.json", "shared"),
        most=0,
    ),
    "shared, and not mounted": Case("a shared filesystem", says=(destination(GATED),), most=0),
    # What passes is waited for, and what is there is not fetched again.
    "hang": Case("faults that pass", faults={SHARD: HANG | {"count": 1}}),
    "cut": Case("faults that pass", faults={SHARD: {"kind": "cut", "bytes": MIB, "count": 3}}),
    "429 with Retry-After": Case("faults that pass", faults={SHARD: {"kind": "429", "retry_after": 8, "count": 1}}),
    "500, and 503 with Retry-After": Case(
        "faults that pass",
        faults={
            SHARD: {"kind": "500", "retry_after": 0, "count": 2},
            "*model-00001-of*": {"kind": "503", "retry_after": 3, "count": 2},
        },
    ),
    "wrong bytes, once": Case("faults of the content", faults={SHARD: {"kind": "corrupt", "count": 1}}, most=1.51),
    "an expired redirect": Case("faults of the content", faults={SHARD: {"kind": "expired", "count": 2}}),
    "no answer, once": Case("faults of the content", faults={SHARD: SILENT | {"count": 1}}),
    "small files cut, which know no ranges": Case(
        "faults of the content", (MODELSCOPE,), faults={"*config.json": {"kind": "cut", "bytes": 9, "count": 2}}
    ),
    # What stays is refused by the names of file and source.
    "wrong bytes, always": Case(
        "faults that stay", faults={SHARD: "corrupt"}, says=(SECOND, "hub http://hub.test", "sha256"), most=2.1
    ),
    "wrong size": Case(
        "faults that stay", faults={SHARD: {"kind": "wrong_size", "bytes": 7}}, says=(SECOND, "the manifest says")
    ),
    "missing file": Case("faults that stay", faults={SHARD: "missing"}, says=(SECOND, "404")),
    "disk that fills up": Case(
        "faults that stay",
        variables={"fleet_model_root": SMALL},
        stay=True,
        during=fill,
        after=make_room,
        says=("No space left", SMALL),
    ),
    # Another source takes over, in the middle of a file where need be.
    "hang, then another source": Case(
        "sources in turn", (HUB, S3), faults={f"/cdn{SHARD}": HANG}, gives=f"/{s3.PRIVATE}/{SHARD}"
    ),
    "missing here, there elsewhere": Case(
        "sources in turn", (HUB, HTTP), faults={f"*/resolve{SHARD}": "missing"}, gives=f"/files/{SHARD}"
    ),
    "the wrong key": Case(
        "sources in turn", (S3,), variables={"fleet_s3_secret_key": "stolen"}, says=(S3["url"], "403"), most=0
    ),
    "the wrong token": Case(
        "sources in turn", (HUB,), variables={"fleet_hub_token": "stolen"}, says=(HUB["url"], "401"), most=0
    ),
    "a branch that moved on": Case(
        "other revisions", (MODELSCOPE,), faults={"*": "revised"}, says=("the manifest says",), most=1.3
    ),
    "a branch that moved on, and another source": Case(
        "other revisions", (MODELSCOPE, HTTP), faults={"*/repo/*": "revised"}, most=1.3, gives=f"/files/*/{THIRD}"
    ),
    "weights that lie there, with a wrong byte": Case(
        "other revisions", before=carried(destination(SHARDED), wrong=THIRD), most=0.1
    ),
    "no answer, ever": Case("other revisions", faults={f"*{SECOND[:11]}*": SILENT}, says=("hub http://hub.test",)),
    # Hosts have troubles of their own.
    # What was under way to a process that dies is sent again, no more.
    "kill -9": Case("troubles of hosts", during=kill, most=1.1),
    "power cut": Case("troubles of hosts", during=reboot, most=1.1),
    "read-only disk": Case("troubles of hosts", before=lock_disk, after=unlock_disk, says=(MODELS, "ead-only"), most=0),
    "full disk": Case("troubles of hosts", variables={"fleet_model_root": SMALL}, says=(SMALL, "GiB"), most=0),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: at the end of the first run, and of the same command again where that refused."""

    failed: bool
    told: str
    files: dict[str, str]
    sent: int
    gave: frozenset[str]  # paths of the hub that gave bytes, to whomever
    again: dict[str, str]
    sent_again: int
    output: str


def is_done(host: str) -> bool:
    """Whether no fetch is at work; a host that boots just now has one before it."""
    active = on_console(host, "systemctl", "list-units", "--all", "--plain", "--no-legend", "model-fetch@*")
    return on_console(host, "systemctl", "is-system-running").strip() in {"running", "degraded"} and not re.search(
        r"\b(activating|active|auto-restart)\b", active
    )


@functools.cache
def outcomes(wave: str) -> dict[str, Outcome]:
    """Run the cases of a wave, and once more what was refused, with nothing in its way any more."""
    release, distribution = WAVES[wave]
    tree = RELEASES[release]
    cases = {name: case for name, case in CASES.items() if case.wave == wave}
    hosts = dict(zip(cases, HOSTS, strict=True))
    faults: dict[str, t.Any] = {}
    variables: dict[str, dict[str, t.Any]] = {}
    for name, case in cases.items():
        address = address_of(hosts[name])
        reset(hosts[name])
        case.before(hosts[name])
        faults |= {f"{address}{pattern}": fault for pattern, fault in case.faults.items()}
        faults |= {f"{address}*": {"kind": "rate", "bytes": tree.size // 8}} if case.slow else {}
        sources = {"fleet_model_sources": list(case.sources)} if case.sources else {}
        variables[hosts[name]] = sources | dict(case.variables)
    common = {"fleet_release": release, "model_distribution": distribution}
    with hub_with(faults):
        with start("fetch_model", *inventory(wave, common, variables), inventory=INVENTORY) as process:
            for name, case in cases.items():
                if case.slow:
                    until(f"{name}: bytes flow", bytes_flow(hosts[name], tree.size // 4))
                    case.during(hosts[name])
            output, _none = process.communicate(timeout=300)
        for name, case in cases.items():
            if case.slow:  # what was cut off may come to its end without the controller
                until(f"{name}: it is done", lambda host=hosts[name]: is_done(host))  # type: ignore[misc]
        sent = {name: sent_to(host) for name, host in hosts.items()}
        gave = frozenset(path for path, given in control("stats")["paths"].items() if given["bytes"])
    roots = {name: case.variables.get("fleet_model_root", MODELS) for name, case in cases.items()}
    files = {name: found(host, destination(tree, roots[name])) for name, host in hosts.items()}
    again = {name: (hosts[name], roots[name] if case.stay else MODELS) for name, case in cases.items() if case.says}
    mended: dict[str, dict[str, str]] = {}
    if again and distribution != "shared":
        for name, (host, _root) in again.items():
            cases[name].after(host)
            if not cases[name].stay:
                variables[host] = {"fleet_model_sources": [HTTP]}
        limit = ",".join(host for host, _root in again.values())
        with hub_with({}):
            run = fetch_model(*inventory(f"{wave}, again", common, variables), "--limit", limit)
            assert run.rc == 0, run.output
        mended = {name: found(host, destination(tree, root)) for name, (host, root) in again.items()}
    late = {name: sent_to(host) for name, host in hosts.items()}
    return {
        name: Outcome(
            counts(output, host)["failed"] > 0,
            told(output, host),
            files[name],
            sent[name],
            gave,
            mended.get(name, {}),
            late[name],
            output,
        )
        for name, host in hosts.items()
    }


def test_check_mode_on_a_host_that_has_nothing_leaves_nothing() -> None:
    """First of all: later a host has packages, an account and a program."""
    places = f"{MODELS} /usr/local/lib/h20-fleet /var/lib/model-fetch /etc/h20-fleet"
    traces = f"ls -d {places} 2>/dev/null || true; getent passwd model-fetch || true; dpkg-query --list | wc -l"
    before = {host: shell(host, traces) for host in HOSTS}
    run = fetch_model(*inventory("virgin", {"fleet_release": "gated"}, {}), "--check", "--diff")
    assert run.rc == 0, run.output
    assert {host: shell(host, traces) for host in HOSTS} == before
    assert sent_to(*HOSTS) == 0
    assert [secret for secret in (hub.TOKEN, s3.SECRET_KEY) if secret in run.output] == []


@pytest.mark.parametrize("name", CASES)
def test_every_case_ends_in_the_right_bytes_or_in_a_refusal_that_says_why(name: str) -> None:
    case = CASES[name]
    outcome = outcomes(case.wave)[name]
    release, distribution = WAVES[case.wave]
    tree = RELEASES[release]
    assert outcome.failed == bool(case.says), outcome.output
    assert outcome.sent <= case.most * tree.size
    assert not case.gives or fnmatch.filter(outcome.gave, case.gives), outcome.gave
    if not case.says:
        assert outcome.files == tree.digests
        return
    assert [words for words in (*case.says, "->") if words not in outcome.told] == [], outcome.told
    if distribution != "shared":
        assert outcome.files == {}
        assert outcome.again == tree.digests
        if case.most:  # what was right before the refusal is not fetched twice
            assert outcome.sent + outcome.sent_again <= (case.most + 0.6) * tree.size


# One site.

STRANGER = "weights-mirror"
CONNECTS = """\
import socket, sys
for port in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""
PORT, PORTS = 8481, 11  # exchange, files, tracker, and one a process of the eight
#: Worded so that the command that searches does not find itself.
SECRETS = (f"{hub.TOKEN[:-1]}[{hub.TOKEN[-1]}]", f"{s3.SECRET_KEY[:-1]}[{s3.SECRET_KEY[-1]}]")
PLACES = "/etc /usr/local /var/lib/model-fetch /var/lib/h20-fleet /run /tmp /var/tmp /var/log /data/models"
#: The environment is root's and the account's own, so there they are found: it shows that the search is good.
LEAKS = {
    "list of processes": "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '{secret}' || true",
    "journal": "journalctl --no-pager | grep -c '{secret}' || true",
    "units": "systemctl show 'model-fetch@*' | grep -c '{secret}' || true",
    "environment": "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' ' | grep -c '{secret}' || true",
    "files": "find {places} -xdev -type f -size -1M -perm /0004 2>/dev/null -print0 | xargs -0 grep -l '{secret}' | wc -l",
}


def ports(of: str, seen_from: str) -> list[int]:
    """The ports of a host of the site that answer to another."""
    script = f"python3 -c '{CONNECTS}' {address_of(of)} {PORT} {PORTS}"
    return [int(port) for port in shell(seen_from, script).split()]


def listeners(host: str) -> list[str]:
    """Who listens on a host within the ports of the site, or runs as the fetch."""
    sockets = shell(host, "ss -Hlntu | awk '{print $5}' | sed 's/.*://' | sort -u").split()
    left = [port for port in sockets if PORT <= int(port) < PORT + PORTS]
    return left + shell(host, "pgrep -u model-fetch -a || true").splitlines()


def leaks(host: str) -> dict[str, list[str]]:
    """Where a secret can be read, by place, how often each."""
    return {
        place: [shell(host, script.format(secret=secret, places=PLACES)) for secret in SECRETS]
        for place, script in LEAKS.items()
    }


@dataclasses.dataclass(frozen=True)
class Story:
    """What was seen of a site that got the revision together."""

    output: str
    rc: int
    sent: dict[str, int]
    files: dict[str, dict[str, str]]
    to_strangers: list[int]
    to_members: list[int]
    leaks: dict[str, list[str]]  # of the origin
    went_on: int
    listeners: dict[str, list[str]]
    tables: dict[str, str]


# The controller may be lost before the others have begun; the exchange waits for them as long as they would for a source.
SITE = {"fleet_release": "sharded", "fleet_model_sources": [HUB], "model_fetch_give_up": 180}
RACKS = {host: {"model_group": f"rack-{number // 2}"} for number, host in enumerate(HOSTS)}


@functools.cache
def story(distribution: str) -> Story:
    """Four hosts get the revision from a slow hub. Their ports are tried half way, and the controller is lost; the same command joins what runs."""
    for host in HOSTS:
        reset(host)
    arguments = inventory(distribution, SITE | {"model_distribution": distribution}, RACKS)
    with hub_with({"*": {"kind": "rate", "bytes": 2 * MIB}}):
        with start("fetch_model", *arguments, inventory=INVENTORY) as process:
            until("bytes flow", bytes_flow(HOSTS[0], 4 * MIB))
            os.killpg(process.pid, signal.SIGKILL)
            lost, _none = process.communicate()
        before = sent_to(*HOSTS)
        to_strangers, to_members = ports(HOSTS[0], STRANGER), ports(HOSTS[0], HOSTS[2])
        leaked = leaks(HOSTS[0])
        went_on = sent_to(*HOSTS) - before
        run = fetch_model(*arguments)
        for host in HOSTS:
            until(f"{host} is done", lambda host=host: is_done(host))  # type: ignore[misc]
        sent = {host: sent_to(host) for host in HOSTS}
    return Story(
        lost + run.output,
        run.rc,
        sent,
        {host: found(host, destination(SHARDED)) for host in HOSTS},
        to_strangers,
        to_members,
        leaked,
        went_on,
        {host: listeners(host) for host in HOSTS},
        {host: shell(host, "nft list tables 2>/dev/null || true") for host in HOSTS},
    )


both = pytest.mark.parametrize("distribution", ["http", "peer"])


@both
def test_site_gets_the_right_bytes_and_the_origin_sends_them_once(distribution: str) -> None:
    told_story = story(distribution)
    assert told_story.rc == 0, told_story.output
    assert told_story.files == dict.fromkeys(HOSTS, SHARDED.digests)
    assert sum(told_story.sent.values()) == SHARDED.size
    assert [host for host, size in told_story.sent.items() if size] == [HOSTS[0]]


@both
def test_lost_controller_stops_nothing_and_the_same_command_joins(distribution: str) -> None:
    assert story(distribution).went_on > MIB
    assert counts(story(distribution).output, HOSTS[0])["failed"] == 0


@both
def test_ports_are_for_the_site_alone(distribution: str) -> None:
    assert PORT in story(distribution).to_members
    assert story(distribution).to_strangers == []


@both
def test_nothing_listens_when_all_have_it(distribution: str) -> None:
    assert story(distribution).listeners == {host: [] for host in HOSTS}
    assert [table for table in story(distribution).tables.values() if "h20_fleet" in table] == []


@both
def test_secrets_are_nowhere_to_be_read(distribution: str) -> None:
    nowhere = dict.fromkeys(LEAKS, ["0"] * len(SECRETS))
    assert story(distribution).leaks == nowhere | {"environment": ["1"] * len(SECRETS)}
    assert [secret for secret in (hub.TOKEN, s3.SECRET_KEY) if secret in story(distribution).output] == []


def test_token_never_goes_to_another_host_and_who_is_told_to_wait_does() -> None:
    """Statistics of the last site; those of the waves are asserted in their own time by hub_with."""
    stats = control("stats")
    assert (stats["leaks"], stats["hasty"]) == (0, 0)


def test_fetch_does_not_move_what_is_current() -> None:
    story("peer")
    links = {host: shell(host, f"ls {destination(SHARDED)}/.. ") for host in HOSTS}
    assert links == dict.fromkeys(HOSTS, SHARDED.commit)


def test_second_run_changes_nothing_and_hardly_reaches_the_hosts() -> None:
    story("peer")
    run = fetch_model(*inventory("second", SITE | {"model_distribution": "peer"}, RACKS), "-vvv")
    assert run.rc == 0, run.output
    for host in HOSTS:
        assert counts(run.output, host)["changed"] == 0, run.output
        assert len(re.findall(rf"<(?:{host}|{re.escape(address_of(host))})> SSH: EXEC ", run.output)) in (1, 2)
    assert [secret for secret in (hub.TOKEN, s3.SECRET_KEY) if secret in run.output] == []


@pytest.mark.parametrize("unseen", [False, True], ids=["seen", "unseen"])
def test_flipped_byte_on_disk_is_found_and_it_alone_is_fetched_again(unseen: bool) -> None:
    story("peer")
    host = HOSTS[1]
    path = f"{destination(SHARDED)}/{THIRD}"
    arguments = (*inventory("flipped", SITE | {"model_distribution": "source"}, {}), "--limit", host)
    flip(host, path, unseen=unseen)
    if unseen:
        deep = play("verify", *arguments, "--tags", "model", "-e", "model_verify_deep=true", inventory=INVENTORY)
        assert deep.rc != 0, deep.output
        assert THIRD in told(deep.output, host), deep.output
    with hub_with({}):
        run = fetch_model(*arguments)
        assert run.rc == 0, run.output
        assert sent_to(host) <= 5 * MIB
    assert found(host, destination(SHARDED)) == SHARDED.digests


def current(host: str) -> str:
    """The revision that `current` names."""
    return shell(host, f"readlink {destination(SHARDED)}/../current || true")


def kept(host: str) -> set[str]:
    """The revisions that are on the disk."""
    return set(shell(host, f"ls {destination(SHARDED)}/..").split()) - {"current"}


def test_stage_switches_and_old_revisions_are_swept_by_count() -> None:
    story("peer")
    host = HOSTS[3]
    site = {"fleet_model_sources": [HUB], "model_distribution": "source"}

    def run(playbook: str, release: str, *more: str) -> None:
        arguments = inventory("switch", site | {"fleet_release": release}, {})
        done = play(playbook, *arguments, "--limit", host, *more, inventory=INVENTORY)
        assert done.rc == 0, done.output

    run("site", "sharded", "--tags", "model")
    assert (current(host), kept(host)) == (SHARDED.commit, {SHARDED.commit})
    run("fetch_model", "sharded-next")
    assert (current(host), kept(host)) == (SHARDED.commit, {SHARDED.commit, NEXT.commit})
    run("site", "sharded-next", "--tags", "model")
    assert (current(host), kept(host)) == (NEXT.commit, {SHARDED.commit, NEXT.commit})
    run("site", "sharded", "--tags", "model", "-e", "model_keep_revisions=0")
    assert (current(host), kept(host)) == (SHARDED.commit, {SHARDED.commit})
