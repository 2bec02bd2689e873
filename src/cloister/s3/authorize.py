"""May this caller do what an S3 request needs? The same decision for the door and for `why`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cloister.iam import policy as iam_policy
from cloister.iam.collect import identity_policies, texts
from cloister.iam.decide import Decision, Policies, Request, decide
from cloister.iam.model import Principal
from cloister.s3 import bucket_policy
from cloister.s3.actions import Need
from cloister.s3.model import Bucket
from cloister.vpc.model import VpcEndpoint
from cloister.world import World

#: AWS (S3 user guide, "Bucket policies"): the owner account's root can do these whatever the policy denies,
#: so that nobody is locked out of a bucket for good
_NEVER_LOCKED = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})


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
        ),
        _policies(world, principal, need, endpoint_id, owner),
    )


#: actions on an object for which policies can ask about the tags it has (Service Authorization Reference)
_ASKING_FOR_TAGS = re.compile(
    r"s3:(?:Get|Put|Delete)Object(?:Version)?Tagging|s3:GetObject(?:Version)?(?:Acl|Attributes)?"
    r"|s3:PutObject(?:Version)?Acl"
)


def asks_for_tags(
    world: World,
    principal: Principal | None,
    need: Need,
    context: Mapping[str, Any],
    *,
    endpoint_id: str | None,
    account: str,
) -> bool:
    """Whether the decision depends on the tags that this object has: a policy that has a say asks for them,
    and not only to allow what is allowed without."""
    if not (_ASKING_FOR_TAGS.fullmatch(need.action) and _may_ask(world, principal, need, endpoint_id)):
        return False
    policies = _policies(world, principal, need, endpoint_id, _owner(world, need, account))
    gates = (policies.identity, policies.resource, policies.boundary, policies.session, policies.endpoint)
    asking = [
        statement.effect == "Allow" and condition.needs_its_key
        for gate in gates
        for _, policy in gate
        for statement in policy.statements
        for condition in statement.conditions
        if condition.key.startswith("s3:existingobjecttag/")
    ]
    without = decide_need(world, principal, need, context, endpoint_id=endpoint_id, account=account)
    return bool(asking) and not (all(asking) and without.allowed)


def _may_ask(world: World, principal: Principal | None, need: Need, endpoint_id: str | None) -> bool:
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


def _owner(world: World, need: Need, account: str) -> str:
    bucket = world.get(Bucket, need.bucket)
    return bucket.owner_account if bucket else account


def _policies(
    world: World, principal: Principal | None, need: Need, endpoint_id: str | None, owner: str
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
