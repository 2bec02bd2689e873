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
import logging
import secrets
from dataclasses import replace
from typing import Any

from aiohttp import web

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.iam.collect import principal_tags
from cloister.iam.context import global_keys
from cloister.iam.model import Principal
from cloister.room import BODIES, BODIES_OF_ONE, Room
from cloister.s3 import actions, address, bodies, buckets, cors, passing, post, settings
from cloister.s3.asked import Asked
from cloister.s3.backend import Backend
from cloister.s3.bodies import document
from cloister.s3.forward import DESCRIBED, Forward
from cloister.s3.model import Bucket
from cloister.s3.permits import Permits
from cloister.services.api import Observe, Origin
from cloister.store import is_full
from cloister.wire import sigv4
from cloister.wire.denials import of_key
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

log = logging.getLogger(__name__)

MAX_HEADERS = 16 << 10

_ANSWERS = buckets.ANSWERS | settings.ANSWERS


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
        self._credentials = credentials
        self._backend = backend
        self._region = region
        self._account = account
        self.room = Room(BODIES, BODIES_OF_ONE)  # the front's bodies take of it, too
        self._permits = Permits(backend, region=region, account=account, observe=observe)
        self._forward = Forward(engine, backend, self._permits, self.room, region=region, account=account)

    async def handle(self, request: web.BaseRequest, origin: Origin) -> web.StreamResponse:
        random = secrets.token_bytes(56)
        request_id, host_id = random[:8].hex().upper(), base64.b64encode(random[8:]).decode()
        ids = {"x-amz-request-id": request_id, "x-amz-id-2": host_id}
        try:
            if browser := request.headers.get("Origin"):
                rules = self._cors(request)
                told = cors.told(cors.parse(rules), browser, request.method, ()) if rules else {}
                ids.update(told)
            return await self._serve(request, origin, ids)
        except AwsError as error:
            refused = error
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("S3 request %s failed", request_id)
            why = "No space is left on the disk of Cloister's state folder." if is_full(error) else ""
            refused = AwsError(
                "InternalError", f"We encountered an internal error. {why or 'Please try again.'}", 500
            )
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
        if request.method == "OPTIONS":
            names = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
            site, method, wanted = (request.headers.get(each) for each in names)
            told = cors.preflight(self._cors(request), site, method, wanted or "")
            return web.Response(headers={**told, **ids})
        form = request.method == "POST" and request.content_type == "multipart/form-data"
        if form and "?" not in request.raw_path and "Authorization" not in request.headers:
            return await self._post(request, origin, ids)
        asked = self._take_apart(request, origin)
        await self._permit(asked)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await self._go_on(request)
        name = asked.operation.name
        if name == "DeleteObject" and not self._backend.names.can_be(asked.key):
            # as for any missing key; it never reaches the backend
            return web.Response(status=204, headers=ids)
        if name in actions.ANSWERED:
            status, headers, body = await self._answer(asked, await document(request, asked, self.room))
            return web.Response(status=status, headers={**headers, **ids}, body=body)
        if name == "PostObject":
            raise AwsError(
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold",
                412,
                Condition="Bucket POST must be of the enclosure-type multipart/form-data",
            )
        if name == "DeleteObjects":
            return await self._forward.delete_objects(request, asked, ids)
        if name in DESCRIBED:
            return await self._forward.describe(asked, ids)
        return await self._forward.forward(request, asked, ids)

    async def _permit(self, asked: Asked) -> None:
        await self._permits.look_up_tags(asked)
        self._permits.authorize(asked, asked.operation.needs)
        self._check(asked)
        if asked.operation.of_tags:
            await self._permits.authorize_tags(asked)

    async def _post(
        self, request: web.BaseRequest, origin: Origin, ids: dict[str, str]
    ) -> web.StreamResponse:
        """A browser's form: who may put the object is who signed its policy."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            await self._go_on(request)
        head, world = _head(request), self._engine.world
        bucket, _ = address.locate(
            request.headers.get("Host", ""), head.path, lambda name: world.get(Bucket, name) is not None
        )
        if bucket is None:
            raise AwsError(
                "MethodNotAllowed",
                "The specified method is not allowed against this resource.",
                405,
                Method="POST",
            )
        form = await post.read(request)
        made, principal, now = post.signed(form.fields, self._region), None, self._engine.clock()
        least, most = 0, None
        if made is not None:
            secret, principal = self._lookup(made.access_key_id, made.token, now)
            post.verify(made, secret, self._region)
            least, most = post.check(made.policy, form.fields, bucket, now)
        key = form.fields.get("key", "")
        if not 1 <= len(key.encode()) <= address.MAX_KEY:
            raise AwsError(
                "InvalidArgument", "Bucket POST must contain a field named 'key', of at most "
                f"{address.MAX_KEY} bytes.", ArgumentName="key", ArgumentValue=key[:200],
            )  # fmt: skip
        sent = {**post.headers(form.fields), "user-agent": request.headers.get("User-Agent", "")}
        asked = self._asked(head, origin, sent, {}, (bucket, key), principal, method="PUT")
        if made is not None:
            asked.context.update({"s3:signatureversion": sigv4.ALGORITHM, "s3:authType": "POST"})
        await self._permit(asked)
        file = post.limited(
            form.file, least, min(bodies.MAX_OBJECT, bodies.MAX_OBJECT if most is None else most)
        )
        etag = await self._forward.put_file(asked, file)
        scheme, host = "https" if origin.secure else "http", request.headers.get("Host", "")
        location = f"{scheme}://{host}{address.encode_path(bucket, key)}"
        status, headers, body = post.answer(form.fields, bucket, key, etag, location)
        return web.Response(status=status, headers={**headers, **ids}, body=body)

    async def _go_on(self, request: web.BaseRequest) -> None:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0

    def _cors(self, request: web.BaseRequest) -> bytes | None:
        """The document of the bucket that a request is about."""
        world = self._engine.world
        path, host = request.raw_path.partition("?")[0], request.headers.get("Host", "")
        name, _ = address.locate(host, path, lambda name: world.get(Bucket, name) is not None)
        bucket = world.get(Bucket, name)
        return bucket.settings["cors"].encode() if bucket and "cors" in bucket.settings else None

    # -- who asks, for what -------------------------------------------------------------------------

    def _take_apart(self, request: web.BaseRequest, origin: Origin) -> Asked:
        head = _head(request)
        world = self._engine.world
        signed_by = sigv4.parse_authorization(head)
        principal, verified, now = None, None, self._engine.clock()
        if signed_by is not None:
            secret, principal = self._lookup(signed_by.access_key_id, signed_by.token, now)
            verified = sigv4.verify(
                head, signed_by, secret, now, service="s3", region=self._region, streamed=True
            )
        query = address.decode_query(head.query)
        if signed_by is not None and signed_by.mode == "query":
            head = replace(head, headers=(*head.headers, *passing.from_query(query)))
        headers = {name.lower(): value.strip() for name, value in reversed(head.headers)}
        bucket, key = address.locate(
            headers.get("host", ""), head.path, lambda name: world.get(Bucket, name) is not None
        )
        asked = self._asked(head, origin, headers, query, (bucket, key), principal, verified)
        if signed_by is not None:
            asked.context["s3:signatureversion"] = sigv4.ALGORITHM
            asked.context["s3:authType"] = "REST-QUERY-STRING" if signed_by.mode == "query" else "REST-HEADER"
            asked.context["s3:signatureAge"] = int((now - signed_by.time) * 1000)
        return asked

    def _asked(
        self,
        head: HttpRequest,
        origin: Origin,
        headers: dict[str, str],
        query: dict[str, str],
        where: tuple[str | None, str],
        principal: Principal | None,
        verified: sigv4.Verified | None = None,
        method: str | None = None,
    ) -> Asked:
        world, (bucket, key) = self._engine.world, where
        operation = actions.operation(
            method or head.method, bucket, key, query, headers, region=self._region, account=self._account
        )
        context: dict[str, Any] = global_keys(
            principal,
            now=self._engine.clock(),
            address=origin.address,
            endpoint_id=origin.endpoint_id,
            vpc_id=origin.vpc_id,
            secure=origin.secure,
            user_agent=headers.get("user-agent", ""),
            region=self._region,
            tags=principal_tags(world, principal),
        )
        context.update(actions.context(query, headers))
        return Asked(
            head=head, headers=headers, query=query, bucket=bucket, key=key, operation=operation,
            principal=principal, verified=verified, origin=origin, context=context, world=world,
        )  # fmt: skip

    def _lookup(self, access_key_id: str, token: str | None, now: float) -> tuple[str, Principal]:
        try:
            return self._credentials.lookup(access_key_id, token, now)
        except AwsError as error:
            raise of_key("s3", error, access_key_id) from None

    def _check(self, asked: Asked) -> None:
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

    def _check_headers(self, asked: Asked) -> None:
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

    async def _answer(self, asked: Asked, body: bytes) -> buckets.Answer:
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
        return _ANSWERS[asked.operation.name](ask)

    async def _at_backend(self, method: str, bucket: str | None, good: tuple[int, ...]) -> None:
        answer = await self._backend.request(method, address.encode_path(bucket or ""))
        async with answer:
            text = (await answer.read()).decode("utf-8", "replace")
        if answer.status == 409 and "BucketNotEmpty" in text:
            raise AwsError("BucketNotEmpty", "The bucket you tried to delete is not empty", 409)
        if answer.status not in good:
            log.error("the object store answered %s to %s %s: %s", answer.status, method, bucket, text[:500])
            raise AwsError("InternalError", "We encountered an internal error. Please try again.", 500)


def _head(request: web.BaseRequest) -> HttpRequest:
    """Raises AwsError RequestHeaderSectionTooLarge."""
    pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers)
    if sum(len(name) + len(value) + 4 for name, value in pairs) > MAX_HEADERS:
        raise AwsError("RequestHeaderSectionTooLarge", "Your request header section exceeds the limit.")
    path, _, query = request.raw_path.partition("?")
    return HttpRequest(method=request.method, path=path, query=query, headers=pairs)


def _not_implemented(what: str) -> AwsError:
    return AwsError(
        "NotImplemented",
        f"A header you provided implies functionality that is not implemented: {what}",
        501,
        Header=what,
    )
