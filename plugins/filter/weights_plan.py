# SPDX-License-Identifier: Apache-2.0
"""Filter of the model's stage: who fetches a revision, and who gets it from whom."""

from __future__ import annotations

DOCUMENTATION = r"""
name: weights_plan
short_description: Say who fetches a revision from its sources, and who gets it from whom
version_added: 1.0.0
description:
  - Hosts that lack the same revision get it together. What is under way already is joined as long as it has all of them.
  - Where nobody is named, the origin is a host that has the revision, else the first one that lacks it. A host that has it is left alone otherwise.
positional: members
options:
  _input:
    description: What M(h20.fleet.model_revision) returned, by host, in the order of the inventory, with C(instance), the name of the revision.
    type: dict
    required: true
  members:
    description: C(address) and C(group) of these hosts and of O(origins).
    type: dict
    required: true
  distribution:
    description: V(auto), V(source), V(http), V(peer) or V(shared). V(auto) leaves a host alone with its sources, takes HTTP for a few hosts and peers for more.
    type: str
    default: auto
  origins:
    description: Hosts that fetch from the sources, whatever they have.
    type: list
    elements: str
    default: []
  elsewhere:
    description: Hosts of the input that this batch does not have.
    type: list
    elements: str
    default: []
  port:
    description: First of the ports.
    type: int
    default: 8481
  processes:
    description: Processes of each host that exchange with peers.
    type: int
    default: 8
  kinds:
    description: Kinds of the sources.
    type: list
    elements: str
    default: []
  tracker:
    description: Whether the hosts' distribution has opentracker.
    type: bool
    default: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Say who has to be started
  ansible.builtin.debug:
    msg: "{{ (states | h20.fleet.weights_plan(members))['tiny'].start }}"
"""

RETURN = r"""
_value:
  description:
    - By instance, hosts (that lack the revision), start (hosts of the batch to be started), origins_here (those of them whom the others get it from),
      outside (origins that are not in the batch),
      origins, exchange (the host that knows how far all are), distribution, site (as the job has it, empty for a host that is alone),
      packages (names by host), summary, notes (what is not as one might expect) and refusal (what stands against it; empty where nothing does).
  type: dict
"""

import typing as t

#: Up to so many hosts, one that serves files over HTTP costs nobody much time, and it takes no tracker.
FEW = 5

State = dict[str, t.Any]


class Wish(t.NamedTuple):
    """What the site asks for."""

    distribution: str
    origins: tuple[str, ...]
    port: int
    processes: int
    tracker: bool


class Way(t.NamedTuple):
    """How the hosts get it: the distribution, and the site as the job has it, empty for a host that is alone with its sources."""

    distribution: str
    site: dict[str, t.Any]

    @property
    def spreads(self) -> bool:
        """Whether hosts get it from each other. Else a site only says how far all are."""
        return self.distribution in ("http", "peer")


def weights_plan(
    states: dict[str, State],
    members: dict[str, dict[str, str]],
    distribution: str = "auto",
    origins: t.Sequence[str] = (),
    elsewhere: t.Sequence[str] = (),
    port: int = 8481,
    processes: int = 8,
    kinds: t.Sequence[str] = (),
    tracker: bool = True,
) -> dict[str, dict[str, t.Any]]:
    """A plan for each revision; see RETURN."""
    wish = Wish(distribution, tuple(origins), port, processes, tracker)
    plans = {}
    for instance in dict.fromkeys(state["instance"] for state in states.values()):
        mine = {name: state for name, state in states.items() if state["instance"] == instance}
        lacking = [name for name, state in mine.items() if name not in elsewhere and not state["complete"]]
        refusal = _refusal(lacking, members, wish)
        if not lacking or refusal:
            plans[instance] = _plan(lacking, [], Way("source", {}), kinds) | {"refusal": refusal}
            continue
        having = [name for name in mine if name not in lacking]
        way = _under_way({name: mine[name] for name in lacking}, members, wish) or _together(
            lacking, having, members, wish
        )
        here = [name for name in mine if name not in elsewhere]
        plans[instance] = _plan(lacking, here, way, kinds) | {"notes": _notes(way, wish)}
    return plans


def _refusal(lacking: list[str], members: t.Mapping[str, t.Any], wish: Wish) -> str:
    unknown = [name for name in wish.origins if name not in members]
    if lacking and unknown:
        return f"model_origins names {', '.join(unknown)}, which the inventory does not have -> name hosts of the inventory"
    if wish.distribution == "peer" and not wish.tracker:
        return (
            "model_distribution is peer, and the hosts' distribution has no package opentracker"
            " -> set model_distribution to http (or auto, which takes http then), or give the hosts a repository that has it"
        )
    return ""


