"""May this caller do what an S3 request needs? The same decision for the door and for `why`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cloister.iam import policy as iam_policy
from cloister.iam.collect import identity_policies, texts
from cloister.iam.decide import Decision, Policies, Request, decide
from cloister.iam.model import Principal
from cloister.s3 import bucket_policy, sse
from cloister.s3.actions import S3Need
from cloister.s3.model import Bucket
from cloister.vpc.model import VpcEndpoint
from cloister.world import World

#: AWS (S3 user guide, "Bucket policies"): the owner account's root can do these whatever the policy denies,
#: so that nobody is locked out of a bucket for good
_NEVER_LOCKED = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})

#: among the keys of a request: those of the object's tags are there, if it has any
TAGS_KNOWN = "cloister:tags-known"
#: actions for which AWS has the condition key s3:ExistingObjectTag/…: what the store knows and not we
_OF_TAGGED = frozenset(
    {
        *("s3:GetObject", "s3:GetObjectAcl", "s3:GetObjectAttributes", "s3:GetObjectTagging"),
        *("s3:PutObjectAcl", "s3:PutObjectTagging", "s3:DeleteObjectTagging"),
    }
)


def _untold(action: str, context: Mapping[str, Any]) -> tuple[str, ...]:
    """The beginnings of condition keys that cannot be told when it is decided."""
    base = action.replace("Version", "")
    known = base not in _OF_TAGGED or TAGS_KNOWN in context
    existing = () if known else ("s3:existingobjecttag/",)
    # PutObjectTagging has its tags in the body, which is read after the decision.
    in_body = base == "s3:PutObjectTagging" and "s3:RequestObjectTagKeys" not in context
    return (*existing, "s3:requestobjecttag") if in_body else existing


def decide_need(
    world: World,
    principal: Principal | None,
    need: S3Need,
    context: Mapping[str, Any],
    *,
    endpoint_id: str | None,
    account: str,
) -> Decision:
    """Over the caller's own policies, the bucket's and, when the request came through a VPC endpoint, the
    endpoint's. `context` are the request's condition keys; `account` owns what has no bucket."""
    if need.action.startswith("kms:"):  # S3 asks it for the caller: no endpoint is in between
        context, endpoint_id = sse.of_key(context, need.resource.split(":")[3]), None
    owner = _owner(world, need, account)
    keys = {**context, "aws:ResourceAccount": owner, "s3:ResourceAccount": owner}
    if need.action.startswith("s3:GetObject"):
        keys.pop("s3:prefix", None)
    return decide(
        Request(
            principal=principal,
            action=need.action,
            resource=need.resource,
            context=keys,
            resource_account=owner,
            untold=_untold(need.action, keys),
        ),
        _policies(world, principal, need, endpoint_id, owner),
    )


def asks_for_tags(
    world: World,
    principal: Principal | None,
    need: S3Need,
    context: Mapping[str, Any],
    *,
    endpoint_id: str | None,
    account: str,
) -> bool:
    """Whether the decision depends on the tags that this object has: a policy that has a say speaks of them,
    and it is refused as long as they are not told."""
    if need.action.replace("Version", "") not in _OF_TAGGED or not _may_ask(
        world, principal, need, endpoint_id
    ):
        return False
    return not decide_need(world, principal, need, context, endpoint_id=endpoint_id, account=account).allowed


def _may_ask(world: World, principal: Principal | None, need: S3Need, endpoint_id: str | None) -> bool:
    """At the cost that every GET can bear, mostly for a no."""
    bucket, endpoint = world.get(Bucket, need.bucket), world.get(VpcEndpoint, endpoint_id)
    return (
        (bucket is not None and bucket.policy is not None and _speaks_of_tags(bucket.policy))
        or (endpoint is not None and _speaks_of_tags(endpoint.policy))
        or any(map(_speaks_of_tags, texts(world, principal)))
    )


@lru_cache(maxsize=1024)
def _speaks_of_tags(document: str) -> bool:
    # Anything escaped may spell it too.
    return "existingobjecttag" in document.lower() or "\\u" in document


def _owner(world: World, need: S3Need, account: str) -> str:
    bucket = world.get(Bucket, need.bucket)
    return bucket.owner_account if bucket else account


def _policies(
    world: World, principal: Principal | None, need: S3Need, endpoint_id: str | None, owner: str
) -> Policies:
    bucket = world.get(Bucket, need.bucket)
    policies = identity_policies(world, principal)
    root = isinstance(principal, Principal) and principal.is_root and principal.account == owner
    if bucket is not None and bucket.policy is not None and not (root and need.action in _NEVER_LOCKED):
        document = iam_policy.parse(bucket.policy, "resource")
        stranger = not isinstance(principal, Principal) or principal.account != owner
        # AWS: RestrictPublicBuckets leaves a public policy to services and the owner's account
        if stranger and bucket.blocks("RestrictPublicBuckets") and bucket_policy.is_public(document):
            document = bucket_policy.without_the_public(document)
        policies = replace(policies, resource=((f"bucket policy of {bucket.name}", document),))
    if endpoint_id is not None:
        policies = replace(policies, endpoint=((endpoint_id, _endpoint_policy(world, endpoint_id)),))
    return policies


def _endpoint_policy(world: World, endpoint_id: str) -> iam_policy.Policy:
    endpoint = world.get(VpcEndpoint, endpoint_id)
    if endpoint is None:  # deleted while its door still held a connection: nothing passes
        return iam_policy.Policy(kind="endpoint", version="2012-10-17", statements=())
    return iam_policy.parse(endpoint.policy, "endpoint")
