"""The S3 door: who asks, from where, may they; then forward the bytes.

    head ─► locate bucket and key ─► SigV4 ─► operation ─► decide ─► answer from the World, or forward

Where a request came in is told by its `Origin` (the socket), never by a header: headers that claim a
source do not exist for us, and none of a client's headers reaches the backend unless it is on the list.
A body is checked while it streams; its last piece is kept back until its hash, chunk signatures and
checksums are found true, so that the backend never completes an object that was tampered with.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.iam.collect import principal_tags
from cloister.iam.context import global_keys
from cloister.iam.decide import Decision
from cloister.iam.model import Principal
from cloister.room import BODIES, BODIES_OF_ONE, Room, whole
from cloister.s3 import actions, address, buckets, checksums, deleting, down, listing, passing
from cloister.s3.authorize import TAGS_KNOWN, asks_for_tags, decide_need
from cloister.s3.backend import Backend
from cloister.s3.model import Bucket
from cloister.services.api import Observe, Origin
from cloister.wire import sigv4
from cloister.wire.denials import of_key
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest
from cloister.wire.payload import SLOW, Checks, Decoder, PlainDecoder, bad_digest, decoder
from cloister.world import World

log = logging.getLogger(__name__)

#: bytes of an XML or JSON body (10,000 parts with checksums are 2 MB)
MAX_DOCUMENT = 4 << 20
MAX_OBJECT = 5 << 30  # AWS: one PUT, one part
MAX_HEADERS = 16 << 10
#: bytes of a document that are checked without a break
SLICE = 16 << 10

_STREAMED = frozenset({"PutObject", "UploadPart"})
#: operations whose answers name keys
_ANSWERED_BY_NAME = listing.OPERATIONS | {
    *("ListMultipartUploads", "ListParts", "CreateMultipartUpload", "CompleteMultipartUpload"),
    *("CopyObject", "UploadPartCopy"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One authenticated request, taken apart."""

    head: HttpRequest
    headers: dict[str, str]
    query: dict[str, str]
    bucket: str | None
    key: str
    operation: actions.Operation
    principal: Principal | None
    verified: sigv4.Verified | None
    origin: Origin
    context: dict[str, Any]
    world: World
    #: condition keys of the tags of the object that a need is about, where they were looked up
    tags: dict[actions.Need, dict[str, Any]] = field(default_factory=dict)


