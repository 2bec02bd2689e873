"""Servers that live in namespaces of the fabric: one for each thing of the World that wants one.

Opened when the kernel holds its namespace, closed when the thing is gone. The endpoints' doors are such."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.world import World

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
Close = Callable[[], Awaitable[None]]
_PAUSE = 0.2  # seconds until what could not be opened is tried again


class Servers(Generic[K]):
    """`wanted(world)` are the keys to serve; `open(key)` starts one and returns how to close it. `open` may
    raise LookupError or OSError while the fabric has not made the namespace or its addresses: tried again."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        fabric: Fabric,
        wanted: Callable[[World], set[K]],
        open_one: Callable[[K], Awaitable[Close]],
    ) -> None:
        self._name = name
        self._engine = engine
        self._fabric = fabric
        self._wanted = wanted
        self._open_one = open_one
        self._serving: dict[K, Close] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve all that the kernel holds, then follow."""
        await self._sync()
        self._fabric.follow(self._applied)
        self._task = asyncio.create_task(self._run(), name=self._name)
        self._wake.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for key in list(self._serving):
            await self._serving.pop(key)()

    def _applied(self, world: World) -> None:
        if self._wanted(world) != self._serving.keys():
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                complete = await self._sync()
            except Exception:
                log.exception("%s: could not follow", self._name)
                complete = False
            if not complete:
                await asyncio.sleep(_PAUSE)
                self._wake.set()

    async def _sync(self) -> bool:
        """Open and close servers; False: some could not be opened yet."""
        wanted = self._wanted(self._engine.world)
        for key in self._serving.keys() - wanted:
            await self._serving.pop(key)()
        complete = True
        for key in wanted - self._serving.keys():
            try:
                self._serving[key] = await self._open_one(key)
            except (LookupError, OSError) as error:
                log.debug("%s: no %s yet: %s", self._name, key, error)
                complete = False
        return complete
