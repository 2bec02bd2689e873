"""The fast way down for a large object: everything is decided and the answer's head is sent before; what is
left is a known number of bytes, which a worker thread copies from the backend's socket to the client's.

Over HTTP the kernel moves them (splice); over TLS they are read, sealed and sent piece by piece, by OpenSSL
and the kernel without the interpreter's lock. asyncio keeps both sockets but touches neither meanwhile:
nothing is read from them, the client's has nothing left to write. The thread works on duplicates of the two
descriptors; the backend's connection is not used again, the client's goes on as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from aiohttp import web

from cloister.s3.client import Answer

#: bytes from which the threads' hand-over pays
LEAST = 4 << 20
PIPE = 1 << 20
#: bytes that the backend should have sent before the thread is woken
WORTH = 1 << 20
#: bytes that are sealed at once
PIECE = 512 << 10
#: seconds without one byte moved, as of the backend's session
STALLED = 120.0
#: copies at the same time; what comes above goes the slow way
COPIES = 32

_F_SETPIPE_SZ = 1031
_pool = ThreadPoolExecutor(COPIES, "s3-splice")
_free = threading.BoundedSemaphore(COPIES)


Runs = Iterable[tuple[socket.socket, int]]  #: from each socket, which does not block, so many bytes


class Source(Protocol):
    """More of a body. The thread takes its `runs`; `stop` wakes it with an OSError; who made it closes it."""

    def runs(self) -> Runs: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Tls:
    """What asyncio's TLS transport is made of. Nobody else may use `record` while the thread does."""

    record: ssl.SSLObject
    outgoing: ssl.MemoryBIO
    below: asyncio.Transport


def _tls(client: asyncio.Transport) -> _Tls | None:
    """asyncio has no public names for these; where its private ones are others, the slow way stays."""
    protocol = getattr(client, "_ssl_protocol", None)
    outgoing, below = getattr(protocol, "_outgoing", None), getattr(protocol, "_transport", None)
    record = client.get_extra_info("ssl_object")
    if (
        isinstance(record, ssl.SSLObject)
        and isinstance(outgoing, ssl.MemoryBIO)
        and isinstance(below, asyncio.Transport)
    ):
        return _Tls(record, outgoing, below)
    return None


async def send(request: web.BaseRequest, response: web.StreamResponse, answer: Answer, length: int) -> bool:
    """Send what is left of the body of `answer`, `length` bytes, after what the prepared `response` has sent.
    False, and nothing was done, when this way is not open: a small or a chunked body, too many copies.
    ConnectionError when either side breaks off."""
    transport = answer.transport
    if length < LEAST or transport.get_extra_info("sslcontext"):
        return False
    async with _client(request) as client:
        if client is None or (held := answer.take_over()) is None:
            return False
        await response.write(held)
        if not held:
            request.writer.send_headers()
        with _duplicate(transport) as source:
            await client.copy([(source, length - len(held))], lambda: _shut(source))
    return True


async def send_more(request: web.BaseRequest, source: Source) -> bool:
    """Send all of `source` after what was written of a response's body; else as `send`."""
    async with _client(request) as client:
        if client is None:
            return False
        await client.copy(source.runs(), source.stop)
    return True


