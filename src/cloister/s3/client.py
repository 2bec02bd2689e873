"""HTTP/1.1 to one server, as far as the door needs it: requests out, answers in, connections that are kept.

aiohttp's client does much more, and takes for it 100 us of the 900 that both sides of a GET of 4 KiB need
altogether. Heads and framing are httptools' affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from urllib.parse import urlsplit

import httptools
from multidict import CIMultiDict

#: connections at a time; more requests wait
CONNECTIONS = 256
#: seconds that a connection is kept without use
KEPT = 20.0
#: seconds to connect, and without one byte moved while the server is waited for
CONNECT_SECONDS, STALLED = 5.0, 120.0
#: seconds between two looks at the connections
LOOK = 5.0
#: bytes of an answer that nobody has taken yet
HELD = 2 << 20

#: what is done once if it is done twice: asked again when a kept connection turns out to be closed
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})

Body = AsyncIterable[bytes] | bytes | None
Connected = tuple[asyncio.Transport, "Connection"]
#: makes a connection, given what makes its protocol
Connect = Callable[[Callable[[], "Connection"]], Awaitable[Connected]]


class BodyFailed(ConnectionError):
    """The request's own body broke off."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(f"the request's body broke off: {reason}")
        self.reason = reason


def to_socket(path: str) -> Connect:
    """By a unix socket."""

    async def connect(made: Callable[[], Connection]) -> Connected:
        transport, connection = await asyncio.get_running_loop().create_unix_connection(made, path)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return transport, connection

    return connect


def to_url(url: str) -> Connect:
    """To the host of an http or https URL."""
    parts = urlsplit(url)
    context = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)

    async def connect(made: Callable[[], Connection]) -> Connected:
        loop = asyncio.get_running_loop()
        return await loop.create_connection(made, parts.hostname or "", port, ssl=context)

    return connect


