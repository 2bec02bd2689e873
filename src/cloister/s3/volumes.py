"""What is left of a large object of our own SeaweedFS, read where its bytes lie: from the volume server.

SeaweedFS's S3 gateway fetches every byte from the volume server of the same process and hands it on, which is
two thirds of what a download costs the machine (measured: 1.2 s of CPU for 1 GiB, 0.4 s without). It still
answers each request, with status, head and the first bytes, so what S3 means stays its own affair; the rest
of a whole object is taken from the chunks that the filer lists for it. Whatever is not as simple as that (a
list of lists, keys, an object changed meanwhile) goes the ordinary way.
"""

from __future__ import annotations

import base64
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

#: bytes that the gateway is asked for: it reads far ahead of what it sends, also for who then hangs up
FIRST = 1 << 20
#: seconds until a head has come
PATIENCE = 30.0
_MAX_HEAD = 16 << 10
_ETAG = "Seaweed-X-Amz-ETag"
#: what the filer says of a chunk that is nothing but bytes; more would be a key, or a list of more chunks
_PLAIN = frozenset({"file_id", "offset", "size", "modified_ts_ns", "e_tag", "fid"})


@dataclass(frozen=True, slots=True)
class Chunk:
    """`size` bytes from `first` of a chunk of `whole` bytes."""

    file_id: str
    first: int
    size: int
    whole: int


def chunks(entry: Mapping[str, Any], etag: str, start: int, length: int) -> list[Chunk] | None:
    """Where the bytes from `start` lie of the object of this ETag and length, in order; None: hard to say."""
    try:
        told = base64.b64decode((entry.get("Extended") or {})[_ETAG]).decode()
        listed = sorted(entry["chunks"] or (), key=lambda each: int(each.get("offset", 0)))
        if told.strip('"') != etag.strip('"') or any(set(each) - _PLAIN for each in listed):
            return None
        found, end = [], 0
        for each in listed:
            offset, size = int(each.get("offset", 0)), int(each["size"])
            if offset != end:
                return None
            end += size
            first = max(start - offset, 0)
            if first < size:
                found.append(Chunk(str(each["file_id"]), first, size - first, size))
        return found if end == length else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class Volumes:
    """A source for `splice.send_more`: the chunks one after the other, from two connections in turn, so
    that the next is being read from the disk while one is sent."""

    def __init__(self, listed: list[Chunk], connections: tuple[socket.socket, socket.socket]) -> None:
        self._chunks = listed
        self._connections = connections

    def runs(self) -> Iterator[tuple[socket.socket, int]]:
        if self._chunks:
            self._ask(0)
        for number, chunk in enumerate(self._chunks):
            if number + 1 < len(self._chunks):
                self._ask(number + 1)
            connection = self._connections[number % 2]
            _skip_head(connection, chunk)
            yield connection, chunk.size

    def _ask(self, number: int) -> None:
        chunk = self._chunks[number]
        part = f"Range: bytes={chunk.first}-{chunk.whole - 1}\r\n" if chunk.first else ""
        request = f"GET /{chunk.file_id} HTTP/1.1\r\nHost: volume\r\n{part}\r\n"
        self._connections[number % 2].sendall(request.encode())

    def stop(self) -> None:
        for each in self._connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._connections:
            each.close()


def _skip_head(connection: socket.socket, chunk: Chunk) -> None:
    """Take an answer's head off the connection, and not one byte of its body."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    ready = select.poll()
    ready.register(connection, select.POLLIN)
    seen = 0
    while True:
        if not ready.poll(PATIENCE * 1000):
            raise ConnectionResetError(f"the volume server has not answered for {PATIENCE:.0f} s")
        head = connection.recv(_MAX_HEAD, socket.MSG_PEEK)
        end = head.find(b"\r\n\r\n") + 4
        if end >= 4:
            break
        if len(head) in (seen, _MAX_HEAD):
            raise ConnectionResetError("the volume server broke off")
        # What was seen stays readable: wait until there is more than that.
        seen = len(head)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
    connection.recv(end)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    status, *lines = head[: end - 4].decode("latin-1").split("\r\n")
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    good = "206" if chunk.first else "200"
    if status.split(" ")[1:2] != [good] or fields.get("content-length") != str(chunk.size):
        raise ConnectionResetError(f"the volume server answered {status!r} for a chunk of {chunk.size} bytes")
