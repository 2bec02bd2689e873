"""Who may do what at the door, where a bucket's policy names a role."""

from __future__ import annotations

import json

import pytest

from cloister.iam.model import Principal, Role
from cloister.s3.actions import S3Need, context
from cloister.s3.authorize import decide_need
from cloister.s3.model import Bucket
from cloister.world import World

ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/r"
SESSION = Principal(
    arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/r/s",
    account=ACCOUNT,
    user_id="AROAFIRSTFIRSTFIRST1:s",
    access_key_id="ASIAX",
    role_name="r",
    role_arn=ROLE,
    session_name="s",
)


def _may_read(named: str, role_id: str | None) -> bool:
    """Whether the session, whose role has now this id, reads from a bucket whose policy allows `named`."""
    allow = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": {**allow, "Principal": {"AWS": named}}})
    docs: list[object] = [
        Bucket(name="b", owner_account=ACCOUNT, region="us-east-1", created=0.0, policy=policy)
    ]
    if role_id is not None:
        docs.append(Role(name="r", role_id=role_id, trust_policy="{}", created=0.0))
    need = S3Need(action="s3:GetObject", resource="arn:aws:s3:::b/k", bucket="b")
    return decide_need(World.of(docs), SESSION, need, {}, endpoint_id=None, account=ACCOUNT).allowed


@pytest.mark.parametrize("named", [ROLE, SESSION.arn, "AROAFIRSTFIRSTFIRST1", "*"])
def test_a_session_of_a_deleted_role_is_refused_whatever_a_bucket_policy_names(named: str) -> None:
    assert _may_read(named, "AROAFIRSTFIRSTFIRST1")
    assert not _may_read(named, None)
    assert not _may_read(named, "AROASECONDSECOND1234")  # made anew under the old name


def _decide(action: str, condition: dict[str, object], context: dict[str, object]) -> bool:
    """Whether the role may, with everything allowed but for one Deny under this condition."""
    every = {"Action": "s3:*", "Resource": "*"}
    deny = {"Effect": "Deny", **every, "Condition": condition}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **every}, deny]})
    role = Role(
        name="r",
        role_id="AROAFIRSTFIRSTFIRST1",
        trust_policy="{}",
        created=0.0,
        inline_policies={"p": policy},
    )
    bucket = Bucket(name="b", owner_account=ACCOUNT, region="us-east-1", created=0.0)
    need = S3Need(action=action, resource="arn:aws:s3:::b/k", bucket="b")
    world = World.of([role, bucket])
    return decide_need(world, SESSION, need, context, endpoint_id=None, account=ACCOUNT).allowed


def test_a_deny_on_tags_that_are_not_known_yet_denies() -> None:
    existing = {"StringEquals": {"s3:ExistingObjectTag/secret": "yes"}}
    requested = {"StringEquals": {"s3:RequestObjectTag/secret": "yes"}}
    keys = {"ForAnyValue:StringEquals": {"s3:RequestObjectTagKeys": "secret"}}
    for action in ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObjectTagging"):
        assert not _decide(action, existing, {})
    assert _decide("s3:PutObject", existing, {})
    for condition in (requested, keys):
        assert not _decide("s3:PutObjectTagging", condition, {})
        # of the header of a PutObject they are known
        for tags, may in (("a=b", True), ("secret=yes", False), ("a=b&secret=yes", False)):
            assert _decide("s3:PutObjectTagging", condition, context({}, {"x-amz-tagging": tags})) is may
        # with ?tagging the header says nothing of them
        lying = context({"tagging": ""}, {"x-amz-tagging": "a=b"})
        assert not _decide("s3:PutObjectTagging", condition, lying)


def test_a_tag_is_read_as_the_store_reads_it() -> None:
    assert context({}, {"x-amz-tagging": "a+b=c+d&e%2Bf=g"})["s3:RequestObjectTag/a b"] == "c d"
