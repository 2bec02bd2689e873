"""Bodies as they stream in: checked against what was signed, unwrapped from `aws-chunked`. Sans-IO.

    payload = decoder(request, verified)      ChunkDecoder, or PlainDecoder for a body sent as it is
    for piece in payload.feed(data): …        pieces of the object's bytes, as they become known
    payload.finish()                          AwsError unless everything was there and was true

Pieces are handed on before the signature of their chunk has arrived, so that a 5 GiB chunk needs no 5 GiB
of memory: nothing may be made visible before `finish` has returned. Any AwsError means: drop it all.

AWS: "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks" and
"… Including trailing headers" (S3 API Reference); "Checking object integrity in Amazon S3".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from cloister.wire import canonical
from cloister.wire.denials import content_mismatch
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

if TYPE_CHECKING:  # sigv4 gives these decoders to its callers
    from cloister.wire.sigv4 import Verified

MAX_LINE = 1024
MAX_TRAILER = 8192
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?\r\n")
_CHECKSUM = "x-amz-checksum-"
_CRLF = b"\r\n"


class Decoder(Protocol):
    """`trailers`: what followed the body, by lower-case name; complete after `finish`.
    `unchecked`: checksums that were given and are not ones we compute."""

    trailers: dict[str, str]
    unchecked: dict[str, str]

    def feed(self, data: bytes) -> list[bytes | memoryview]: ...
    def finish(self) -> None: ...


def decoder(request: HttpRequest, verified: Verified) -> Decoder:
    """The decoder for this request's body. Raises AwsError: MissingContentLength, InvalidRequest."""
    checks = Checks()
    # The checksum headers of CompleteMultipartUpload speak of the object, not of this body.
    if not (request.method == "POST" and "uploadId=" in request.query):
        for name, value in request.headers:
            checks.expect(name.lower(), value.strip())
    if not verified.is_chunked:
        length = request.header("content-length")
        return PlainDecoder(verified, checks, None if length is None else _length("Content-Length", length))
    decoded = request.header("x-amz-decoded-content-length")
    if decoded is None:
        raise AwsError(
            "MissingContentLength", "You must provide the x-amz-decoded-content-length header.", 411
        )
    named = request.header("x-amz-trailer") or ""
    return ChunkDecoder(
        verified,
        decoded_length=_length("x-amz-decoded-content-length", decoded),
        trailers=tuple(name.strip().lower() for name in named.split(",") if name.strip()),
        checks=checks,
    )


