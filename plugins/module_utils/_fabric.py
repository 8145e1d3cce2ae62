# SPDX-License-Identifier: Apache-2.0
"""Which hosts to measure together next, and which host, adapter or link is to blame: a bisection over what was measured so far. Pure functions.

All hosts as one ring first. A ring that stays behind is halved, and its halves likewise, side by side, down to pairs; where both halves hold, the links
between them are left. Of a pair that stays behind each host that no other measurement clears is measured with a third one; then adapter by adapter. Hosts
that are named are left out, and the ring of the others has to hold, so that a second fault does not hide behind the first.

The search is played again from the start whenever something was measured: what it needs and has not yet is the next round.
"""

from __future__ import annotations

import typing as t

HOST, LINK, ADAPTER, PAIR, ALL, TOGETHER, SILENT = "HOST", "LINK", "ADAPTER", "PAIR", "ALL", "TOGETHER", "SILENT"
REMEDIES = {
    HOST: "take it out of the replica; nvidia-smi topo -m, ibstat, ethtool -S, and the switch ports that it is on",
    LINK: "both hosts are fine with others: see the cables and the switches between these two, and their routes (ECMP, adaptive routing)",
    ADAPTER: "ibstat, mlxlink or ethtool -S of this adapter, its cable and its switch port; its PCIe width (lspci -vv)",
    PAIR: "a third host would tell which of the two, or the link between them: run it again with one more",
    ALL: "no host is better than the others: see what they share (switch, MTU, NCCL_SOCKET_IFNAME, NCCL_IB_HCA), and whether nccl_fabric_floor_gb_s is right",
    TOGETHER: "each link alone holds: see whether the uplinks between the switches are oversubscribed",
    SILENT: "see what the run said of it, and whether it answers by SSH; then run it again",
}


class Probe(t.NamedTuple):
    """One measurement: the hosts that take part, and the place of the adapter that each of them uses alone; None: all of them."""

    hosts: tuple[str, ...]
    adapter: int | None = None


class Finding(t.NamedTuple):
    """What is to blame, why, and what to do."""

    id: str
    hosts: tuple[str, ...]
    evidence: str
    adapters: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        return REMEDIES[self.id]


class Limits(t.NamedTuple):
    """What is good enough: GB/s that every group has to reach, and the share of the best of its size by which one may stay behind."""

    floor: float = 0.0
    tolerance: float = 0.1


