"""Who may do what at the door, where a bucket's policy names a role."""

from __future__ import annotations

import json

import pytest

from cloister.iam.model import Principal, Role
from cloister.s3.actions import Need
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
    need = Need(action="s3:GetObject", resource="arn:aws:s3:::b/k", bucket="b")
    return decide_need(World.of(docs), SESSION, need, {}, endpoint_id=None, account=ACCOUNT).allowed


@pytest.mark.parametrize("named", [ROLE, SESSION.arn, "AROAFIRSTFIRSTFIRST1", "*"])
def test_a_session_of_a_deleted_role_is_refused_whatever_a_bucket_policy_names(named: str) -> None:
    assert _may_read(named, "AROAFIRSTFIRSTFIRST1")
    assert not _may_read(named, None)
    assert not _may_read(named, "AROASECONDSECOND1234")  # made anew under the old name
