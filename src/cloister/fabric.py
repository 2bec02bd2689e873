"""Follows the World: every commit becomes a change of the plan, and the plan the kernel.

Commits are only noted in the event loop; one worker thread compiles and applies them, everything that came
meanwhile in one go. A failure is logged, shown as `problem` and tried again with back-off: first the same
change, then everything from what the kernel really holds. Nothing opens by a failure: what is not applied is
closed, because namespaces and chains are born with policy drop and links go up last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, TypeVar

from cloister.engine import Engine
from cloister.kernel.netns import Namespaces
from cloister.kernel.plan import Key, Part, Plan
from cloister.vpc.compile import compile, update
from cloister.world import Change, World

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # seconds
#: seconds that a change may wait for others to be applied with, while nobody waits for it: who makes a
#: hundred groups in a row is not held up by a hundred transactions of the kernel's
_GATHER = 0.02


class Applies(Protocol):
    """What the fabric needs of `kernel.reconcile.Reconciler`."""

    def adopt(self) -> None: ...

    def apply(self, plan: Plan, changed_keys: set[Key] | None = None) -> None: ...


class Fabric:
    """`problem` says what could not be applied, None when all is well. `applied_world` is the
    World that the kernel holds and `applied` its revision; `plan` belongs to the worker thread."""

    def __init__(self, engine: Engine, namespaces: Namespaces, reconciler: Applies) -> None:
        self._engine = engine
        self.namespaces = namespaces
        self._reconciler = reconciler
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fabric")
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._awaited = asyncio.Event()  # somebody waits in `settled`
        self._progress = asyncio.Condition()
        self._followers: list[Callable[[World], None]] = []
        self._planned = engine.world  # the World that `plan` is of
        self._changes: list[Change] = []  # from there to the engine's World
        self._unapplied: set[Key] = set()
        self._plan_known = False  # whether `plan` is that of `_planned`, and the kernel had it in full
        self.plan: dict[Key, Part] = {}
        self.applied = -1
        self.applied_world = World()
        self.problem: str | None = None

    async def start(self) -> None:
        """Adopt what the kernel holds and make it the World's. Returns when it is, or has a `problem`."""
        self._planned = self._engine.world
        self._engine.subscribe(self._committed)
        self._task = asyncio.create_task(self._run(), name="fabric")
        async with self._progress:
            await self._progress.wait_for(lambda: self.applied >= 0 or self.problem is not None)

    async def stop(self) -> None:
        """Stop following. The kernel keeps what it holds."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._worker.shutdown()

    async def settled(self, revision: int | None = None) -> None:
        """Wait until the kernel holds the World of `revision` (None: today's) or a later one."""
        wanted = self._engine.world.revision if revision is None else revision
        if self.applied >= wanted:
            return
        self._awaited.set()
        async with self._progress:
            await self._progress.wait_for(lambda: self.applied >= wanted)

    async def in_turn(self, function: Callable[[], T]) -> T:
        """Call `function` in the worker thread: never while a change is being applied."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)

    def follow(self, follower: Callable[[World], None]) -> None:
        """Call `follower(world)` in the loop's thread each time a World has been applied."""
        self._followers.append(follower)

    def _committed(self, before: World, after: World, changes: list[Change]) -> None:
        self._changes += changes
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            self._wake.clear()
            self._awaited.clear()
            world, changes = self._engine.world, self._changes
            self._changes = []
            afresh = not self._plan_known or pause > _FIRST_PAUSE
            try:
                await loop.run_in_executor(self._worker, self._apply, world, changes, afresh)
            except Exception as error:
                log.exception("could not apply revision %s", world.revision)
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                self.problem = f"{type(error).__name__}: {error}"
                await self._announce()
                await asyncio.sleep(pause)
                continue
            pause = 0.0
            self.problem = None
            self.applied, self.applied_world = world.revision, world
            await self._announce()
            for follower in self._followers:
                try:
                    follower(world)
                except Exception:
                    log.exception("a follower failed on revision %s", world.revision)
            await self._wake.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_GATHER):
                    await self._awaited.wait()

    async def _announce(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    def _apply(self, world: World, changes: list[Change], afresh: bool) -> None:
        """In the worker thread. What it planned but could not apply stays in `_unapplied`."""
        self._plan_known, before = False, self._planned
        self._planned = world
        if afresh:
            self._unapplied = set()
            self.plan = compile(world)
            self._reconciler.adopt()
            self._reconciler.apply(self.plan)
            self._plan_known = True
        else:
            self._unapplied |= update(self.plan, before, world, changes)
            self._plan_known = True
            if self._unapplied:
                self._reconciler.apply(self.plan, self._unapplied)
                self._unapplied = set()
