# SPDX-License-Identifier: Apache-2.0
"""Which packages and holds of a host the collection brought: a ledger that every stage writes before its packages come, and removal reads.

Not there before, and asked for or brought along: that is what goes again. What something else needs stays, whoever brought it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import typing as t
from pathlib import Path

from ansible_collections.h20.fleet.plugins.module_utils import _dpkg, _programs

PATH = Path("/var/lib/h20-fleet/packages.json")
FIELDS = ("Package", "Architecture", "db:Status-Status", "Pre-Depends", "Depends", "Recommends", "Provides")
QUERY = ("dpkg-query", "--show", "--showformat=" + r"\t".join(f"${{{field}}}" for field in FIELDS) + r"\n")
#: A name of a relation, with whatever stands behind it of architecture and version.
NAME = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")

#: Alternatives that one relation names; one of them is enough.
Group = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Package:
    """An installed package; `automatic` where nobody asked for it by its name."""

    automatic: bool
    needs: tuple[Group, ...] = ()
    recommends: tuple[Group, ...] = ()
    provides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Host:
    """What dpkg and apt say of a host: its packages by name, and the names of those that are held."""

    packages: t.Mapping[str, Package]
    held: frozenset[str]

    @classmethod
    def read(cls, run: _programs.Runner) -> Host:
        """The host as it is; raises OSError where it has no dpkg or no apt."""
        answers = [
            run(command, _programs.TIMEOUT) for command in (QUERY, ("apt-mark", "showauto"), ("apt-mark", "showhold"))
        ]
        for answer in answers:
            if answer.status != 0:
                raise OSError(answer.error)
        packages, automatic, held = (answer.out for answer in answers)
        return cls(parse(packages, set(automatic.split())), frozenset(held.split()))

    def satisfying(self, group: Group) -> set[str]:
        """The installed packages that are enough for a relation, by themselves or as what they provide."""
        return {name for one in group for name in self._providers.get(one, ())}

    @functools.cached_property
    def _providers(self) -> dict[str, set[str]]:
        known: dict[str, set[str]] = {}
        for name, package in self.packages.items():
            for provided in (name, *package.provides):
                known.setdefault(provided, set()).add(name)
        return known


#: Stages by the package that they asked for, or whose hold they set.
Stages = t.Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What was there before (`before`), and by package which stages `asked` for it when it was not, and which set its hold (`holds`)."""

    before: frozenset[str] = frozenset()
    asked: Stages = dataclasses.field(default_factory=dict)
    holds: Stages = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Ledger | None:
        """The ledger in a file; None where there is none. Raises ValueError with its name where it is torn."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            asked, holds = (
                {name: tuple(stages) for name, stages in content[field].items()} for field in ("asked", "holds")
            )
            return cls(frozenset(content["before"]), asked, holds)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no ledger of packages ({error})") from error

    def save(self, path: Path) -> None:
        """Write the ledger into a file, by one rename; one of nothing is no file."""
        if not self.asked and not self.holds:
            path.unlink(missing_ok=True)
            return
        content = {"asked": dict(self.asked), "before": sorted(self.before), "holds": dict(self.holds)}
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)

    def noted(self, host: Host, stage: str, names: t.Iterable[str], holds: t.Iterable[str]) -> Ledger:
        """The ledger once a stage is about to ask for packages, and to hold others.

        What is there and was brought by another stage is this one's as well; what is there from elsewhere is nobody's here.
        """
        asked = {name: stages for name, stages in self.asked.items() if name in host.packages}
        held = {name: stages for name, stages in self.holds.items() if name in host.held}
        ours = self.ours(host)
        here = host.packages.keys() - ours
        for name in names:
            # What came along with ours and is asked for by its name now, as an upgrade does, is no wish of an operator's.
            if name in ours or name not in host.packages:
                asked[name] = _with(asked.get(name, ()), stage)
        for name in holds:
            if name in held or name not in host.held:
                held[name] = _with(held.get(name, ()), stage)
        return Ledger(frozenset(here), asked, held)

    def without(self, stages: t.Container[str]) -> Ledger:
        """The ledger of the other stages; what only these asked for is nobody's any more."""
        asked, holds = (
            {name: rest for name, by in marks.items() if (rest := tuple(one for one in by if one not in stages))}
            for marks in (self.asked, self.holds)
        )
        return Ledger(self.before, asked, holds)

    def ours(self, host: Host) -> set[str]:
        """The installed packages that were asked for, and those that came along with them and that nobody has asked for since."""
        found: set[str] = set()
        following = [name for name in self.asked if name in host.packages]
        while following:
            name = following.pop()
            if name in found:
                continue
            found.add(name)
            package = host.packages[name]
            following += [
                other
                for group in (*package.needs, *package.recommends)
                for other in host.satisfying(group)
                if host.packages[other].automatic and other not in self.before
            ]
        return found

    def going(self, host: Host, stages: t.Container[str]) -> set[str]:
        """Those of ours that go with these stages: no other stage has asked for them, and nothing that stays needs them.

        What others recommend counts as needed as well, but for packages that were there before: those did without it.
        """
        going = self.ours(host) - self.without(stages).asked.keys()
        staying = [name for name in host.packages if name not in going]
        while staying:
            name = staying.pop()
            package = host.packages[name]
            groups = package.needs + (() if name in self.before else package.recommends)
            for enough in map(host.satisfying, groups):
                if enough and enough <= going:
                    going -= enough
                    staying += enough
        return going


def _with(stages: tuple[str, ...], stage: str) -> tuple[str, ...]:
    return stages if stage in stages else (*stages, stage)


def parse(text: str, automatic: t.Container[str]) -> dict[str, Package]:
    """The packages of QUERY's answer that are there at least in part; the same package of several architectures is one."""
    found: dict[str, Package] = {}
    for row in (line.split("\t") for line in text.splitlines()):
        if len(row) != len(FIELDS) or row[2] in _dpkg.ABSENT:
            continue
        name, _architecture, _status, before, needs, recommends, provides = row
        package = Package(
            automatic=name in automatic,
            needs=groups(before) + groups(needs),
            recommends=groups(recommends),
            provides=tuple(one for group in groups(provides) for one in group),
        )
        if other := found.get(name):
            package = Package(
                automatic=package.automatic and other.automatic,
                needs=other.needs + package.needs,
                recommends=other.recommends + package.recommends,
                provides=other.provides + package.provides,
            )
        found[name] = package
    return found


def groups(relation: str) -> tuple[Group, ...]:
    """The names of a relation such as "libc6 (>= 2.34), nginx-light | nginx-core"."""
    found = [tuple(match[1] for one in group.split("|") if (match := NAME.match(one))) for group in relation.split(",")]
    return tuple(group for group in found if group)