class _Client:
    """A client's connection while a thread writes to it and asyncio does not."""

    def __init__(self, transport: asyncio.Transport, tls: _Tls | None) -> None:
        self._transport = transport
        self._tls = tls

    async def copy(self, runs: Runs, stop: Callable[[], None]) -> None:
        """Send the runs, whole; `stop` makes the thread's reading fail."""
        await self._written()
        with _duplicate(self._transport) as target:
            copy = asyncio.get_running_loop().run_in_executor(_pool, _copy, runs, target, self._tls)
            try:
                await asyncio.shield(copy)
            except OSError as error:
                self._transport.abort()  # the head promised more bytes: nothing else may follow
                raise ConnectionResetError("a large object's copy broke off") from error
            except asyncio.CancelledError:
                _shut(target)  # wakes the thread; the descriptors are closed after it has gone
                stop()
                with contextlib.suppress(OSError):
                    await copy
                raise

    async def _written(self) -> None:
        """Until asyncio has nothing left to write."""
        deadline = time.monotonic() + STALLED
        below = self._tls.below if self._tls else self._transport
        while self._transport.get_write_buffer_size() or below.get_write_buffer_size():
            if self._transport.is_closing() or time.monotonic() > deadline:
                raise ConnectionResetError("the client does not read")
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def _client(request: web.BaseRequest) -> AsyncIterator[_Client | None]:
    """None: the thread cannot write to it, or there are too many copies."""
    transport = request.transport
    tls = None
    if not isinstance(transport, asyncio.Transport) or (
        transport.get_extra_info("sslcontext") and (tls := _tls(transport)) is None
    ):
        yield None
        return
    if not _free.acquire(blocking=False):
        yield None
        return
    with contextlib.ExitStack() as stack:
        stack.callback(_free.release)
        if tls is not None:
            for each in (transport, tls.below):  # what the client sends would be opened by the loop's thread
                each.pause_reading()
                stack.callback(each.resume_reading)
        yield _Client(transport, tls)


def _duplicate(transport: asyncio.Transport) -> socket.socket:
    return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _copy(runs: Runs, target: socket.socket, tls: _Tls | None) -> None:
    move: Callable[[socket.socket, socket.socket, int], None] = _splice
    if tls is not None:
        move = partial(_seal, tls=tls)
    for end, size in runs:
        move(end, target, size)


def _splice(source: socket.socket, target: socket.socket, left: int) -> None:
    """Move `left` bytes between two non-blocking sockets."""
    readable, writable = _Readable(source), _poll(target, select.POLLOUT)
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with contextlib.suppress(OSError):  # above the user's limit: the pipe stays small
            fcntl.fcntl(into, _F_SETPIPE_SZ, PIPE)
        while left:
            try:
                moved = os.splice(source.fileno(), into, min(left, PIPE))
            except BlockingIOError:
                readable.wait(left)
                continue
            if not moved:
                raise ConnectionResetError("the object store broke off")
            left -= moved
            while moved:
                try:
                    moved -= os.splice(out, target.fileno(), moved)
                except BlockingIOError:
                    _wait(writable)
    finally:
        os.close(out)
        os.close(into)


def _seal(source: socket.socket, target: socket.socket, left: int, *, tls: _Tls) -> None:
    """Move `left` bytes between two non-blocking sockets, through the client's TLS."""
    readable, writable = _Readable(source), _poll(target, select.POLLOUT)
    buffer = memoryview(bytearray(PIECE))
    while left:
        try:
            taken = source.recv_into(buffer[: min(left, PIECE)])
        except BlockingIOError:
            readable.wait(left)
            continue
        if not taken:
            raise ConnectionResetError("the object store broke off")
        left -= taken
        sealed = 0
        while sealed < taken:
            sealed += tls.record.write(buffer[sealed:taken])
        records = memoryview(tls.outgoing.read())
        while records:
            try:
                records = records[target.send(records) :]
            except BlockingIOError:
                _wait(writable)


class _Readable:
    """Waits for a worthwhile piece: waking for every segment costs more than moving it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._poll = _poll(end, select.POLLIN | select.POLLRDHUP)
        self._least = 1

    def wait(self, left: int) -> None:
        least = min(left, WORTH)
        if least != self._least:
            self._end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._least = least
        _wait(self._poll)


def _poll(end: socket.socket, events: int) -> select.poll:
    made = select.poll()
    made.register(end, events)
    return made


def _wait(ready: select.poll) -> None:
    if not ready.poll(STALLED * 1000):
        raise ConnectionResetError(f"not one byte moved in {STALLED:.0f} s")
