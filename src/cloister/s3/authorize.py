"""May this caller do what an S3 request needs? The same decision for the door and for `why`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cloister.iam import policy as iam_policy
from cloister.iam.collect import identity_policies
from cloister.iam.decide import Decision, Request, decide
from cloister.iam.model import Principal
from cloister.s3.actions import Need
from cloister.s3.model import Bucket
from cloister.vpc.model import VpcEndpoint
from cloister.world import World

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
    existing = ("s3:existingobjecttag/",) if base in _OF_TAGGED else ()
    # PutObjectTagging has its tags in the body, which is read after the decision.
    in_body = base == "s3:PutObjectTagging" and "s3:RequestObjectTagKeys" not in context
    return (*existing, "s3:requestobjecttag") if in_body else existing


def decide_need(
    world: World,
    principal: Principal | None,
    need: Need,
    context: Mapping[str, Any],
    *,
    endpoint_id: str | None,
    account: str,
) -> Decision:
    """Over the caller's own policies, the bucket's and, when the request came through a VPC endpoint, the
    endpoint's. `context` are the request's condition keys; `account` owns what has no bucket."""
    bucket = world.get(Bucket, need.bucket) if need.bucket is not None else None
    owner = bucket.owner_account if bucket else account
    keys = {**context, "aws:ResourceAccount": owner, "s3:ResourceAccount": owner}
    if need.action.startswith("s3:GetObject"):
        keys.pop("s3:prefix", None)
    policies = identity_policies(world, principal)
    if bucket is not None and bucket.policy is not None:
        document = iam_policy.parse(bucket.policy, "resource")
        policies = replace(policies, resource=((f"bucket policy of {bucket.name}", document),))
    if endpoint_id is not None:
        policies = replace(policies, endpoint=((endpoint_id, _endpoint_policy(world, endpoint_id)),))
    return decide(
        Request(
            principal=principal,
            action=need.action,
            resource=need.resource,
            context=keys,
            resource_account=owner,
            untold=_untold(need.action, keys),
        ),
        policies,
    )


def _endpoint_policy(world: World, endpoint_id: str) -> iam_policy.Policy:
    endpoint = world.get(VpcEndpoint, endpoint_id)
    if endpoint is None:  # deleted while its door still held a connection: nothing passes
        return iam_policy.Policy(kind="endpoint", version="2012-10-17", statements=())
    return iam_policy.parse(endpoint.policy, "endpoint")
