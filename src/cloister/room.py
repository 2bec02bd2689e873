"""Room for many, of which no one takes all: connections, and bodies of requests that are read whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable

from cloister.wire.errors import AwsError

#: bytes of bodies that are being read, of all callers and of one address
BODIES, BODIES_OF_ONE = 512 << 20, 64 << 20


class Room:
    """For `most` of something, `of_one` of it for one address."""

    def __init__(self, most: int, of_one: int) -> None:
        self._most, self._of_one = most, of_one
        self._all, self._held = 0, Counter[str]()

    def take(self, address: str, amount: int = 1) -> bool:
        """False, and nothing is taken, when there is no room."""
        if self._all + amount > self._most or self._held[address] + amount > self._of_one:
            return False
        self._all += amount
        self._held[address] += amount
        return True

    def give(self, address: str, amount: int = 1) -> None:
        self._all -= amount
        self._held[address] -= amount
        if self._held[address] <= 0:
            del self._held[address]


async def whole(
    pieces: AsyncIterable[bytes], room: Room, address: str, limit: int, too_large: AwsError
) -> bytes:
    """A body of at most `limit` bytes. It takes of `room` while it comes, as it may never come to its end.

    Raises `too_large`, SlowDown."""
    found: list[bytes] = []
    size = 0
    try:
        async for piece in pieces:
            if size + len(piece) > limit:
                raise too_large
            if not room.take(address, len(piece)):
                raise AwsError("SlowDown", "Please reduce your request rate.", 503)
            size += len(piece)
            found.append(piece)
        return b"".join(found)
    finally:
        room.give(address, size)
