"""A request's body: how long it is, and its pieces, the last of which comes when all were found true."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from cloister.room import Room, whole
from cloister.s3 import checksums
from cloister.s3.asked import Asked
from cloister.wire.errors import AwsError
from cloister.wire.payload import Checks, Decoder, PlainDecoder, decoder

#: bytes of an XML or JSON body (10,000 parts with checksums are 2 MB)
MAX_DOCUMENT = 4 << 20
MAX_OBJECT = 5 << 30  # AWS: one PUT, one part


def length(asked: Asked) -> int:
    chunked = asked.verified is not None and asked.verified.is_chunked
    text = asked.headers.get("x-amz-decoded-content-length" if chunked else "content-length", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise AwsError("MissingContentLength", "You must provide the Content-Length HTTP header.", 411)
    if int(text) > MAX_OBJECT:
        raise AwsError(
            "EntityTooLarge",
            "Your proposed upload exceeds the maximum allowed size",
            ProposedSize=text,
            MaxSizeAllowed=str(MAX_OBJECT),
        )
    return int(text)


async def checked(request: web.BaseRequest, checking: Decoder) -> AsyncIterator[bytes]:
    """The body's own bytes. The last piece comes only after everything was found true."""
    held: bytes | memoryview = b""
    async for data in request.content.iter_any():
        for piece in checking.feed(data):
            if held:
                yield bytes(held)
            held = piece
    checking.finish()
    if held:
        yield bytes(held)


async def compared(pieces: AsyncIterator[bytes], checks: Checks) -> AsyncIterator[bytes]:
    """A file's pieces, the last of which comes when its checksums were found true."""
    held = b""
    async for piece in pieces:
        if checks.update is not None:
            checks.update(piece)
        if held:
            yield held
        held = piece
    checks.finish()
    if held:
        yield held


async def chunked(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A body whose length is not known, as HTTP has it."""
    async for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


async def document(request: web.BaseRequest, asked: Asked, room: Room) -> bytes:
    """A small body, whole and checked."""
    too_large = AwsError(
        "MaxMessageLengthExceeded", "Your request was too big.", MaxMessageLengthBytes=str(MAX_DOCUMENT)
    )
    pieces = checked(request, decoding(asked))
    return await whole(pieces, room, asked.origin.address, MAX_DOCUMENT, too_large)


def decoding(asked: Asked) -> Decoder:
    if asked.operation.name != "CompleteMultipartUpload":  # whose headers speak of the object
        checksums.given(asked.headers)
    if asked.verified is not None:
        return decoder(asked.head, asked.verified)
    if asked.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        raise AwsError("AccessDenied", "Access Denied", 403)
    checks = Checks()
    for name, value in asked.headers.items():
        checks.expect(name, value)
    length = asked.headers.get("content-length", "")
    return PlainDecoder(None, checks, int(length) if length.isascii() and length.isdigit() else None)
