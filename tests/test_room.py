"""Nobody takes all the room there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloister.room import Room, whole
from cloister.wire.errors import AwsError

TOO_LARGE = AwsError("TooLarge", "too large", 413)


def test_one_address_leaves_room_for_others_and_gives_back_what_it_took() -> None:
    room = Room(5, 3)
    assert [room.take("a") for _ in range(4)] == [True, True, True, False]
    assert not room.take("b", 4)
    assert room.take("b", 2)
    assert not room.take("c")  # all is taken
    room.give("a", 3)
    assert room.take("c")


async def _body(*pieces: bytes, stalls: bool = False) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if stalls:
        await asyncio.sleep(60)


def test_bodies_that_never_end_take_no_more_than_their_part() -> None:
    async def run() -> None:
        room = Room(100, 10)
        slow = asyncio.create_task(whole(_body(b"12345678", stalls=True), room, "a", 50, TOO_LARGE))
        await asyncio.sleep(0)
        with pytest.raises(AwsError, match="SlowDown"):
            await whole(_body(b"123"), room, "a", 50, TOO_LARGE)
        assert await whole(_body(b"123", b"4567"), room, "b", 50, TOO_LARGE) == b"1234567"
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        for _ in range(3):  # what was read, refused or broken off is given back
            assert await whole(_body(b"1234567890"), room, "a", 50, TOO_LARGE) == b"1234567890"
            with pytest.raises(AwsError, match="TooLarge"):
                await whole(_body(b"12345", b"6"), room, "a", 5, TOO_LARGE)

    asyncio.run(run())