def _under_way(lacking: dict[str, State], members: dict[str, dict[str, str]], wish: Wish) -> Way | None:
    """What the hosts that are at work do already, where it has all that lack the revision and is as the site asks for."""
    ways = [Way(state["distribution"], state["site"]) for state in lacking.values() if state["running"]]
    if not ways or any(way != ways[0] for way in ways) or not ways[0].site:
        return None
    distribution, site = ways[0]
    asked = (
        wish.distribution in ("auto", distribution)
        and wish.origins in ((), tuple(site["origins"]))
        and (wish.port, wish.processes) == (site["port"], site["processes"])
    )
    known = all(site["hosts"].get(name) == members[name] for name in lacking)
    return ways[0] if asked and known else None


def _together(lacking: list[str], having: list[str], members: dict[str, dict[str, str]], wish: Wish) -> Way:
    """The hosts that lack it, with an origin: one that is named, one that has it, or the first that lacks it."""
    origins = list(wish.origins) or [*having, *lacking][:1]
    everybody = list(dict.fromkeys([*origins, *lacking]))
    way = wish.distribution
    if way == "auto":
        way = "peer" if len(everybody) > FEW and wish.tracker else "http"
    if way in ("source", "shared"):
        origins, everybody = lacking[:1], lacking
    elif len(everybody) == 1:
        way = "source"
    hosts = {name: members[name] for name in everybody}
    site = {"hosts": hosts, "origins": origins, "port": wish.port, "processes": wish.processes}
    return Way(way, site if len(everybody) > 1 else {})


def _plan(lacking: list[str], here: list[str], way: Way, kinds: t.Sequence[str]) -> dict[str, t.Any]:
    """The plan of hosts that get the revision in this way."""
    origins = way.site.get("origins", lacking[:1])
    started = [name for name in origins if name in here] if way.spreads else []
    outside = [name for name in origins if name not in here] if way.spreads else []
    start = [*started, *(name for name in lacking if name not in started)]
    return {
        "hosts": lacking,
        "start": start,
        "origins_here": started,
        "outside": outside,
        "origins": origins,
        "exchange": next(iter(origins), ""),
        "distribution": way.distribution,
        "site": way.site,
        "packages": {name: _packages(name, way, kinds) for name in [*start, *outside]},
        "summary": _summary(lacking, origins, way),
        "notes": [],
        "refusal": "",
    }


def _packages(name: str, way: Way, kinds: t.Sequence[str]) -> list[str]:
    """Packages of the distribution that a host needs for its part."""
    found = ["nftables"] if way.site else []
    asks_sources = name in way.site.get("origins", []) if way.spreads else way.distribution == "source"
    if "s3" in kinds and asks_sources:
        found.append("python3-botocore")
    if way.distribution == "http" and asks_sources:
        found.append("nginx-light")
    if way.distribution == "peer":
        found += [
            "aria2",
            *(["mktorrent"] if asks_sources else []),
            *(["opentracker"] if name in _leaders(way) else []),
        ]
    return found


def _leaders(way: Way) -> set[str]:
    """The hosts with a tracker: the exchange for its own group, and the first of each other one."""
    exchange, hosts = way.site["origins"][0], way.site["hosts"]
    leaders: dict[str, str] = {}
    for name in [exchange, *sorted(hosts)]:
        leaders.setdefault(hosts[name]["group"], name)
    return set(leaders.values())


def _summary(lacking: list[str], origins: list[str], way: Way) -> str:
    hosts = f"{len(lacking)} host{'s' * (len(lacking) != 1)}"
    if way.distribution == "shared":
        return f"{hosts} from the shared filesystem"
    if not way.spreads:
        return f"{hosts}, each from the sources"
    return f"{hosts} from {', '.join(origins)} by {'HTTP' if way.distribution == 'http' else 'peers'}"


def _notes(way: Way, wish: Wish) -> list[str]:
    if wish.distribution == "auto" and way.distribution == "http" and len(way.site["hosts"]) > FEW and not wish.tracker:
        return [
            "the hosts' distribution has no package opentracker, so that all get the revision by HTTP from the origins; the time grows with their number"
        ]
    return []


class FilterModule:
    """Filters of the model's stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"weights_plan": weights_plan}
