"""May the caller of a request do what it needs? The decision, and what only the store knows for it: tags."""

from __future__ import annotations

from functools import partial
from typing import Any

from cloister.iam.decide import Decision
from cloister.s3 import actions, address, buckets, sse
from cloister.s3.asked import Asked
from cloister.s3.authorize import TAGS_KNOWN, asks_for_tags, decide_need
from cloister.s3.backend import Backend
from cloister.services.api import Observe
from cloister.wire.errors import AwsError


class Permits:
    """`observe` is told of each decision."""

    def __init__(self, backend: Backend, *, region: str, account: str, observe: Observe) -> None:
        self._backend = backend
        self._region = region
        self._account = account
        self._observe = observe

    def decide(self, asked: Asked, need: actions.S3Need) -> Decision:
        return decide_need(
            asked.world,
            asked.principal,
            need,
            asked.context | asked.tags.get(need, {}),
            endpoint_id=asked.origin.endpoint_id,
            account=self._account,
        )

    async def look_up_tags(self, asked: Asked) -> None:
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
                found = await self._tags(need.bucket, key)
                if found is not None:
                    asked.tags[need] = _of_tags(found)

    async def _tags(self, bucket: str, key: str) -> dict[str, str] | None:
        """None: it is not known which there are, and nothing passes."""
        path = address.encode_path(bucket, self._backend.names.stored(key))
        async with await self._backend.request("GET", path, "tagging=") as answer:
            found = buckets.parse_tags(await answer.read()) if answer.status == 200 else {}
        return found if answer.status in (200, 404) else None

    def authorize(self, asked: Asked, needs: tuple[actions.S3Need, ...]) -> None:
        for need in needs:
            decision = self.decide(asked, need)
            self._observe(asked.origin, need.action, need.resource, decision)
            if not decision.allowed:
                raise denied(asked, decision)

    async def check_source_key(self, asked: Asked) -> None:
        """A copy reads its source."""
        if asked.operation.source is not None:
            bucket, key, _ = asked.operation.source
            path = address.encode_path(bucket, self._backend.names.stored(key))
            async with await self._backend.request("HEAD", path) as answer:
                self.check_key(asked, answer.headers.get(sse.KEPT, ""))

    def check_key(self, asked: Asked, kept: str) -> None:
        """AWS: to read an object that a KMS key encrypts takes kms:Decrypt on it."""
        key = kept.partition(" ")[2]
        if key:
            arn = sse.key_arn(key, self._region, self._account)
            self.authorize(asked, (actions.S3Need(action="kms:Decrypt", resource=arn, bucket=None),))

    async def authorize_tags(self, asked: Asked) -> None:
        """Of what is copied. AWS asks for these permissions only if there are tags, which the store knows."""
        source = asked.operation.source
        if source is None or all(self.decide(asked, need).allowed for need in asked.operation.of_tags):
            return
        tags = await self._tags(source[0], source[1])
        if tags == {}:
            return
        read, *_ = asked.operation.of_tags
        if tags is not None:
            asked.tags[read] = _of_tags(tags)
        self.authorize(asked, asked.operation.of_tags)

    def may(self, asked: Asked, action: str) -> bool:
        """Of the object that is asked for."""
        arn = f"arn:aws:s3:::{asked.bucket}/{asked.key}"
        return self.decide(asked, actions.S3Need(action=action, resource=arn, bucket=asked.bucket)).allowed

    def may_list(self, asked: Asked) -> bool:
        need = actions.S3Need(
            action="s3:ListBucket", resource=f"arn:aws:s3:::{asked.bucket}", bucket=asked.bucket
        )
        return self.decide(asked, need).allowed

    def missing(self, asked: Asked) -> None:
        """AWS (GetObject): without s3:ListBucket a key that is not there is 403, so that nobody can probe."""
        if not self.may_list(asked):
            raise AwsError("AccessDenied", "Access Denied", 403)


def _of_tags(tags: dict[str, str]) -> dict[str, Any]:
    """The condition keys of an object that has these."""
    return {f"s3:ExistingObjectTag/{tag}": value for tag, value in tags.items()} | {TAGS_KNOWN: True}


def denied(asked: Asked, decision: Decision) -> AwsError:
    if asked.principal is None and decision.reason == "IMPLICIT_DENY" and decision.gate == "resource":
        return AwsError("AccessDenied", "Access Denied", 403)
    return AwsError("AccessDenied", decision.sentence(), 403)
