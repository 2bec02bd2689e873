"""Serving HTTP as the doors do: limits on connections and heads, and the S3 door on sockets of its own.

Which endpoint and which VPC a request came through is known from the socket it was accepted on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from cloister.listening import Listening
from cloister.room import Room
from cloister.s3 import buckets
from cloister.s3.backend import UNIT
from cloister.s3.door import MAX_HEADERS, Door
from cloister.servers import Close
from cloister.services.api import Origin
from cloister.wire.errors import AwsError

HTTP, HTTPS = 80, 443
BACKLOG = 1024

#: connections that one door serves at a time: more are told to slow down, at twice as many they are cut
CONNECTIONS = 512
#: of which so many may be from one address: a job does not shut out the others
OF_ONE = 256
#: seconds from a connection's start, or its last answer, within which a whole head must have come
HEAD_SECONDS = 30.0


async def listen(
    runner: web.ServerRunner,
    plain: socket.socket | None,
    tls: socket.socket | None,
    context: ssl.SSLContext | None,
) -> None:
    """Have `runner` serve what comes to the bound sockets of one door. `CONNECTIONS` are those that are open
    to requests; here those count as well that have not spoken TLS yet."""
    assert tls is None or context is not None
    room = Room(4 * CONNECTIONS, OF_ONE)
    for bound, ssl_context in ((plain, None), (tls, context)):
        if bound is not None:
            listening = Listening(bound, room)
            await web.SockSite(runner, listening, ssl_context=ssl_context, backlog=BACKLOG).start()


async def serve(
    door: Door,
    plain: socket.socket | None,
    tls: socket.socket | None,
    context: ssl.SSLContext | None,
    endpoint_id: str | None = None,
    vpc_id: str | None = None,
) -> Close:
    """Serve `door` on bound sockets until the returned function is awaited."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        origin = Origin(
            address=request.remote or "",
            endpoint_id=endpoint_id,
            vpc_id=vpc_id,
            secure=request.transport is not None
            and request.transport.get_extra_info("sslcontext") is not None,
        )
        return await door.handle(request, origin)

    runner = web.ServerRunner(server(handle), shutdown_timeout=1.0)
    await runner.setup()
    await listen(runner, plain, tls, context)
    return runner.cleanup


def _worth_telling(record: logging.LogRecord) -> bool:
    """Bytes that are no HTTP are answered with 400, and a client may hang up any time: no defects of ours,
    and a job that does it shall not fill the daemon's log with tracebacks."""
    theirs = (HttpProcessingError, ConnectionError)
    return record.exc_info is None or not isinstance(record.exc_info[1], theirs)


logging.getLogger("aiohttp.server").addFilter(_worth_telling)


class _Server(web.Server):
    """Knows its connections: those beyond `CONNECTIONS`, and those that have not asked anything yet."""

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        self._beyond: set[RequestHandler] = set()
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}

        async def limited(request: web.BaseRequest) -> web.StreamResponse:
            self._heard(request.protocol)
            return _slow_down(request) if request.protocol in self._beyond else await handle(request)

        super().__init__(
            limited,
            access_log=None,
            auto_decompress=False,
            read_bufsize=UNIT,
            keepalive_timeout=HEAD_SECONDS,
            max_line_size=MAX_HEADERS,
            max_field_size=MAX_HEADERS,
            lingering_time=2.0,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        others = len(self.connections)
        super().connection_made(handler, transport)
        if others >= 2 * CONNECTIONS:
            transport.abort()
            return
        if others >= CONNECTIONS:
            self._beyond.add(handler)
        # aiohttp looks after a connection between two requests, not before the first
        self._silent[handler] = asyncio.get_running_loop().call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._heard(handler)
        self._beyond.discard(handler)
        super().connection_lost(handler, exc)

    def _heard(self, handler: RequestHandler) -> None:
        timer = self._silent.pop(handler, None)
        if timer is not None:
            timer.cancel()


def server(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> web.Server:
    """The aiohttp server with our limits. Bodies stay as they were sent: a gzip file is not unpacked."""
    return _Server(handle)


def _slow_down(request: web.BaseRequest) -> web.Response:
    error = AwsError("SlowDown", "Please reduce your request rate.", 503)
    request_id, host_id = secrets.token_hex(8).upper(), secrets.token_hex(32)
    body = buckets.error_xml(error, request.raw_path.partition("?")[0][:2048], request_id, host_id)
    answer = web.Response(
        status=503,
        body=b"" if request.method == "HEAD" else body,
        headers={"Content-Type": "application/xml", "x-amz-request-id": request_id, "x-amz-id-2": host_id},
    )
    answer.force_close()
    return answer
