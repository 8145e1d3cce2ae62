# SPDX-License-Identifier: Apache-2.0
"""What a person reads of a transfer to many hosts: a line a host, or a summary of many."""

from __future__ import annotations

import statistics
import typing as t

Account = t.Mapping[str, t.Any]
#: Of each host its own account (the package's Progress as a dict), None for one that has said nothing yet.
Accounts = t.Mapping[str, Account | None]

#: Up to so many hosts have a line each.
FEW = 6
#: Seconds without a word after which a host is called silent, and without a byte after which it is called stalled.
SILENCE = 90
ENDED = ("complete", "seeding", "failed")
MOVING = ("fetching", "receiving", "retrying")
GIB, MIB = 1024**3, 1024**2


class Picture:
    """What was seen of the hosts, by the clock of whoever looks: theirs may differ."""

    def __init__(self, names: t.Sequence[str], now: float) -> None:
        self._accounts: dict[str, Account | None] = dict.fromkeys(names)
        self._heard = dict.fromkeys(names, now)
        self._moved = dict.fromkeys(names, now)

    def see(self, accounts: Accounts, now: float) -> None:
        """Take in what the hosts say now; of others than those that are looked at nothing is kept."""
        for name, before in self._accounts.items():
            account = accounts.get(name)
            if account and (before is None or account["updated"] != before["updated"]):
                self._heard[name] = now
            if account and (before is None or account["bytes"] != before["bytes"]):
                self._moved[name] = now
            self._accounts[name] = account or before

    def is_over(self, now: float) -> bool:
        """Whether there is nothing left to watch: every host has ended, or is silent."""
        return all(_ended(account) or self._is_silent(name, now) for name, account in self._accounts.items())

    def lines(self, now: float) -> list[str]:
        """What to print now: few hosts with a line each; of many a summary, and a line for each that is in trouble."""
        words = {name: f"  {name}  {self._words(name, now)}" for name in self._accounts}
        if len(words) <= FEW:
            return list(words.values())
        heard = [account for account in self._accounts.values() if account]
        return [f"  {_summary(heard)}", *(line for name, line in words.items() if self._trouble(name, now))]

    def _is_silent(self, name: str, now: float) -> bool:
        return now - self._heard[name] >= SILENCE

    def _words(self, name: str, now: float) -> str:
        account = self._accounts[name]
        said = _line(account) if account else "nothing heard yet"
        return "  ".join(part for part in (said, self._trouble(name, now).removeprefix("FAILED")) if part)

    def _trouble(self, name: str, now: float) -> str:
        """What is wrong with a host, "" where nothing is."""
        account = self._accounts[name]
        if account and account["phase"] == "failed":
            return "FAILED"
        if _ended(account):
            return ""
        if self._is_silent(name, now):
            return f"SILENT for {_span(now - self._heard[name])}"
        if account and account["phase"] in MOVING and now - self._moved[name] >= SILENCE:
            return f"STALLED for {_span(now - self._moved[name])}, goes on by itself"
        return ""


def _ended(account: Account | None) -> bool:
    """Whether a host's part is over, well or not."""
    return account is not None and account["phase"] in ENDED


def _line(account: Account) -> str:
    """One host: phase, bytes, share, rate, time left and who sends; or why it failed."""
    if account["phase"] == "failed":
        return f"FAILED  {account['error']}"
    parts = [f"{account['phase']:9}", _amounts("/", account["bytes"], account["total"]), _share(account)]
    if not _ended(account):
        parts.append(f"{account['rate'] / MIB:.0f} MiB/s")
        parts += [f"{_span(account['eta'])} left"] if account.get("eta") else []
        parts += [f"from {account['source']}"] if account["source"] else []
        parts += [f"({account['error']})"] if account["error"] else []
    return "  ".join(parts)


def _summary(accounts: t.Sequence[Account]) -> str:
    """Many hosts: how many are in which phase; of those at work the least and the most bytes, the median rate, the longest time left."""
    phases = [account["phase"] for account in accounts]
    counted = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases)) or "nothing heard yet"
    busy = sorted((account for account in accounts if not _ended(account)), key=lambda account: int(account["bytes"]))
    if not busy:
        return counted
    least, most = busy[0], busy[-1]
    rate = statistics.median(account["rate"] for account in busy)
    left = max((account.get("eta") or 0) for account in busy)
    parts = [
        counted,
        f"{_amounts('..', least['bytes'], most['bytes'])} of {_amounts('', most['total'])}",
        _share(least),
        f"{rate / MIB:.0f} MiB/s each (median)",
        *([f"{_span(left)} left"] if left else []),
    ]
    return "  ".join(parts)


def _amounts(separator: str, *sizes: float) -> str:
    """Sizes in the unit that suits the largest."""
    unit, name = (GIB, "GiB") if max(sizes) >= GIB else (MIB, "MiB")
    return f" {separator} ".join(f"{size / unit:.1f}" for size in sizes) + f" {name}"


def _share(account: Account) -> str:
    return f"{account['bytes'] / account['total'] if account['total'] else 0:.0%}"


def _span(seconds: float) -> str:
    """A span of time, no more exact than one wants it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
