"""The one place where the World changes: begin, change, make durable, publish.

Everything here runs in the event loop's thread and never awaits inside a transaction, so transactions
are serial without a lock and a reader of `engine.world` always sees a committed snapshot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloister.store import Store
from cloister.world import Change, Transaction, World

log = logging.getLogger(__name__)

Subscriber = Callable[[World, World, list[Change]], None]


class Engine:
    """`world` is the latest committed snapshot. `clock()` is POSIX seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._subscribers: list[Subscriber] = []
        self._open = False
        self.clock = clock
        self.world = store.load()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(before, after, changes)` after each commit, in the loop's thread."""
        self._subscribers.append(subscriber)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that is durable when the block ends, and gone when the block raises."""
        if self._open:
            raise RuntimeError("a transaction is already open: never await or nest inside one")
        self._open = True
        try:
            tx = self.world.begin()
            yield tx
            changes = tx.changes
            if changes:
                self._store.save(changes)
        finally:
            self._open = False
        if changes:
            self._publish(tx.commit(), changes)

    def _publish(self, world: World, changes: list[Change]) -> None:
        before, self.world = self.world, world
        for subscriber in self._subscribers:
            try:
                subscriber(before, world, changes)
            except Exception:
                # The change is acknowledged whatever a follower makes of it; followers repair themselves.
                log.exception("a subscriber failed on revision %s", world.revision)
