"""Ratios that hold on a noisy machine: ours and the peer's take turns, each turn gives one ratio.

The ratio of a row is the median of the turns' ratios; its spread is the smallest and the largest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `ours` and `peer` are medians in `unit`; `ratio` is ours / peer (or, for
    `peer / ours`, how often faster); `limit` is what was promised: at most, or at least when `at_least`."""

    what: str
    unit: str
    ours: float
    peer: float | None
    ratio: float
    low: float
    high: float
    limit: float
    at_least: bool
    rounds: int
    note: str = ""

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def interleave(
    ours: Callable[[], float], peer: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """`rounds` of A B, B A, A B …: neither always comes first."""
    mine: list[float] = []
    theirs: list[float] = []
    for turn in range(rounds):
        first_ours = turn % 2 == 0
        for is_ours in (first_ours, not first_ours):
            (mine if is_ours else theirs).append(ours() if is_ours else peer())
    return mine, theirs


def row(
    what: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    inverse: bool = False,
    note: str = "",
) -> Row:
    """A row of paired samples. `inverse`: the ratio is peer / ours ("times faster")."""
    ratios = [(p / o if inverse else o / p) for o, p in zip(ours, peer, strict=True)]
    limit = at_least if at_least is not None else at_most
    assert limit is not None
    return Row(
        what=what, unit=unit, ours=statistics.median(ours), peer=statistics.median(peer),
        ratio=statistics.median(ratios), low=min(ratios), high=max(ratios),
        limit=limit, at_least=at_least is not None, rounds=len(ratios), note=note,
    )  # fmt: skip


def percentile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, which is as readable on a terminal."""
    head = ("what", "ours", "peer", "ratio (min..max)", "target", "")
    lines = [head]
    for each in rows:
        lines.append(
            (
                each.what,
                _number(each.ours, each.unit),
                "" if each.peer is None else _number(each.peer, each.unit),
                f"{each.ratio:.2f} ({each.low:.2f}..{each.high:.2f})",
                f"{'≥' if each.at_least else '≤'} {each.limit:g}",
                "met" if each.met else "MISSED",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    out.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [f"- {each.what}: {each.note}" for each in rows if each.note]
    return "\n".join(out + (["", *notes] if notes else []))


def _number(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def in_world(module: str, rounds: int) -> list[Row]:
    """The rows that `python -m MODULE ROUNDS` prints as JSON, in a throw-away world: nothing of the host's
    network is touched, and no root is needed."""
    command = [sys.executable, "-m", "cloister.kernel.holder", "--exec", sys.executable, "-m", module]
    done = subprocess.run([*command, str(rounds)], stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    return [Row(**row) for row in json.loads(done.stdout)]