class Door:
    """`handle` serves one request that came in at `origin`."""

    def __init__(
        self,
        engine: Engine,
        credentials: Credentials,
        backend: Backend,
        *,
        region: str,
        account: str,
        observe: Observe = lambda *_: None,
    ) -> None:
        self._engine = engine
        self._observe = observe
        self._credentials = credentials
        self._backend = backend
        self._region = region
        self._account = account
        self.room = Room(BODIES, BODIES_OF_ONE)  # the front's bodies take of it, too

    async def handle(self, request: web.BaseRequest, origin: Origin) -> web.StreamResponse:
        random = secrets.token_bytes(56)
        request_id, host_id = random[:8].hex().upper(), base64.b64encode(random[8:]).decode()
        ids = {"x-amz-request-id": request_id, "x-amz-id-2": host_id}
        try:
            return await self._serve(request, origin, ids)
        except AwsError as error:
            refused = error
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("S3 request %s failed", request_id)
            refused = AwsError("InternalError", "We encountered an internal error. Please try again.", 500)
        resource = request.raw_path.partition("?")[0][:2048]
        body = b"" if request.method == "HEAD" else buckets.error_xml(refused, resource, request_id, host_id)
        answer = web.Response(
            status=refused.status, body=body, headers={"Content-Type": "application/xml", **ids}
        )
        if region := refused.fields.get("Region"):
            answer.headers["x-amz-bucket-region"] = region
        if request.can_read_body and not request.content.is_eof():
            # What is left of the body is not worth reading: the connection ends with this answer.
            answer.force_close()
        return answer

    async def _serve(
        self, request: web.BaseRequest, origin: Origin, ids: dict[str, str]
    ) -> web.StreamResponse:
        asked = self._take_apart(request, origin)
        await self._look_up_tags(asked)
        self._authorize(asked)
        self._check(asked)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        name = asked.operation.name
        if name == "DeleteObject" and not self._backend.names.can_be(asked.key):
            # as for any missing key; it never reaches the backend
            return web.Response(status=204, headers=ids)
        if name in actions.ANSWERED:
            status, headers, body = await self._answer(asked, await self._document(request, asked))
            return web.Response(status=status, headers={**headers, **ids}, body=body)
        if name == "DeleteObjects":
            return await self._delete_objects(request, asked, ids)
        return await self._forward(request, asked, ids)

    # -- who asks, for what -------------------------------------------------------------------------

    def _take_apart(self, request: web.BaseRequest, origin: Origin) -> _Asked:
        pairs = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers
        )
        if sum(len(name) + len(value) + 4 for name, value in pairs) > MAX_HEADERS:
            raise AwsError("RequestHeaderSectionTooLarge", "Your request header section exceeds the limit.")
        path, _, raw_query = request.raw_path.partition("?")
        head = HttpRequest(method=request.method, path=path, query=raw_query, headers=pairs)
        world = self._engine.world
        signed_by = sigv4.parse_authorization(head)
        principal, verified, now = None, None, self._engine.clock()
        if signed_by is not None:
            secret, principal = self._lookup(signed_by, now)
            verified = sigv4.verify(
                head, signed_by, secret, now, service="s3", region=self._region, streamed=True
            )
        headers = {name.lower(): value.strip() for name, value in reversed(pairs)}
        query = address.decode_query(raw_query)
        bucket, key = address.locate(
            headers.get("host", ""), path, lambda name: world.get(Bucket, name) is not None
        )
        operation = actions.operation(request.method, bucket, key, query, headers)
        context: dict[str, Any] = global_keys(
            principal,
            now=now,
            address=origin.address,
            endpoint_id=origin.endpoint_id,
            vpc_id=origin.vpc_id,
            secure=origin.secure,
            user_agent=headers.get("user-agent", ""),
            region=self._region,
            tags=principal_tags(world, principal),
        )
        context.update(actions.context(query, headers))
        if signed_by is not None:
            context["s3:signatureversion"] = sigv4.ALGORITHM
            context["s3:authType"] = "REST-QUERY-STRING" if signed_by.mode == "query" else "REST-HEADER"
            context["s3:signatureAge"] = int((now - signed_by.time) * 1000)
        return _Asked(
            head=head, headers=headers, query=query, bucket=bucket, key=key, operation=operation,
            principal=principal, verified=verified, origin=origin, context=context, world=world,
        )  # fmt: skip

    def _lookup(self, signed_by: sigv4.SignedBy, now: float) -> tuple[str, Principal]:
        try:
            return self._credentials.lookup(signed_by.access_key_id, signed_by.token, now)
        except AwsError as error:
            raise of_key("s3", error, signed_by.access_key_id) from None

    # -- may they -----------------------------------------------------------------------------------

    def _decide(self, asked: _Asked, need: actions.Need) -> Decision:
        return decide_need(
            asked.world,
            asked.principal,
            need,
            asked.context | asked.tags.get(need, {}),
            endpoint_id=asked.origin.endpoint_id,
            account=self._account,
        )

    async def _look_up_tags(self, asked: _Asked) -> None:
        """The condition keys of an object's tags, if a policy asks for them: only the store knows them. Each
        need has its own: a copy is of one object over another."""
        asks = partial(
            asks_for_tags, asked.world, asked.principal,
            endpoint_id=asked.origin.endpoint_id, account=self._account,
        )  # fmt: skip
        for need in asked.operation.needs:
            if need.bucket is None or not asks(need, asked.context):
                continue
            key = need.resource.partition("/")[2]
            if self._backend.names.can_be(key):
                path = self._path(need.bucket, key)
                async with await self._backend.request("GET", path, "tagging=") as answer:
                    found = buckets.parse_tags(await answer.read()) if answer.status == 200 else {}
                if answer.status in (200, 404):  # else it is not known which there are, and nothing passes
                    told = {f"s3:ExistingObjectTag/{tag}": value for tag, value in found.items()}
                    asked.tags[need] = {**told, TAGS_KNOWN: True}

    def _authorize(self, asked: _Asked) -> None:
        for need in asked.operation.needs:
            decision = self._decide(asked, need)
            self._observe(asked.origin, need.action, need.resource, decision)
            if not decision.allowed:
                raise _denied(asked, decision)

    def _may_list(self, asked: _Asked) -> bool:
        need = actions.Need(
            action="s3:ListBucket", resource=f"arn:aws:s3:::{asked.bucket}", bucket=asked.bucket
        )
        return self._decide(asked, need).allowed

    def _check(self, asked: _Asked) -> None:
        """What must be true of the request itself once it is allowed."""
        name = asked.operation.name
        if asked.bucket is not None and name != "CreateBucket":
            bucket = buckets.existing(self._engine, asked.bucket)
            owner = asked.headers.get("x-amz-expected-bucket-owner", bucket.owner_account)
            if owner != bucket.owner_account:
                raise AwsError("AccessDenied", "Access Denied", 403)
        if asked.operation.source is not None:
            source = buckets.existing(self._engine, asked.operation.source[0])
            owner = asked.headers.get("x-amz-source-expected-bucket-owner", source.owner_account)
            if owner != source.owner_account:
                raise AwsError("AccessDenied", "Access Denied", 403)
            self._backend.names.check(asked.operation.source[1])
            passing.check_version(asked.operation.source[1], asked.operation.source[2])
        if asked.key and name not in ("GetObject", "HeadObject", "DeleteObject"):
            self._backend.names.check(asked.key)
        elif asked.key and name != "DeleteObject" and not self._backend.names.can_be(asked.key):
            raise AwsError("NoSuchKey", "The specified key does not exist.", 404, Key=asked.key)
        return self._check_headers(asked)

    def _check_headers(self, asked: _Asked) -> None:
        if (header := passing.refused(asked.headers)) is not None:
            raise _not_implemented(header)
        passing.check_metadata(asked.headers)
        acl = asked.headers.get("x-amz-acl", "private")
        grants = any(name.startswith("x-amz-grant-") for name in asked.headers)
        if asked.key and (grants or acl not in ("private", "bucket-owner-full-control")):
            raise AwsError("AccessControlListNotSupported", "The bucket does not allow ACLs")
        passing.check_version(asked.key, asked.query.get("versionId"))
        writing = asked.operation.name in ("PutObject", "CompleteMultipartUpload")
        # AWS: If-None-Match "expects the '*' character" when an object is written
        if writing and asked.headers.get("if-none-match", "*") != "*":
            raise _not_implemented("If-None-Match")
        if asked.verified is None and any(name.startswith("response-") for name in asked.query):
            raise AwsError(
                "InvalidRequest",
                "Request specific response headers cannot be used for anonymous GET requests.",
            )

    # -- answers from the World -----------------------------------------------------------------------

    async def _answer(self, asked: _Asked, body: bytes) -> buckets.Answer:
        ask = buckets.Ask(
            engine=self._engine,
            account=self._account,
            region=self._region,
            name=asked.bucket,
            query=asked.query,
            headers=asked.headers,
            body=body,
        )
        if asked.operation.name == "CreateBucket":
            if buckets.check_create(ask) is None:
                await self._at_backend("PUT", asked.bucket, (200, 409))
            return buckets.created(ask)
        if asked.operation.name == "DeleteBucket":
            assert asked.bucket is not None
            first = await self._backend.request(
                "GET", address.encode_path(asked.bucket), "list-type=2&max-keys=1"
            )
            async with first:
                if b"<Key>" in await first.read():
                    raise AwsError(
                        "BucketNotEmpty",
                        "The bucket you tried to delete is not empty",
                        409,
                        BucketName=asked.bucket,
                    )
            await self._at_backend("DELETE", asked.bucket, (204, 404))
            return buckets.deleted(ask)
        return buckets.ANSWERS[asked.operation.name](ask)

    async def _at_backend(self, method: str, bucket: str | None, good: tuple[int, ...]) -> None:
        answer = await self._backend.request(method, address.encode_path(bucket or ""))
        async with answer:
            text = (await answer.read()).decode("utf-8", "replace")
        if answer.status == 409 and "BucketNotEmpty" in text:
            raise AwsError("BucketNotEmpty", "The bucket you tried to delete is not empty", 409)
        if answer.status not in good:
            log.error("the object store answered %s to %s %s: %s", answer.status, method, bucket, text[:500])
            raise AwsError("InternalError", "We encountered an internal error. Please try again.", 500)

    # -- bodies -----------------------------------------------------------------------------------------

    async def _document(self, request: web.BaseRequest, asked: _Asked) -> bytes:
        """A small body, whole and checked."""
        too_large = AwsError(
            "MaxMessageLengthExceeded", "Your request was too big.", MaxMessageLengthBytes=str(MAX_DOCUMENT)
        )
        checked = _checked(request, self._decoder(asked), SLICE)
        return await whole(checked, self.room, asked.origin.address, MAX_DOCUMENT, too_large)

    def _decoder(self, asked: _Asked, deferred: frozenset[str] = frozenset()) -> Decoder:
        if asked.operation.name != "CompleteMultipartUpload":  # whose headers speak of the object
            checksums.given(asked.headers)
        if asked.verified is not None:
            return decoder(asked.head, asked.verified, deferred)
        if asked.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            raise AwsError("AccessDenied", "Access Denied", 403)
        checks = Checks(deferred)
        for name, value in asked.headers.items():
            checks.expect(name, value)
        length = asked.headers.get("content-length", "")
        return PlainDecoder(None, checks, int(length) if length.isascii() and length.isdigit() else None)

    # -- forwarding -------------------------------------------------------------------------------------

    async def _forward(
        self, request: web.BaseRequest, asked: _Asked, ids: dict[str, str]
    ) -> web.StreamResponse:
        name = asked.operation.name
        headers = self._headers_up(asked)
        query = self._query(asked)
        body: AsyncIterator[bytes] | bytes | None = None
        failed: list[BaseException] = []
        payload = sigv4.UNSIGNED_PAYLOAD
        if name in _STREAMED:
            length, trailer = _body_length(asked), checksums.left_to_store(asked.headers)
            if not length:
                body = await self._document(request, asked)
            else:
                checking = self._decoder(asked, frozenset(SLOW))
                body = _remembering(_checked(request, checking), failed)
                if trailer:
                    payload = sigv4.STREAMING_UNSIGNED_TRAILER
                    headers += (("x-amz-trailer", trailer), ("x-amz-decoded-content-length", str(length)))
                    body = checksums.framed(body, length, trailer, checking.trailers)
                    length = checksums.framed_length(length, trailer)
            headers.append(("Content-Length", str(length)))
        elif asked.head.method in ("PUT", "POST"):
            body = await self._document(request, asked)
            if name == "PutObjectTagging":
                passing.check_tags(buckets.parse_tags(body))
        assert asked.bucket is not None
        path = self._path(asked.bucket, asked.key)
        entire = name == "GetObject" and "range" not in asked.headers and "partNumber" not in query
        most = self._backend.first if entire else 0
        # Of a part of an object the store gives no checksum back.
        part = most and not any(each == "x-amz-checksum-mode" for each, _ in headers)
        first = (("Range", f"bytes=0-{most - 1}"),) if part else ()
        ask = partial(self._backend.request, asked.head.method, path, address.encode_query(query))
        try:
            answer = await ask((*headers, *first), body, payload)
            if first and answer.status == 416:  # an object without a first byte
                answer.release()
                answer, first = await ask(tuple(headers)), ()
        except (AwsError, aiohttp.ClientError, OSError) as error:
            raise (failed[0] if failed else down.unavailable(error)) from None
        async with answer:
            if failed:
                raise failed[0]
            if most and answer.status == (206 if first else 200) and "Content-Length" in answer.headers:
                more = partial(self._backend.direct, path)
                return await down.whole(request, answer, down.headers(answer, ids), more, ask, most)
            return await self._pass_back(request, asked, answer, ids)

    def _query(self, asked: _Asked) -> dict[str, str]:
        """For the backend, made anew from what was decided on."""
        name, names = asked.operation.name, self._backend.names
        if name in listing.OPERATIONS:
            query = listing.asked(name, asked.query, names)
            if not names.can_begin(asked.query.get("prefix", "")):
                query["max-keys"] = "0"
            return query
        query = passing.query(name, asked.query)
        return listing.asked_for_uploads(query, names) if name == "ListMultipartUploads" else query

    def _headers_up(self, asked: _Asked) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for name, value in asked.headers.items():
            if name in passing.UP or name.startswith(("x-amz-meta-", "x-amz-copy-source-if-")):
                found.append((name, value))
            elif name == "content-encoding":
                kept = ",".join(each.strip() for each in value.split(",") if each.strip() != "aws-chunked")
                if kept:
                    found.append((name, kept))
        if asked.operation.source is not None:
            bucket, key, _ = asked.operation.source
            found.append(("x-amz-copy-source", self._path(bucket, key)))
        found += checksums.asked(asked.operation.name, asked.headers, computes=self._backend.computes).items()
        made = asked.operation.name in ("PutObject", "CreateMultipartUpload")
        if made and "content-type" not in asked.headers:  # else the store would guess one
            found.append(("content-type", "binary/octet-stream"))
        return found

    async def _pass_back(
        self, request: web.BaseRequest, asked: _Asked, answer: aiohttp.ClientResponse, ids: dict[str, str]
    ) -> web.StreamResponse:
        reading = asked.operation.name in ("GetObject", "HeadObject")
        if answer.status == 404 and reading and not self._may_list(asked):
            # AWS (GetObject): without s3:ListBucket a key that is not there is 403, so that nobody can probe.
            raise AwsError("AccessDenied", "Access Denied", 403)
        if answer.status >= 500:
            log.error("the object store answered %s: %r", answer.status, (await answer.read())[:500])
            raise AwsError("InternalError", "We encountered an internal error. Please try again.", 500)
        if answer.status >= 400 and asked.head.method != "HEAD":
            refused = down.refusal(answer.status, (await answer.read()).decode("utf-8", "replace"), asked.key)
            checksum = checksums.given(asked.headers)[0] if asked.operation.name in _STREAMED else ""
            if checksum in SLOW and refused.code in ("BadDigest", "InvalidDigest"):
                raise bad_digest(checksum)
            raise refused
        headers = down.headers(answer, ids)
        if asked.operation.name in _ANSWERED_BY_NAME and answer.status == 200:
            return web.Response(headers=headers, body=self._renamed(asked, await answer.read()))
        if asked.head.method == "HEAD":
            return await down.head(request, answer, headers)
        return await down.body(request, answer, headers)

    def _renamed(self, asked: _Asked, body: bytes) -> bytes:
        """An answer in which the store says its own names, with the client's."""
        name, names = asked.operation.name, self._backend.names
        owner = buckets.canonical_user(self._account)
        if name in listing.OPERATIONS:
            return listing.answer(name, asked.query, buckets.parse_xml(body), names, owner)
        if name == "ListMultipartUploads":
            return listing.uploads(asked.query, body, names, owner)
        scheme = "https" if asked.origin.secure else "http"
        host, path = asked.headers.get("host", ""), address.encode_path(asked.bucket or "", asked.key)
        return listing.of_one_key(body, asked.key, f"{scheme}://{host}{path}")

    def _path(self, bucket: str, key: str) -> str:
        return address.encode_path(bucket, self._backend.names.stored(key) if key else "")

    async def _delete_objects(
        self, request: web.BaseRequest, asked: _Asked, ids: dict[str, str]
    ) -> web.StreamResponse:
        """Each key is asked for by itself; what is denied is told in the answer, the rest is deleted."""
        objects, quiet = deleting.parse(await self._document(request, asked))
        names = self._backend.names
        wanted: list[str] = []
        errors: list[str] = []
        done: list[str] = []
        for key, version in objects:
            action = "s3:DeleteObjectVersion" if version else "s3:DeleteObject"
            need = actions.Need(
                action=action, resource=f"arn:aws:s3:::{asked.bucket}/{key}", bucket=asked.bucket
            )
            decision = self._decide(asked, need)
            if not decision.allowed:
                errors.append(deleting.error(key, "AccessDenied", _denied(asked, decision).message))
            elif version not in ("", "null"):
                message = "The specified version does not exist."
                errors.append(deleting.error(key, "NoSuchVersion", message, version))
            elif names.can_be(key):
                wanted.append(key)
            else:  # deleting it succeeds, as for any missing key
                done.append(deleting.deleted(key))
        if wanted:
            stored = {names.stored(key): key for key in wanted}
            sent = deleting.document(stored)
            digest = base64.b64encode(hashlib.md5(sent, usedforsecurity=False).digest()).decode()
            headers = (("Content-MD5", digest), ("Content-Type", "application/xml"))
            path = address.encode_path(asked.bucket or "")
            async with await self._backend.request("POST", path, "delete=", headers, sent) as answer:
                told = await answer.read()
            if answer.status != 200:
                raise down.refusal(answer.status, told.decode("utf-8", "replace"), "")
            for name, code, message in deleting.told(told):
                key = stored.get(name, name)
                if code is None:
                    done.append(deleting.deleted(key))
                else:
                    errors.append(deleting.error(key, code, message))
        body = deleting.answer([*(() if quiet else done), *errors])
        return web.Response(body=body, headers={"Content-Type": "application/xml", **ids})


