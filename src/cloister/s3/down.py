"""An answer of the object store on its way down to the client, once the door has found nothing to refuse."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import closing, nullcontext

from aiohttp import web
from multidict import CIMultiDict

from cloister.s3 import buckets, checksums, passing, splice, sse
from cloister.s3.backend import UNIT
from cloister.s3.client import Answer
from cloister.wire.errors import AwsError

log = logging.getLogger(__name__)

#: asks the store the same again, with these headers
Ask = Callable[[tuple[tuple[str, str], ...]], Awaitable[Answer]]
#: `Backend.direct` of the object: of its ETag and length
Direct = Callable[[str, int], Awaitable[splice.Source | None]]


def headers(answer: Answer, ids: dict[str, str]) -> CIMultiDict[str]:
    """The client's headers: the store's, but for its own affairs, and the request's ids. SeaweedFS shows an
    object's tags to who reads it, which needs a permission of its own."""
    found: CIMultiDict[str] = CIMultiDict()
    for key, value in answer.headers.items():
        name = key.lower()
        if name in passing.DOWN_DROPPED or name.startswith(passing.DOWN_DROPPED_FAMILIES) or name == sse.KEPT:
            continue
        if name.startswith("x-amz-tagging-") and name != "x-amz-tagging-count":
            continue
        if name in checksums.HEADERS:
            found.setdefault(checksums.TYPE, "FULL_OBJECT")
        if name == checksums.TYPE:
            found[name] = value
        else:
            found.add(key, value)
    found.update(ids)
    return found


async def head(request: web.BaseRequest, answer: Answer, headers: CIMultiDict[str]) -> web.StreamResponse:
    """The answer to a HEAD: the length of a body that does not come."""
    response = await _begun(request, answer, headers)
    await response.write_eof()
    return response


async def body(request: web.BaseRequest, answer: Answer, headers: CIMultiDict[str]) -> web.StreamResponse:
    """The answer with its body. ConnectionError when either side breaks off inside of it."""
    if int(answer.headers.get("Content-Length", UNIT + 1)) <= UNIT:
        text = await _read(answer)  # in one packet with its head
        return web.Response(status=answer.status, headers=headers, body=text)
    response = await _begun(request, answer, headers)
    await _pass(request, response, answer, int(answer.headers.get("Content-Length", "0")))
    await response.write_eof()
    return response


async def whole(
    request: web.BaseRequest,
    answer: Answer,
    headers: CIMultiDict[str],
    direct: Direct,
    ask: Ask,
    first: int,
) -> web.StreamResponse:
    """An object, of which `answer` has the `first` bytes, or all: the rest by the direct way, else from the
    answer or by asking for it."""
    part = headers.pop("Content-Range", None)
    length = int(part.rpartition("/")[2] if part else answer.headers["Content-Length"])
    found = await (_read(answer) if part else _first(answer, min(first, length)))
    beginning = found[:first]
    if len(beginning) == length:
        return web.Response(headers=headers, body=beginning)
    etag = answer.headers.get("ETag", "")
    more = await direct(etag, length)
    response = web.StreamResponse(headers=headers)
    response.content_length = length
    if more is not None and not part:
        answer.release()  # it would read ahead what nobody takes
    with closing(more) if more else nullcontext():
        await response.prepare(request)
        await response.write(beginning)
        if more is None and not part:
            await response.write(found[first:])
            await _pass(request, response, answer, length - len(found))
        elif more is None or not await splice.send_more(request, more):
            await _pass_rest(request, response, ask, len(beginning), etag)
    await response.write_eof()
    return response


def refusal(status: int, text: str, key: str) -> AwsError:
    """The store's error as the client's, about this key."""
    try:
        root = buckets.parse_xml(text.encode())
        code, message = root.findtext("Code"), root.findtext("Message")
        fields = {
            each: root.findtext(each) or "" for each in ("BucketName", "UploadId") if root.findtext(each)
        } | ({"Key": key} if key and root.findtext("Key") else {})
    except AwsError:
        code, message, fields = None, None, {}
    if not code:
        return AwsError("InvalidRequest", f"The object store answered with status {status}.", status)
    return AwsError(code, message or code, status, **fields)


def unavailable(error: BaseException) -> AwsError:
    if isinstance(error, AwsError):
        return error
    log.warning("the object store broke off: %s", error)
    return AwsError("ServiceUnavailable", "The object store does not answer. Please try again.", 503)


async def _begun(request: web.BaseRequest, answer: Answer, headers: CIMultiDict[str]) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=headers)
    if "Content-Length" in answer.headers:
        response.content_length = int(answer.headers["Content-Length"])
    await response.prepare(request)
    return response


async def _first(answer: Answer, least: int) -> bytes:
    """The first bytes of its body, so many or more."""
    found = bytearray()
    try:
        async for piece in answer.pieces():
            found += piece
            if len(found) >= least:
                break
    except OSError as error:
        raise unavailable(error) from None
    return bytes(found)


async def _read(answer: Answer) -> bytes:
    try:
        return await answer.read()
    except OSError as error:
        raise unavailable(error) from None


async def _pass_rest(
    request: web.BaseRequest, response: web.StreamResponse, ask: Ask, start: int, etag: str
) -> None:
    try:
        answer = await ask((("Range", f"bytes={start}-"), ("If-Match", etag)))
    except (AwsError, OSError) as error:
        raise _broken_off(request) from error
    async with answer:
        if answer.status != 206:  # another object has its name by now
            raise _broken_off(request)
        await _pass(request, response, answer, int(answer.headers.get("Content-Length", "0")))


async def _pass(request: web.BaseRequest, response: web.StreamResponse, answer: Answer, left: int) -> None:
    """Send the body of `answer`, of which `left` bytes were not read, after what `response` has sent."""
    if await splice.send(request, response, answer, left):
        return
    try:
        async for piece in answer.pieces():
            await response.write(piece)
    except OSError as error:
        raise _broken_off(request) from error


def _broken_off(request: web.BaseRequest) -> ConnectionResetError:
    """The head promised more bytes: an error's answer must not be taken for them."""
    if request.transport is not None:
        request.transport.abort()
    return ConnectionResetError("the object store broke off")