def _length(name: str, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise AwsError("InvalidArgument", f"{name} must be a number, not '{text[:50]}'.", ArgumentName=name)
    return int(text)


# -- checksums --------------------------------------------------------------------------------------------


class _Crc:
    def __init__(self, size: int, step: Callable[[bytes | memoryview, int], int]) -> None:
        self._value, self._size, self._step = 0, size, step

    def update(self, data: bytes | memoryview) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def _of_crt(name: str, size: int) -> _Crc:
    from awscrt import checksums  # a large library, and most clients send a CRC32

    return _Crc(size, getattr(checksums, name))


_ALGORITHMS: dict[str, Callable[[], Any]] = {
    _CHECKSUM + "crc32": lambda: _Crc(4, zlib.crc32),
    _CHECKSUM + "crc32c": lambda: _of_crt("crc32c", 4),
    _CHECKSUM + "crc64nvme": lambda: _of_crt("crc64nvme", 8),
    _CHECKSUM + "sha1": hashlib.sha1,
    _CHECKSUM + "sha256": hashlib.sha256,
    "content-md5": lambda: hashlib.md5(usedforsecurity=False),
}
#: headers that begin like checksums and are none
_NO_CHECKSUMS = frozenset({_CHECKSUM + "algorithm", _CHECKSUM + "mode", _CHECKSUM + "type"})


def is_unknown(name: str) -> bool:
    """Whether a header or trailer of this name (lower case) is a checksum that we do not compute."""
    return name.startswith(_CHECKSUM) and name not in _NO_CHECKSUMS and name not in _ALGORITHMS


class Checks:
    """The checksums of one body: which to compute, what they should be."""

    def __init__(self) -> None:
        self.expected: dict[str, str] = {}
        self.unchecked: dict[str, str] = {}
        self._running: dict[str, Any] = {}
        self.update: Callable[[bytes | memoryview], None] | None = None

    def announce(self, name: str) -> None:
        """A checksum's value will come in a trailer: begin to compute it."""
        if name in _ALGORITHMS and name not in self._running:
            self._running[name] = _ALGORITHMS[name]()
            self.update = self._update

    def _update(self, data: bytes | memoryview) -> None:
        for running in self._running.values():
            running.update(data)

    def expect(self, name: str, value: str) -> None:
        """A header or trailer; those that are no checksum are ignored."""
        if is_unknown(name):
            self.unchecked[name] = value
        if name not in _ALGORITHMS:
            return
        if self.expected.setdefault(name, value) != value:
            raise AwsError("InvalidRequest", f"The {name} header is given twice and differs.")
        self.announce(name)

    def finish(self) -> None:
        for name, value in self.expected.items():
            actual = self._running[name].digest()
            try:
                given = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                given = b""
            if len(given) != len(actual):
                if name == "content-md5":
                    raise AwsError("InvalidDigest", "The Content-MD5 you specified is not valid.")
                raise AwsError("InvalidRequest", f"Value for {name} header is invalid.")
            if not hmac.compare_digest(given, actual):
                what = "Content-MD5" if name == "content-md5" else name.removeprefix(_CHECKSUM).upper()
                raise AwsError(
                    "BadDigest",
                    f"The {what} you specified did not match the calculated checksum.",
                    ExpectedDigest=value,
                    CalculatedDigest=base64.b64encode(actual).decode("ascii"),
                )


# -- decoders ---------------------------------------------------------------------------------------------


def _incomplete(message: str) -> AwsError:
    return AwsError("IncompleteBody", message)


class PlainDecoder:
    """A body sent as it is: its length, its signed hash, its checksums."""

    def __init__(self, verified: Verified | None, checks: Checks, length: int | None) -> None:
        self.trailers: dict[str, str] = {}
        self.unchecked = checks.unchecked
        self._verified = verified
        self._checks = checks
        self._length = length
        self._seen = 0
        signed = verified is not None and verified.payload != canonical.UNSIGNED_PAYLOAD
        self._hash = hashlib.sha256() if signed else None

    def feed(self, data: bytes) -> list[bytes | memoryview]:
        self._seen += len(data)
        if self._length is not None and self._seen > self._length:
            raise _incomplete("You sent more bytes than specified by the Content-Length HTTP header.")
        if self._hash is not None:
            self._hash.update(data)
        if self._checks.update is not None:
            self._checks.update(data)
        return [data] if data else []

    def finish(self) -> None:
        if self._length is not None and self._seen != self._length:
            raise _incomplete(
                "You did not provide the number of bytes specified by the Content-Length HTTP header: "
                f"{self._seen} of {self._length}."
            )
        if self._hash is not None and self._verified is not None:
            actual = self._hash.hexdigest()
            if not hmac.compare_digest(actual, self._verified.payload):
                raise content_mismatch(self._verified.signed_by.service, self._verified.payload, actual)
        self._checks.finish()


class ChunkDecoder:
    """An `aws-chunked` body: chunk signatures, lengths, trailer, checksums.

    A body is `SIZE[;chunk-signature=…] CRLF data CRLF` …, a chunk of size 0, the trailer's lines if any,
    and an empty line. Raises AwsError: SignatureDoesNotMatch, IncompleteBody, InvalidRequest,
    MalformedTrailerError, BadDigest."""

    def __init__(
        self,
        verified: Verified,
        *,
        decoded_length: int,
        trailers: tuple[str, ...] = (),
        checks: Checks | None = None,
    ) -> None:
        payload = verified.payload
        self.trailers: dict[str, str] = {}
        self._verified = verified
        self._signed = payload != canonical.STREAMING_UNSIGNED_TRAILER
        self._trailer_names = trailers if payload != canonical.STREAMING_SIGNED else ()
        self._has_trailer = payload != canonical.STREAMING_SIGNED
        self._length = decoded_length
        self._seen = 0
        self._checks = checks or Checks()
        self.unchecked = self._checks.unchecked
        for name in self._trailer_names:
            self._checks.announce(name)
        self._previous = verified.signed_by.signature
        self._claimed = b""
        self._hash = hashlib.sha256()
        self._left = 0
        self._line = b""
        self._trailer_size = 0
        self._trailer_signature: str | None = None
        #: what comes next: "size", "data", "gap" (the CRLF after data), "trailer", "done"
        self._state = "size"

    def feed(self, data: bytes) -> list[bytes | memoryview]:
        pieces: list[bytes | memoryview] = []
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            if self._state == "data":
                piece = view[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._signed:
                    self._hash.update(piece)
                if self._checks.update is not None:
                    self._checks.update(piece)
                pieces.append(piece)
                if not self._left:
                    self._state = "gap"
                continue
            if self._state == "done":
                raise AwsError("InvalidRequest", "There is more data after the last chunk.")
            stop = data.find(b"\n", at, at + MAX_LINE) + 1
            self._line += data[at : stop or end]
            if len(self._line) > MAX_LINE or (not stop and end - at >= MAX_LINE):
                raise AwsError("InvalidRequest", f"A chunk's header is longer than {MAX_LINE} bytes.")
            if not stop:
                break
            at = stop
            line, self._line = self._line, b""
            self._take_line(line)
        return pieces

    def finish(self) -> None:
        if self._state != "done":
            raise _incomplete("The request body terminated unexpectedly.")
        if self._seen != self._length:
            raise _incomplete(
                "You did not provide the number of bytes specified by the x-amz-decoded-content-length HTTP "
                f"header: {self._seen} of {self._length}."
            )
        for name in self._trailer_names:
            if name not in self.trailers:
                raise _bad_trailer(f"The trailer {name[:100]} was announced and did not come.")
        self._checks.finish()

    def _take_line(self, line: bytes) -> None:
        if not line.endswith(_CRLF):
            raise AwsError("InvalidRequest", "A chunk's lines must end with CRLF.")
        if self._state == "size":
            self._begin_chunk(line)
        elif self._state == "gap":
            if line != _CRLF:
                raise AwsError("InvalidRequest", "A chunk is longer than its header says.")
            self._end_chunk()
            self._state = "size"
        else:
            self._take_trailer(line)

    def _begin_chunk(self, line: bytes) -> None:
        found = _SIZE_LINE.fullmatch(line)
        if found is None or (found[2] is None) == self._signed:
            raise AwsError("InvalidRequest", f"A chunk's header is not valid: {line[:100]!r}.")
        self._left = int(found[1], 16)
        self._claimed = found[2] or b""
        self._seen += self._left
        if self._seen > self._length:
            raise _incomplete("The chunks hold more bytes than x-amz-decoded-content-length says.")
        if self._left:
            self._state = "data"
            return
        self._end_chunk()
        self._state = "trailer"

    def _end_chunk(self) -> None:
        if not self._signed:
            return
        text = "\n".join(
            (
                "AWS4-HMAC-SHA256-PAYLOAD",
                self._verified.signed_by.stamp,
                self._verified.signed_by.scope,
                self._previous,
                canonical.EMPTY_SHA256,
                self._hash.hexdigest(),
            )
        )
        self._previous = self._expect_signature(text, self._claimed)
        self._hash = hashlib.sha256()

    def _expect_signature(self, text: str, claimed: bytes) -> str:
        actual = canonical.hmac_hex(self._verified.signing_key, text)
        if not hmac.compare_digest(actual.encode(), claimed):
            raise AwsError(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. Check your "
                "key and signing method.",
                403,
                StringToSign=text,
                SignatureProvided=claimed.decode("ascii", "replace"),
            )
        return actual

    def _take_trailer(self, line: bytes) -> None:
        if line == _CRLF:
            self._end_trailer()
            self._state = "done"
            return
        self._trailer_size += len(line)
        if not self._has_trailer or self._trailer_size > MAX_TRAILER:
            raise _bad_trailer("The request has a trailer that it must not have.")
        name_bytes, colon, value = line.partition(b":")
        try:
            name, text = name_bytes.decode("ascii").strip().lower(), value.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise _bad_trailer("A trailer is not text.") from None
        if name == "x-amz-trailer-signature":
            if not self._signed or self._trailer_signature is not None:
                raise _bad_trailer("The trailer's signature is not expected.")
            self._trailer_signature = text
            return
        if not colon or name not in self._trailer_names or name in self.trailers or self._trailer_signature:
            raise _bad_trailer(f"The trailer {name[:100]!r} was not announced in x-amz-trailer.")
        self.trailers[name] = text
        self._checks.expect(name, text)

    def _end_trailer(self) -> None:
        if not (self._signed and self._has_trailer):
            return
        if self._trailer_signature is None:
            raise _bad_trailer("The trailer's signature is missing.")
        lines = "".join(f"{name}:{value}\n" for name, value in self.trailers.items())
        text = "\n".join(
            (
                "AWS4-HMAC-SHA256-TRAILER",
                self._verified.signed_by.stamp,
                self._verified.signed_by.scope,
                self._previous,
                hashlib.sha256(lines.encode()).hexdigest(),
            )
        )
        self._expect_signature(text, self._trailer_signature.encode("utf-8", "replace"))


def _bad_trailer(message: str) -> AwsError:
    return AwsError("MalformedTrailerError", message)
