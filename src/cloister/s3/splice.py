"""The fast way down: a large object's bytes go from the backend's socket to the client's inside the kernel.

Everything is decided and the answer's head is sent before; what is left is a known number of bytes. asyncio
keeps both sockets but touches neither meanwhile: the backend's transport does not read, the client's has
nothing left to write. A worker thread splices on duplicates of the two descriptors; the backend's connection
is not used again, the client's goes on as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from aiohttp import web

#: bytes from which the threads' hand-over pays
LEAST = 4 << 20
PIPE = 1 << 20
#: seconds without one byte moved, as of the backend's session
STALLED = 120.0
#: copies at the same time; what comes above goes the slow way
COPIES = 32

_F_SETPIPE_SZ = 1031
_pool = ThreadPoolExecutor(COPIES, "s3-splice")
_free = threading.BoundedSemaphore(COPIES)


async def send(
    request: web.BaseRequest, response: web.StreamResponse, answer: aiohttp.ClientResponse, length: int
) -> bool:
    """Send the body of `length` bytes of `answer`, none of it read yet, after the prepared `response`'s head.
    False, and nothing was done, when this way is not open: TLS, a small or a chunked body, too many copies.
    ConnectionError when either side breaks off."""
    client, connection = request.transport, answer.connection
    if length < LEAST or not isinstance(client, asyncio.Transport) or connection is None:
        return False
    source, protocol = connection.transport, connection.protocol
    if not isinstance(source, asyncio.Transport) or protocol is None:
        return False
    if client.get_extra_info("sslcontext") or source.get_extra_info("sslcontext"):
        return False
    # When the parser was held up, it may keep bytes that we do not see.
    if not source.is_reading() or protocol._tail or not _free.acquire(blocking=False):
        return False
    with contextlib.ExitStack() as stack:
        stack.callback(_free.release)
        protocol.pause_reading()
        held = answer.content.read_nowait(-1)
        protocol.pause_reading()  # taking the bytes let it read again
        await response.write(held or b"")
        if not held:
            request.writer.send_headers()
        deadline = time.monotonic() + STALLED
        while client.get_write_buffer_size():
            if client.is_closing() or time.monotonic() > deadline:
                raise ConnectionResetError("the client does not read")
            await asyncio.sleep(0.001)
        fds = []
        for transport in (source, client):
            fds.append(os.dup(transport.get_extra_info("socket").fileno()))
            stack.callback(os.close, fds[-1])
        copy = asyncio.get_running_loop().run_in_executor(_pool, _copy, fds[0], fds[1], length - len(held))
        try:
            await asyncio.shield(copy)
        except OSError as error:
            client.abort()  # the head promised more bytes: nothing else may follow on this connection
            raise ConnectionResetError("a large object's copy broke off") from error
        except asyncio.CancelledError:
            for fd in fds:  # wakes the thread; the descriptors are closed after it has gone
                with socket.socket(fileno=os.dup(fd)) as end, contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                await copy
            raise
    return True


def _copy(source: int, target: int, left: int) -> None:
    """Move `left` bytes between two non-blocking sockets."""
    readable, writable = select.poll(), select.poll()
    readable.register(source, select.POLLIN | select.POLLRDHUP)
    writable.register(target, select.POLLOUT)
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with contextlib.suppress(OSError):  # above the user's limit: the pipe stays small
            fcntl.fcntl(into, _F_SETPIPE_SZ, PIPE)
        while left:
            try:
                moved = os.splice(source, into, min(left, PIPE))
            except BlockingIOError:
                _wait(readable)
                continue
            if not moved:
                raise ConnectionResetError("the object store broke off")
            left -= moved
            while moved:
                try:
                    moved -= os.splice(out, target, moved)
                except BlockingIOError:
                    _wait(writable)
    finally:
        os.close(out)
        os.close(into)


def _wait(ready: select.poll) -> None:
    if not ready.poll(STALLED * 1000):
        raise ConnectionResetError(f"not one byte moved in {STALLED:.0f} s")
