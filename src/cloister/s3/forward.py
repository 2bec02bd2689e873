"""What the object store carries out: a request on its way up, made anew from what was decided on, and the
answer on its way down, as `passing.py` has them.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web
from multidict import CIMultiDict

from cloister.engine import Engine
from cloister.room import Room
from cloister.s3 import (
    actions,
    address,
    attributes,
    bodies,
    buckets,
    checksums,
    deleting,
    down,
    listing,
    passing,
    sse,
)
from cloister.s3.asked import Asked
from cloister.s3.backend import Backend
from cloister.s3.bodies import decoding, document
from cloister.s3.client import Answer, BodyFailed
from cloister.s3.parts import check_parts
from cloister.s3.permits import Permits, denied
from cloister.wire.errors import AwsError
from cloister.wire.payload import Checks

log = logging.getLogger(__name__)

_STREAMED = frozenset({"PutObject", "UploadPart"})
#: operations that are answered by what the store says of an object
DESCRIBED = frozenset({"GetObjectAcl", "GetObjectAttributes"})
#: operations whose answers name keys
_ANSWERED_BY_NAME = listing.OPERATIONS | {
    *("ListMultipartUploads", "ListParts", "CreateMultipartUpload", "CompleteMultipartUpload"),
    *("CopyObject", "UploadPartCopy"),
}


class Forward:
    def __init__(
        self, engine: Engine, backend: Backend, permits: Permits, room: Room, *, region: str, account: str
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._permits = permits
        self._room = room
        self._region = region
        self._account = account

    async def forward(
        self, request: web.BaseRequest, asked: Asked, ids: dict[str, str]
    ) -> web.StreamResponse:
        name = asked.operation.name
        headers = self._headers_up(asked)
        changes = name == "CopyObject" and passing.changes_itself(asked.headers)
        if changes and (own := await self._own_metadata(asked)):
            headers = [*(pair for pair in headers if pair[0] != "x-amz-metadata-directive"), *own]
        query = self._query(asked)
        body: AsyncIterator[bytes] | bytes | None = None
        await self._permits.check_source_key(asked)
        if name in _STREAMED:
            length = bodies.length(asked)
            headers.append(("Content-Length", str(length)))
            if length:
                body = bodies.checked(request, decoding(asked))
            else:
                body = await document(request, asked, self._room)
        elif asked.head.method in ("PUT", "POST"):
            body = await document(request, asked, self._room)
            if name == "CompleteMultipartUpload":
                check_parts(body)
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
            answer = await ask((*headers, *first), body)
            if first and answer.status == 416:  # an object without a first byte
                answer.release()
                answer, first = await ask(tuple(headers)), ()
        except BodyFailed as error:
            raise error.reason from None
        except (AwsError, OSError) as error:
            raise down.unavailable(error) from None
        async with answer:
            kept = answer.headers.get(sse.KEPT, "") or sse.kept(name, asked.headers)
            if name == "GetObject":
                self._permits.check_key(asked, kept)
            ids = ids | sse.shown(kept, self._region, self._account)
            if most and answer.status == (206 if first else 200) and "Content-Length" in answer.headers:
                more = partial(self._backend.direct, path)
                return await down.whole(
                    request, answer, self._headers_down(asked, answer, ids), more, ask, most
                )
            return await self._pass_back(request, asked, answer, ids)

    async def put_file(self, asked: Asked, file: AsyncIterator[bytes]) -> str:
        """Store a form's file, whose length is not known; the object's ETag."""
        checks = Checks()
        checksums.given(asked.headers)
        for name, value in asked.headers.items():
            checks.expect(name, value)
        body = bodies.chunked(bodies.compared(file, checks))
        headers = (*self._headers_up(asked), ("Transfer-Encoding", "chunked"))
        path = self._path(asked.bucket or "", asked.key)
        try:
            answer = await self._backend.request("PUT", path, "", headers, body)
        except BodyFailed as error:
            raise error.reason from None
        except (AwsError, OSError) as error:
            raise down.unavailable(error) from None
        async with answer:
            if answer.status != 200:
                refused = down.refusal(
                    answer.status, (await answer.read()).decode("utf-8", "replace"), asked.key
                )
                checksums.refusal(asked.headers, refused)
                raise refused
            return answer.headers.get("ETag", "")

    def _query(self, asked: Asked) -> dict[str, str]:
        """For the backend, made anew from what was decided on."""
        name, names = asked.operation.name, self._backend.names
        if name in listing.OPERATIONS:
            query = listing.asked(name, asked.query, names)
            if not names.can_begin(asked.query.get("prefix", "")):
                query["max-keys"] = "0"
            return query
        query = passing.query(name, asked.query)
        return listing.asked_for_uploads(query, names) if name == "ListMultipartUploads" else query

    def _headers_up(self, asked: Asked) -> list[tuple[str, str]]:
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
        if kept := sse.kept(asked.operation.name, asked.headers):
            found.append((sse.KEPT, kept))
        return found

    def _headers_down(self, asked: Asked, answer: Answer, ids: dict[str, str]) -> CIMultiDict[str]:
        found = down.headers(answer, ids)
        # AWS tells the number of tags to who may read them, and that of parts of an upload in parts only.
        if "x-amz-tagging-count" in found and not self._permits.may(asked, "s3:GetObjectTagging"):
            del found["x-amz-tagging-count"]
        if "x-amz-mp-parts-count" in found and "-" not in found.get("ETag", "-"):
            del found["x-amz-mp-parts-count"]
        return found

    async def _pass_back(
        self, request: web.BaseRequest, asked: Asked, answer: Answer, ids: dict[str, str]
    ) -> web.StreamResponse:
        reading = asked.operation.name in ("GetObject", "HeadObject")
        if answer.status == 404 and reading:
            self._permits.missing(asked)
        if answer.status >= 500:
            log.error("the object store answered %s: %r", answer.status, (await answer.read())[:500])
            raise AwsError("InternalError", "We encountered an internal error. Please try again.", 500)
        if answer.status >= 400 and asked.head.method != "HEAD":
            refused = down.refusal(answer.status, (await answer.read()).decode("utf-8", "replace"), asked.key)
            if asked.operation.name in _STREAMED:
                checksums.refusal(asked.headers, refused)
            if answer.status == 412:
                return await self._condition_failed(asked, refused, ids)
            raise refused
        headers = self._headers_down(asked, answer, ids)
        if asked.operation.name in _ANSWERED_BY_NAME and answer.status == 200:
            return web.Response(headers=headers, body=self._renamed(asked, await answer.read()))
        if asked.head.method == "HEAD":
            return await down.head(request, answer, headers)
        return await down.body(request, answer, headers)

    async def _own_metadata(self, asked: Asked) -> list[tuple[str, str]]:
        """Of a copy over itself: the store takes it only if the metadata is written anew."""
        source = asked.operation.source
        if source is None or source[:2] != (asked.bucket, asked.key):
            return []
        async with await self._backend.request("HEAD", self._path(*source[:2])) as head:
            said = {name.lower(): value for name, value in head.headers.items()}
        kept = [(name, said[name]) for name in said if name in passing.OWN or name.startswith("x-amz-meta-")]
        if sse.kept("CopyObject", asked.headers):
            kept = [(name, value) for name, value in kept if name != sse.KEPT]
        return [*kept, ("x-amz-metadata-directive", "REPLACE")] if head.status == 200 else []

    async def _condition_failed(
        self, asked: Asked, refused: AwsError, ids: dict[str, str]
    ) -> web.StreamResponse:
        """AWS: of a missing object If-Match is no failed condition: a write is 404, a deletion done."""
        name = asked.operation.name
        if "if-match" in asked.headers and name in ("PutObject", "CompleteMultipartUpload", "DeleteObject"):
            async with await self._backend.request("HEAD", self._path(asked.bucket or "", asked.key)) as head:
                pass
            if head.status == 404 and name == "DeleteObject":
                return web.Response(status=204, headers=ids)
            if head.status == 404:
                raise AwsError("NoSuchKey", "The specified key does not exist.", 404, Key=asked.key)
        conditions = ("If-Match", "If-None-Match", "If-Unmodified-Since", "If-Modified-Since")
        told = next((each for each in conditions if each.lower() in asked.headers), "")
        raise AwsError(refused.code, refused.message, 412, **({"Condition": told} if told else {}))

    def _renamed(self, asked: Asked, body: bytes) -> bytes:
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

    async def describe(self, asked: Asked, ids: dict[str, str]) -> web.Response:
        """What is said of an object beside its bytes."""
        name, path = asked.operation.name, self._path(asked.bucket or "", asked.key)
        wanted = attributes.wanted(asked.headers) if name == "GetObjectAttributes" else frozenset()
        async with await self._backend.request(
            "HEAD", path, "", (("x-amz-checksum-mode", "ENABLED"),)
        ) as head:
            if head.status != 200:
                self._permits.missing(asked)
                raise AwsError("NoSuchKey", "The specified key does not exist.", 404, Key=asked.key)
        said = {name.lower(): value for name, value in head.headers.items()}
        told = {"Content-Type": "application/xml", "Last-Modified": said.get("last-modified", ""), **ids}
        if name == "GetObjectAcl":
            body = buckets.access_control(buckets.existing(self._engine, asked.bucket).owner_account)
            return web.Response(headers=told, body=body)
        parts = None
        if "ObjectParts" in wanted and "-" in said.get("etag", ""):
            limits = ("x-amz-max-parts", "x-amz-part-number-marker")
            more = tuple((each, asked.headers[each]) for each in limits if each in asked.headers)
            ask = (("x-amz-object-attributes", "ObjectParts"), *more)
            async with await self._backend.request("GET", path, "attributes=", ask) as answer:
                text = await answer.read()
            if answer.status != 200:
                raise down.refusal(answer.status, text.decode("utf-8", "replace"), asked.key)
            parts = buckets.parse_xml(text).find("ObjectParts")
        return web.Response(headers=told, body=attributes.document(wanted, said, parts))

    def _path(self, bucket: str, key: str) -> str:
        return address.encode_path(bucket, self._backend.names.stored(key) if key else "")

    async def delete_objects(
        self, request: web.BaseRequest, asked: Asked, ids: dict[str, str]
    ) -> web.StreamResponse:
        """Each key is asked for by itself; what is denied is told in the answer, the rest is deleted."""
        objects, quiet = deleting.parse(await document(request, asked, self._room))
        names = self._backend.names
        wanted: list[str] = []
        errors: list[str] = []
        done: list[str] = []
        for key, version in objects:
            action = "s3:DeleteObjectVersion" if version else "s3:DeleteObject"
            need = actions.S3Need(
                action=action, resource=f"arn:aws:s3:::{asked.bucket}/{key}", bucket=asked.bucket
            )
            decision = self._permits.decide(asked, need)
            if not decision.allowed:
                errors.append(deleting.error(key, "AccessDenied", denied(asked, decision).message))
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