def _denied(asked: _Asked, decision: Decision) -> AwsError:
    if asked.principal is None and decision.reason == "IMPLICIT_DENY" and decision.gate == "resource":
        return AwsError("AccessDenied", "Access Denied", 403)
    return AwsError("AccessDenied", decision.sentence(), 403)


def _not_implemented(what: str) -> AwsError:
    return AwsError(
        "NotImplemented",
        f"A header you provided implies functionality that is not implemented: {what}",
        501,
        Header=what,
    )


def _body_length(asked: _Asked) -> int:
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


async def _checked(
    request: web.BaseRequest, checking: Decoder, size: int | None = None
) -> AsyncIterator[bytes]:
    """The body's own bytes. The last piece comes only after everything was found true. `size`: so many bytes
    are checked at once, others have their turn between."""
    held: bytes | memoryview = b""
    async for data in request.content.iter_any():
        for start in range(0, len(data), size or len(data) or 1):
            for piece in checking.feed(data[start : start + size] if size else data):
                if held:
                    yield bytes(held)
                held = piece
            if size:
                await asyncio.sleep(0)
    checking.finish()
    if held:
        yield bytes(held)


async def _remembering(pieces: AsyncIterator[bytes], failed: list[BaseException]) -> AsyncIterator[bytes]:
    """Pass on; keep what went wrong, which aiohttp would bury in an error of its own."""
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        failed.append(error)
        raise
