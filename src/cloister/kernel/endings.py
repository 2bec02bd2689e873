"""Connections that end, each told once, with its final counts, also when the process that listens is killed.

There are two files, and both can outlive the process (`kernel/shelf.py`):

- a socket, on which the kernel tells of each connection that ends, and in which this waits for its reader;
  what finds no room there the kernel keeps in its table, and tells later;
- memory, into which the socket is read: the kernel takes a message off the queue and puts it there in one
  call. What is there is told, and stays until the caller has it in durable form.

The caller keeps `position` in one transaction with what it made of what was told, and then calls `settle`.
The next process goes on at the position that was kept. The memory is

    epoch, 8 bytes, filled up to a page | messages of the kernel, each with its length | zeros

`settle` makes the messages zeros, and then the epoch another: a position of the epoch before means nothing,
and one of this epoch, if only a part was made zeros, is behind all that was.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from cloister.kernel.conntrack import NETFILTER, Connection, ended

#: linux/netlink.h, linux/netfilter/nfnetlink.h: the group that is told of connections that end
_SOL_NETLINK, _ADD_MEMBERSHIP, _DESTROYED = 270, 1, 3
#: whoever has this option has the kernel tell again (every 10 ms) what found no room
_BROADCAST_ERROR = 4
_SO_RCVBUFFORCE = 33
#: bytes; some 6,000 connections. Only root of the host gets as much, others net.core.rmem_max (mostly 170)
_BUFFER = 4 << 20
#: bytes; some 18,000 connections
_MEMORY = 4 << 20
_START = mmap.PAGESIZE
#: bytes that one message may take
_ROOM = 1 << 16
#: messages taken in one go
_AT_ONCE = 1000

#: epoch, and the offset up to which messages were told
Position = tuple[int, int]


class Endings:
    """Made anew it listens in the network namespace of the calling thread; `files` are those of another one
    that ended. Used from any thread. The kernel tells of connections that began while somebody listened."""

    def __init__(self, files: Sequence[int] = ()) -> None:
        """Raises OSError, ValueError; the files are closed then."""
        self.files: tuple[int, ...] = tuple(files) or _anew()
        self._socket = socket.socket(fileno=self.files[0])
        try:
            self._memory = mmap.mmap(self.files[1], _MEMORY)
        except BaseException:
            self._socket.close()
            os.close(self.files[1])
            raise
        self._told = self._end = _START

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self._memory.close()
        os.close(self.files[1])

    def read(self) -> tuple[bool, bool]:
        """Take what waits, a part of it if it is much: whether there was anything, and whether the kernel has
        more than there was room for. Nothing is taken while the memory is full. Raises OSError."""
        some = late = False
        with memoryview(self._memory) as memory:
            for _ in range(_AT_ONCE):
                if self._end + _ROOM > _MEMORY:
                    break
                with memory[self._end : self._end + _ROOM] as place:
                    try:
                        size = self._socket.recv_into(place)
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
                        late = True
                        continue
                self._end += (size + 3) & ~3
                some = True
        return some, late

    def tell(self) -> list[Connection]:
        """What was read and not told yet, in order."""
        found = ended(self._memory[self._told : self._end])
        self._told = self._end
        return found

    @property
    def position(self) -> Position:
        return int.from_bytes(self._memory[:8], "big"), self._told

    def go_on(self, position: Position) -> None:
        """After another process told up to there: what it only read is told next."""
        epoch, told = position
        if epoch == self.position[0] and _START <= told <= _MEMORY:
            self._told = told
        self._end = self._told
        while self._end + 4 <= _MEMORY and (size := struct.unpack_from("=I", self._memory, self._end)[0]):
            self._end += (size + 3) & ~3

    def settle(self) -> None:
        """The position, and what was told before it, are kept elsewhere."""
        if _START < self._end == self._told:
            self._memory[_START : self._end] = bytes(self._end - _START)
            self._memory[:8] = (self.position[0] + 1).to_bytes(8, "big")
            self._told = self._end = _START

    @property
    def full(self) -> bool:
        """More than half, so it is time to `settle`."""
        return self._end > _MEMORY // 2


def _anew() -> tuple[int, int]:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    made = socket.socket(socket.AF_NETLINK, kind, NETFILTER)
    try:
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            with suppress(PermissionError):
                made.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        made.setsockopt(_SOL_NETLINK, _BROADCAST_ERROR, 1)
        made.bind((0, 0))
        made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _DESTROYED)
        memory = os.memfd_create("cloister-endings", os.MFD_CLOEXEC)
        os.ftruncate(memory, _MEMORY)
        # Another than that of any position which was kept.
        os.pwrite(memory, os.urandom(7).rjust(8, b"\0"), 0)
    except OSError:
        made.close()
        raise
    return made.detach(), memory
