"""Listening sockets on which no caller takes all the room, of one door or several that share it.

What is more than may be is closed when it is accepted: before TLS, because a connection that never says hello
holds a descriptor of the daemon as well as any other.
"""

from __future__ import annotations

import socket
import struct
import weakref
from typing import Any

from cloister.room import Room

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: nothing of it stays in the kernel either


class _Connection(socket.socket):
    """Gives its place back when it is closed, or forgotten."""

    __slots__ = ("place",)
    place: weakref.finalize[Any, Any]

    def close(self) -> None:
        super().close()
        self.place()


class Listening(socket.socket):
    """`bound`, which is no more, as a listening socket for asyncio."""

    __slots__ = ("_room",)

    def __init__(self, bound: socket.socket, room: Room) -> None:
        super().__init__(fileno=bound.detach())
        self.setblocking(False)
        self._room = room

    def accept(self) -> tuple[socket.socket, Any]:
        number, address = self._accept()  # type: ignore[attr-defined]
        made = _Connection(self.family, self.type, self.proto, fileno=number)
        if not self._room.take(address[0]):
            made.place = weakref.finalize(made, int)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            made.close()
            raise BlockingIOError  # asyncio asks again in its next round, after what else there is to do
        made.place = weakref.finalize(made, self._room.give, address[0])
        return made, address
