"""What grows with a VPC, and what must not: in a throw-away world, with the code that the daemon runs.

    attach     create_interface, compile.update and Reconciler.apply of one interface with two addresses, as
               for an instance of a job: in a VPC of 1,000 against the same in a VPC of 10
    restart    a fresh Reconciler adopts and applies 1,000 interfaces, against having made them
    compile, apply, explain   at 10, 100, 1,000 and 5,000 interfaces (one address each) and 10,000 rules

The idle daemon's memory (SeaweedFS is a process of its own) is told by a real Cloister after its start.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import cloister_up, measure, network
from cloister.kernel.netns import Namespaces
from cloister.kernel.plan import Key, Part
from cloister.kernel.reconcile import Reconciler
from cloister.vpc.compile import compile, update
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.interfaces import create_interface, release
from cloister.vpc.model import NetworkInterface
from cloister.world import Transaction, World

SMALL, LARGE = 10, 1000
RULES = 10_000
SIZES = (10, 100, 1000, 5000)
MEMORY_LIMIT = 150.0  # MB


class Lab:
    """One VPC, and what the daemon's fabric does at each commit."""

    def __init__(self, folder: Path, name: str, rules: int) -> None:
        self.name = name
        self.namespaces = Namespaces(folder / name)
        self.reconciler = Reconciler(self.namespaces)
        tx = World().begin()
        for doc in network.vpc(rules, name):
            tx.put(doc)
        self.world = tx.commit()
        self.plan: dict[Key, Part] = compile(self.world)
        self.reconciler.apply(self.plan)

    def commit(self, tx: Transaction) -> None:
        changes, before = tx.changes, self.world
        self.world = tx.commit()
        keys = update(self.plan, before, self.world, changes)
        self.reconciler.apply(self.plan, keys)

    def attach(self, count: int = 1, endings: tuple[str, ...] = ("", "-agent")) -> list[NetworkInterface]:
        tx = self.world.begin()
        made = [
            create_interface(
                tx, subnet_id=f"subnet-{self.name}", group_ids=[f"sg-{self.name}"], now=0, attach=endings
            )
            for _ in range(count)
        ]
        self.commit(tx)
        return made

    def attach_some(self) -> float:
        """Milliseconds for one of five attached one by one (the median). They are gone afterwards."""
        times, made = [], []
        for _ in range(5):
            began = time.perf_counter()
            made += self.attach()
            times.append((time.perf_counter() - began) * 1000)
        tx = self.world.begin()
        for interface in made:
            release(tx, interface.interface_id)
        self.commit(tx)
        time.sleep(0.6)  # the kernel ends namespaces in the background, in the way of who makes new ones
        return statistics.median(times)

    def restart(self) -> float:
        self.reconciler.close()
        began = time.perf_counter()
        self.reconciler = Reconciler(self.namespaces)
        self.reconciler.apply(compile(self.world))
        return (time.perf_counter() - began) * 1000

    def close(self) -> None:
        self.reconciler.apply({})
        self.reconciler.close()
        self.namespaces.close()


def inside(rounds: int) -> list[measure.Row]:
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        small, large = Lab(Path(folder), "small", 50), Lab(Path(folder), "large", 50)
        small.attach(SMALL - 1)
        began = time.perf_counter()
        for _ in range((LARGE - 1) // 111):
            large.attach(111)
        made = (time.perf_counter() - began) * 1000
        small.attach_some(), large.attach_some()
        ours, peer = measure.interleave(large.attach_some, small.attach_some, max(9, 2 * rounds))
        rows.append(
            measure.row(
                f"scale: attach the {LARGE:,}th interface / the {SMALL}th", "ms", ours, peer, at_most=1.2
            )
        )
        restarts = [large.restart() for _ in range(3)]
        rows.append(
            measure.row(
                f"scale: restart with {LARGE:,} interfaces / making them", "ms", restarts, [made] * 3,
                at_most=0.25,
            )
        )  # fmt: skip
        large.close()
        small.close()
        rows += _sizes(Path(folder))
    return rows


def _sizes(folder: Path) -> list[measure.Row]:
    """Per interface, at growing numbers, in a VPC with 10,000 rules: what is linear keeps its ratio."""
    lab = Lab(folder, "rules", RULES)
    took: dict[str, list[float]] = {"compile": [], "apply": [], "attach": [], "explain": []}
    have = 0
    for size in SIZES:
        tx = lab.world.begin()
        for _ in range(size - have):
            create_interface(tx, subnet_id="subnet-rules", group_ids=["sg-rules"], now=0, attach=("",))
        before = have
        have = size
        began = time.perf_counter()
        lab.commit(tx)
        took["apply"].append((time.perf_counter() - began) * 1000 / (size - before))
        took["attach"].append(min(lab.attach_some() for _ in range(3)))
        took["compile"].append(_ms(lambda: compile(lab.world)))
        ends = list(lab.world.all(NetworkInterface))
        flow = Flow(
            source=ends[0].interface_id,
            destination=ends[-1].interface_id,
            protocol="tcp",
            port=network.PORT,
        )
        assert explain(lab.world, flow).allowed
        took["explain"].append(_ms(lambda flow=flow: explain(lab.world, flow)))  # type: ignore[misc]
    lab.close()
    with_rules = f"{RULES:,} rules"
    sizes = ", ".join(f"{size:,}" for size in SIZES)
    return [
        measure.row(f"scale: {what}, {SIZES[-1]:,} interfaces / {SIZES[0]}, {with_rules}", "ms", times[-1:],
                    times[:1], at_most=limit,
                    note=f"at {sizes}: {', '.join(f'{t:.2f}' for t in times)} ms{each}")
        for what, times, limit, each in (
            ("attach of one", took["attach"], 1.5, ""),
            ("apply of many", took["apply"], 2.0, " for each interface of one commit"),
            ("compile of all", took["compile"], SIZES[-1] / SIZES[0], ""),
            ("explain of one flow", took["explain"], 1.5, ""),
        )
    ]  # fmt: skip


def _ms(call: Callable[[], Any]) -> float:
    """The best of five: what is measured once for each size has no peer to share its bad luck with."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return min(times)


def memory() -> measure.Row:
    with cloister_up.cloister() as up:
        time.sleep(3)
        used = float(up.status()["memory_mb"])
    return measure.row("scale: memory of the idle daemon", "MB", [used], [MEMORY_LIMIT], at_most=1.0)


def run(rounds: int) -> list[measure.Row]:
    return [*measure.in_world(__name__, rounds), memory()]


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in inside(int(sys.argv[1]))]))