class Search:
    """The search over these hosts: ``wanted`` is what it needs to know next, ``findings`` what it knows.

    ``measured`` is the bus bandwidth in GB/s by probe, 0 where there is none; ``adapters`` are the names of each host's, in the order of their places;
    with ``pairs`` every half and every link of the ring is measured, even where the ring holds.
    """

    def __init__(
        self,
        hosts: t.Sequence[str],
        measured: t.Mapping[Probe, float],
        limits: Limits,
        adapters: t.Mapping[str, t.Sequence[str]],
        *,
        pairs: bool = False,
    ) -> None:
        self.hosts, self.measured, self.limits = tuple(hosts), measured, limits
        self.adapters, self.pairs = adapters, pairs
        self.wanted: list[Probe] = []
        self.findings: list[Finding] = []
        self._search()

    def round(self, *, parallel: bool = True) -> list[Probe]:
        """What to measure at the same time: groups without a common host, or one alone."""
        chosen: list[Probe] = []
        for probe in self.wanted:
            taken = {host for other in chosen for host in other.hosts}
            if not taken or (parallel and taken.isdisjoint(probe.hosts)):
                chosen.append(probe)
        return chosen

    def fine(self, probe: Probe) -> bool | None:
        """Whether it is good enough; None where it has to be measured first."""
        if probe not in self.measured:
            if probe not in self.wanted:
                self.wanted.append(probe)
            return None
        value = self.measured[probe]
        return value > 0 and value >= self.needed(probe)

    def needed(self, probe: Probe) -> float:
        """What a probe has to reach: the floor, and nearly what the best group of its size did; one adapter alone, nearly what the best of the pair's did."""
        floor = self.limits.floor if probe.adapter is None else 0.0
        return max(floor, (1 - self.limits.tolerance) * max(self._alike(probe), default=0.0))

    def _alike(self, probe: Probe) -> list[float]:
        """What it is compared with. Groups of another size are not: of two hosts NCCL gets more out of the same adapters than of many."""
        if probe.adapter is None:
            same = [other for other in self.measured if other.adapter is None and len(other.hosts) == len(probe.hosts)]
        else:
            same = [other for other in self.measured if other.adapter is not None and other.hosts == probe.hosts]
        return [self.measured[other] for other in same]

    def _search(self) -> None:
        ring, thorough = self.hosts, self.pairs
        while len(ring) > 1:
            fine = self.fine(Probe(ring))
            if fine is None or (fine and not thorough):
                return
            suspects = self._suspects(ring)
            if suspects is None:
                return
            if not suspects:
                if not fine:
                    self._find(TOGETHER, ring, self._figure(Probe(ring)))
                return
            named = self._settle(suspects)
            if not named:
                return
            ring, thorough = tuple(host for host in ring if host not in named), False

    def _suspects(self, arc: tuple[str, ...]) -> list[tuple[str, str]] | None:
        """The pairs within an arc of the ring that stay behind; None where more has to be measured first."""
        if len(arc) == 2:
            return [] if self.fine(Probe(arc)) else [(arc[0], arc[1])]
        middle = (len(arc) + 1) // 2
        halves = [half for half in (arc[:middle], arc[middle:]) if len(half) > 1]
        verdicts = [self.fine(Probe(half)) for half in halves]
        within = [
            self._suspects(half)
            for half, fine in zip(halves, verdicts, strict=True)
            if fine is False or (fine and self.pairs)
        ]
        found = _joined(within, pending=None in verdicts)
        if found is None or (found and not self.pairs):
            return found
        crossing = dict.fromkeys([self._pair(arc[middle - 1], arc[middle]), self._pair(arc[-1], arc[0])])
        between = [None if (fine := self.fine(Probe(pair))) is None else [] if fine else [pair] for pair in crossing]
        return _joined([found, *between])

    def _settle(self, suspects: list[tuple[str, str]]) -> set[str]:
        """Find who is to blame for pairs that stay behind; the hosts to leave out from now on, none while more has to be measured."""
        bad: dict[str, str] = {}
        undecided = []
        for pair in suspects:
            for host in pair:
                if self._is_cleared(host):
                    continue
                third = self._third(host, pair, suspects)
                if third is None:
                    undecided.append(pair)
                elif self.fine(Probe(self._pair(host, third))) is False:
                    bad[host] = third
        if self.wanted or (undecided and self._look_for_a_good_one(suspects)):
            return set()
        if undecided:
            self._give_up(suspects)
            return set()
        links = [pair for pair in suspects if not bad.keys() & set(pair)]
        # Both before the next step, so that adapters of different hosts are measured side by side.
        told = [self._adapters_of(self._pair(host, third)) for host, third in bad.items()]
        told += [self._adapters_of(pair) for pair in links]
        if self.wanted:
            return set()
        for (host, third), places in zip(bad.items(), told, strict=False):
            self._name(HOST, (host,), self._pair(host, third), places)
        for pair, places in zip(links, told[len(bad) :], strict=True):
            self._name(LINK, pair, pair, places)
        return {*bad, *(pair[1] for pair in links)}

    def _is_cleared(self, host: str) -> bool:
        """Whether it took part in something that was good enough with all its adapters; without a floor, a group with no other of its size proves nothing."""
        return any(
            host in probe.hosts and probe.adapter is None and self.fine(probe)
            for probe in self.measured
            if self.limits.floor or len(self._alike(probe)) > 1
        )

    def _third(self, host: str, pair: tuple[str, str], suspects: list[tuple[str, str]]) -> str | None:
        """A host that is known to be good and not of the pair: one that it was measured with, or one that is free in this round; None: there is none."""
        good = [other for other in self.hosts if other not in pair and self._is_cleared(other)]
        suspected = {other for each in suspects for other in each}
        busy = {other for probe in self.wanted for other in probe.hosts}
        order = sorted(
            good,
            key=lambda other: (Probe(self._pair(host, other)) not in self.measured, other in suspected, other in busy),
        )
        return order[0] if order else None

    def _look_for_a_good_one(self, suspects: list[tuple[str, str]]) -> bool:
        """Ask for hosts of different pairs together, and for those of no pair: whether something is left to ask."""
        others = [host for host in self.hosts if not any(host in pair for pair in suspects)]
        asked = [self._pair(host, other) for other in others for pair in suspects for host in pair]
        for number, pair in enumerate(suspects[1:]):
            before = suspects[number]
            asked += [self._pair(one, other) for one in before for other in pair]
        for pair in dict.fromkeys(asked):
            if pair[0] != pair[1]:
                self.fine(Probe(pair))
        return bool(self.wanted)

    def _give_up(self, suspects: list[tuple[str, str]]) -> None:
        """No host is good with any other."""
        if len(self.hosts) == 2:
            self._find(PAIR, self.hosts, self._figure(Probe(self.hosts)))
        else:
            figures = "; ".join(self._figure(Probe(pair)) for pair in suspects)
            self._find(ALL, self.hosts, figures)

    def _adapters_of(self, pair: tuple[str, str]) -> list[int]:
        """The places of the adapters that stay behind the others of the two hosts; [] where it is none, or all of them."""
        count = min((len(self.adapters.get(host, ())) for host in pair), default=0)
        verdicts = [self.fine(Probe(pair, place)) for place in range(count if count > 1 else 0)]
        if None in verdicts:
            return []
        slow = [place for place, fine in enumerate(verdicts) if not fine]
        return slow if len(slow) < count else []

    def _name(self, kind: str, hosts: tuple[str, ...], pair: tuple[str, str], places: list[int]) -> None:
        """One finding: of the adapters that stay behind, or of the host or link as a whole."""
        if not places:
            self._find(kind, hosts, self._figure(Probe(pair)))
            return
        of = hosts[0]
        names = tuple(self.adapters[of][place] for place in places)
        figures = [self._figure(Probe(pair, place)) for place in range(len(self.adapters[of]))]
        self._find(ADAPTER if kind == HOST else LINK, hosts, "; ".join(figures), names)

    def _find(self, kind: str, hosts: tuple[str, ...], evidence: str, adapters: tuple[str, ...] = ()) -> None:
        self.findings.append(Finding(kind, hosts, evidence, adapters))

    def _figure(self, probe: Probe) -> str:
        """What was measured, in words."""
        value = self.measured.get(probe, 0.0)
        names = "-".join(probe.hosts) if len(probe.hosts) < 4 else f"{probe.hosts[0]} to {probe.hosts[-1]}"
        over = "" if probe.adapter is None else f" over {self.adapters[probe.hosts[0]][probe.adapter]}"
        needed = self.needed(probe)
        return f"{names}{over}: " + (
            f"{value:.3g} GB/s" + (f", {needed:.3g} needed" if value < needed else "") if value else "no result"
        )

    def _pair(self, one: str, other: str) -> tuple[str, str]:
        """The two in the order of the hosts, so that a pair has one name."""
        first, second = sorted((one, other), key=self.hosts.index)
        return first, second


def _joined(lists: t.Sequence[list[tuple[str, str]] | None], *, pending: bool = False) -> list[tuple[str, str]] | None:
    """All of them as one, without repetition; None where one is not known yet."""
    if pending or any(each is None for each in lists):
        return None
    return list(dict.fromkeys(pair for each in lists if each is not None for pair in each))


def adapter_floor(rates_gbps: t.Mapping[str, t.Sequence[float | None]], share: float) -> float:
    """GB/s that hosts have to reach between them: a share of what the adapters of the weakest of them carry; 0 where one does not say."""
    sums = [sum(rate or 0.0 for rate in rates) for rates in rates_gbps.values()]
    return round(share * min(sums, default=0.0) / 8, 3)