class Client:
    """Every failure of the server or of the way to it is an OSError."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._looking: asyncio.TimerHandle | None = None

    async def request(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: Body = None
    ) -> Answer:
        """The answer's status and head; the caller releases it. `target` is as it goes into the request line.
        A body in pieces needs its Content-Length among the headers, or is chunked, and they say so.
        Raises OSError, BodyFailed."""
        if isinstance(body, bytes) and not any(name.lower() == "content-length" for name, _ in headers):
            headers = (*headers, ("Content-Length", str(len(body))))
        head = _head(method, target, headers)
        await self._room.acquire()
        try:
            while True:
                kept = self._kept()
                connection = kept or await self._open()
                try:
                    await connection.ask(head, body, method)
                    return Answer(self, connection)
                except BaseException as error:
                    connection.abort()
                    twice = method in _IDEMPOTENT and (body is None or isinstance(body, bytes))
                    closed = kept is not None and isinstance(error, ConnectionError) and not connection.heard
                    if not (closed and twice):
                        raise
        except BaseException:
            self._room.release()
            raise

    def done(self, connection: Connection) -> None:
        """With an answer: the connection is kept if it can be."""
        if connection.reusable:
            connection.since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()
        self._room.release()

    async def close(self) -> None:
        for each in self._all:
            each.abort()
        self._all.clear()
        self._idle.clear()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        await asyncio.sleep(0)  # the transports close their sockets in the next turn

    def _kept(self) -> Connection | None:
        while self._idle:
            found = self._idle.pop()
            if found.open:
                return found
        return None

    async def _open(self) -> Connection:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await self._connect(Connection)
        self._all.add(connection)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK, self._look)
        return connection

    def _look(self) -> None:
        """Drop what is gone, close what was not used for long, end what is stuck."""
        now = asyncio.get_running_loop().time()
        idle = set(self._idle)
        for each in self._all:
            if each in idle:
                if now - each.since > KEPT:
                    each.abort()
            elif each.since and now - each.since > STALLED:
                each.fail(TimeoutError(f"not one byte moved in {STALLED:.0f} s"))
        self._idle = [each for each in self._idle if each.open]
        self._all = {each for each in self._all if each.open}
        self._looking = asyncio.get_running_loop().call_later(LOOK, self._look) if self._all else None


def _head(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers]]
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError(f"a line break or a null character in the head of {method} {target[:200]!r}")
    return f"{text}\r\n\r\n".encode()


class Connection(asyncio.Protocol):
    """One request at a time. What httptools calls back has its names."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.open = True
        #: loop's time since when the server is waited for, or since when nobody uses this; 0: neither
        self.since = 0.0
        self._error: OSError | None = None
        self._may_write: asyncio.Future[None] | None = None
        self._begin("")
        self._whole = True

    def _begin(self, method: str) -> None:
        self.heard = False
        self.since = 0.0
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.reusable = False
        self._is_head = method == "HEAD"
        self._whole = False
        self._framed = False
        self._keep = False
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._reading = True
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    # -- a request ------------------------------------------------------------------------------------

    async def ask(self, head: bytes, body: Body, method: str) -> None:
        """Send it, until the answer's head is there."""
        self._begin(method)
        if body is None or isinstance(body, bytes):
            self.transport.write(head + body if body else head)
        else:
            self.transport.write(head)
            if not await self._send(body):
                return
        while not self.status:
            await self._more()

    async def _send(self, body: AsyncIterable[bytes]) -> bool:
        """False: the server has answered before all was sent."""
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self._pieces_out(body))
        answered = self._waiter = loop.create_future()
        try:
            await asyncio.wait({sending, answered}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                return True
            if self._error is not None:
                raise self._error
            return False
        finally:
            self._waiter = None
            if not sending.done():
                self._keep = self.reusable = False  # it waits for the rest of the body
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await sending

    async def _pieces_out(self, body: AsyncIterable[bytes]) -> None:
        pieces = aiter(body)
        while True:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except Exception as error:
                raise BodyFailed(error) from error
            if self._error is not None:
                raise self._error
            self.transport.write(piece)
            if self._may_write is not None:
                await self._waited(self._may_write)

    async def _more(self) -> None:
        """Until there is more of the answer."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waited(self._waiter)
        finally:
            self._waiter = None

    async def _waited(self, future: asyncio.Future[None]) -> None:
        self.since = asyncio.get_running_loop().time()
        try:
            await future
        finally:
            self.since = 0.0
        if self._error is not None:
            raise self._error

    # -- its answer -----------------------------------------------------------------------------------

    async def read(self) -> bytes:
        while not self._whole:
            await self._more()
        return self._taken()

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            if self._pieces:
                yield self._taken()
            elif self._whole:
                return
            else:
                await self._more()

    def take_over(self) -> bytes | None:
        if self._whole or not self._framed or not self.open:
            return None
        self.transport.pause_reading()
        held, self._pieces, self._held = b"".join(self._pieces), deque(), 0
        return held

    def _taken(self) -> bytes:
        pieces = self._pieces
        found = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._held = 0
        if not self._reading and self.open:
            self._reading = True
            self.transport.resume_reading()
        return found

    def fail(self, error: OSError) -> None:
        self._error = self._error or error
        self.abort()
        self._wake()

    def abort(self) -> None:
        self.open = self.reusable = False
        self.transport.abort()

    def _wake(self) -> None:
        for each in (self._waiter, self._may_write):
            if each is not None and not each.done():
                each.set_result(None)

    # -- asyncio's and httptools' ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self.since:
            self.since = asyncio.get_running_loop().time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(ConnectionAbortedError(f"not an answer: {error}"))
            return
        if self._held > HELD and self._reading:
            self._reading = False
            self.transport.pause_reading()
        if self._waiter is not None and self.status and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = self.reusable = False
        if self.status and not self._framed and exc is None:
            self._whole = True  # what has no length ends with its connection
        elif not self._whole:
            self._error = self._error or ConnectionResetError(f"the server broke off: {exc or 'closed'}")
        self._wake()

    def pause_writing(self) -> None:
        self._may_write = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._may_write is not None and not self._may_write.done():
            self._may_write.set_result(None)
        self._may_write = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("utf-8", "replace")))

    def on_headers_complete(self) -> None:
        if self._whole:
            raise ValueError("an answer that nobody asked for")
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()  # 100 Continue, 103 Early Hints: the answer comes after it
            return
        self._framed = self._is_head or any(
            name.lower() in ("content-length", "transfer-encoding") for name, _ in self.headers
        )
        self._keep = self._parser.should_keep_alive()
        self.status = status
        if self._is_head:
            self._ended()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        if self.status:
            self._ended()

    def _ended(self) -> None:
        self._whole = True
        self.reusable = self._keep and self.open


class Answer:
    """`headers` with any case of their names. Its body is read once, by one of the three ways."""

    def __init__(self, client: Client, connection: Connection) -> None:
        self._client = client
        self._connection: Connection | None = connection
        self.status = connection.status
        self.headers = CIMultiDict(connection.headers)
        self.transport = connection.transport

    async def read(self) -> bytes:
        return await self._held().read()

    def pieces(self) -> AsyncIterator[bytes]:
        return self._held().pieces()

    def take_over(self) -> bytes | None:
        """What is there of the body; the rest is still in `transport`'s socket, which nobody reads any more.
        None: its end would not be known, or it is all here."""
        return self._held().take_over()

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client.done(connection)

    def _held(self) -> Connection:
        if self._connection is None:
            raise ValueError("the answer was released")
        return self._connection

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
