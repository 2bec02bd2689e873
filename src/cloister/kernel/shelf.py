"""Open files that outlive the daemon, for the next one.

The holder makes a pair of sockets and leaves both ends to each daemon that it starts. What is sent into one
waits in the kernel until it is read at the other, open files with it, whether or not anybody is there. So the
holder itself has nothing to do, and what waits goes when the holder goes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
import termios
from array import array
from collections.abc import Iterable, Mapping, Sequence

from cloister.kernel.holder import SHELF_VARIABLE

log = logging.getLogger(__name__)

#: bytes, and files of one message (the kernel's SCM_MAX_FD)
_LONGEST, _FILES = 1 << 16, 253


class Shelf:
    """One message waits: all that is kept. A new one is sent before the old one is read, so at no moment is
    there none."""

    def __init__(self, ends: tuple[int, int]) -> None:
        """The descriptors are the shelf's from now on, and no child's."""
        for fd in ends:
            os.set_inheritable(fd, False)
        self._in, self._out = (socket.socket(fileno=fd) for fd in ends)
        for end in (self._in, self._out):
            end.setblocking(False)
        self._waiting = 0

    @classmethod
    def of_the_holder(cls) -> Shelf | None:
        """The one that the holder left to this process, if it did."""
        ends = os.environ.pop(SHELF_VARIABLE, "")
        try:
            first, second = map(int, ends.split(","))
            return cls((first, second))
        except (ValueError, OSError):
            return None

    def close(self) -> None:
        """What is kept stays."""
        self._in.close()
        self._out.close()

    def look(self) -> dict[str, list[int]]:
        """What is kept by name: descriptors of the caller's own. It stays on the shelf. Raises OSError."""
        while True:
            try:
                data, files = self._receive(socket.MSG_PEEK)
            except BlockingIOError:
                return {}
            waits = int.from_bytes(fcntl.ioctl(self._out, termios.FIONREAD, bytes(4)), sys.byteorder)
            if waits <= len(data):
                break
            # A daemon was killed after it had sent a newer one.
            _close(files)
            self._pass_over()
        self._waiting = 1
        left = iter(files)
        return {name: [next(left) for _ in range(count)] for name, count in json.loads(data)}

    def keep(self, things: Mapping[str, Sequence[int]]) -> None:
        """Keep these in place of what was kept. Files beyond what a message takes are not. Raises OSError."""
        files: list[int] = []
        names: list[tuple[str, int]] = []
        for name, each in things.items():
            if len(files) + len(each) > _FILES:
                log.warning("there is no room to keep %s for the next daemon", name)
                continue
            files += each
            names.append((name, len(each)))
        socket.send_fds(self._in, [json.dumps(names).encode()], files)
        for _ in range(self._waiting):
            self._pass_over()
        self._waiting = 1

    def _pass_over(self) -> None:
        _close(self._receive(0)[1])

    def _receive(self, flags: int) -> tuple[bytes, list[int]]:
        # `socket.recv_fds` passes no flags on (Python 3.11).
        found = array("i")
        room = socket.CMSG_LEN(_FILES * found.itemsize)
        data, extra, _, _ = self._out.recvmsg(_LONGEST, room, flags | socket.MSG_CMSG_CLOEXEC)
        for _, kind, body in extra:
            if kind == socket.SCM_RIGHTS:
                found.frombytes(body)
        return data, list(found)


def _close(files: Iterable[int]) -> None:
    for fd in files:
        os.close(fd)
