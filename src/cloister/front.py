"""The front: one listener for every service. S3 goes to the door, all else to the dispatcher.

Which it is, is told by what the caller signed for; an unsigned request without an API target is S3's, as
anonymous requests are.
"""

from __future__ import annotations

import logging

from aiohttp import web

from cloister.dispatch import MAX_BODY, Dispatcher
from cloister.room import whole
from cloister.s3.door import Door
from cloister.services.api import Origin
from cloister.wire import protocol
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse

log = logging.getLogger(__name__)


class Front:
    """`handle` is an aiohttp handler. `cors_origins` are browser origins that may call (none by default)."""

    def __init__(self, dispatcher: Dispatcher, door: Door, *, cors_origins: tuple[str, ...] = ()) -> None:
        self._dispatcher = dispatcher
        self._door = door
        self._cors = frozenset(cors_origins)

    async def at_endpoint(self, request: web.BaseRequest, origin: Origin, service: str) -> web.StreamResponse:
        """A request that came through an interface endpoint of `service`, which is all that is answered."""
        head = _head(request)
        try:
            body = await self._read(request)
        except AwsError as error:
            return _answer(protocol.render_error(protocol.guess(head), error, ""))
        return _answer(await self._dispatcher.handle(_with_body(head, body), origin, service=service))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        origin = Origin(address=request.remote or "127.0.0.1", secure=request.secure)
        browser = request.headers.get("Origin")
        allowed = browser in self._cors
        if request.method == "OPTIONS" and allowed:
            return web.Response(headers=_cors_headers(browser or ""))
        head = _head(request)
        if is_s3(head):
            return await self._door.handle(request, origin)
        try:
            body = await self._read(request)
        except AwsError as error:
            return _answer(protocol.render_error(protocol.guess(head), error, ""))
        answer = _answer(await self._dispatcher.handle(_with_body(head, body), origin))
        if allowed:
            answer.headers.update(_cors_headers(browser or ""))
        return answer

    async def _read(self, request: web.BaseRequest) -> bytes:
        too_large = AwsError(
            "RequestEntityTooLarge", f"The request body is larger than {MAX_BODY} bytes.", 413
        )
        pieces, address = request.content.iter_any(), request.remote or ""
        return await whole(pieces, self._door.room, address, MAX_BODY, too_large)


def is_s3(head: HttpRequest) -> bool:
    """Signed for S3; or not signed at all and not naming an API operation."""
    scope = protocol.signing_name(head)
    if scope is not None:
        return scope == "s3"
    form = (head.header("content-type") or "").startswith("application/x-www-form-urlencoded")
    return head.header("x-amz-target") is None and not (head.method == "POST" and form)


def _head(request: web.BaseRequest) -> HttpRequest:
    path, _, query = request.raw_path.partition("?")
    return HttpRequest(
        method=request.method,
        path=path,
        query=query,
        headers=tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in request.raw_headers),
        body=b"",
    )


def _with_body(head: HttpRequest, body: bytes) -> HttpRequest:
    return HttpRequest(method=head.method, path=head.path, query=head.query, headers=head.headers, body=body)


def _answer(response: HttpResponse) -> web.Response:
    answer = web.Response(status=response.status, body=response.body)
    for name, value in response.headers:
        answer.headers[name] = value
    return answer


def _cors_headers(browser: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": browser,
        "Access-Control-Allow-Methods": "GET, HEAD, PUT, POST, DELETE",
        "Access-Control-Allow-Headers": "*",
        "Vary": "Origin",
    }
