"""A bucket's policy names its own bucket, S3's actions, and resources that the actions apply to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.s3.actions import _NOT_DONE, _TABLE, _VERSIONED
from cloister.s3.bucket_policy import BUCKET, ELSEWHERE, OBJECT, is_public, parse
from cloister.wire.errors import AwsError

OWN, BELOW = "arn:aws:s3:::data", "arn:aws:s3:::data/*"


def _policy(**more: Any) -> str:
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": BELOW, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [{k: v for k, v in statement.items() if v}]})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"Action": "s3:*"},
        {"Action": "*", "Resource": OWN},
        {"Action": "S3:getobject"},
        {"Action": "s3:Get*", "Resource": [OWN, BELOW]},
        {"Action": ["s3:ListBucket", "s3:GetObject"], "Resource": [OWN, BELOW]},
        {"Action": "s3:PutObject", "Resource": "arn:aws:s3:::*"},
        {"Action": "s3:ListBucket", "Resource": "*"},
        {"Action": None, "NotAction": "s3:ListBucket"},
        {"Resource": None, "NotResource": BELOW, "Action": "s3:ListBucket"},
    ],
)
def test_what_s3_takes_is_taken(more: dict[str, Any]) -> None:
    assert parse(_policy(**more), "data").statements


@pytest.mark.parametrize(
    ("more", "sentence", "detail"),
    [
        ({"Action": "s3:GetObjekt"}, "Policy has invalid action", "s3:GetObjekt"),
        ({"Action": "s3:Fetch*"}, "Policy has invalid action", "s3:Fetch*"),
        ({"Action": "ec2:*"}, "Policy has invalid action", "ec2:*"),
        ({"Action": None, "NotAction": "s3:Nothing"}, "Policy has invalid action", "s3:Nothing"),
        ({"Resource": "arn:aws:s3:::other/*"}, "Policy has invalid resource", "arn:aws:s3:::other/*"),
        ({"Resource": OWN}, "Action does not apply to any resource(s) in statement", "s3:GetObject"),
        (
            {"Action": ["s3:GetObject", "s3:ListBucket"]},
            "Action does not apply to any resource(s) in statement",
            "s3:ListBucket",
        ),
        (
            {"Action": "s3:ListAllMyBuckets", "Resource": [OWN, BELOW]},
            "Action does not apply to any resource(s) in statement",
            "s3:ListAllMyBuckets",
        ),
    ],
)
def test_what_s3_refuses_is_refused_with_its_sentence_and_the_value(
    more: dict[str, Any], sentence: str, detail: str
) -> None:
    with pytest.raises(AwsError) as refused:
        parse(_policy(**more), "data")
    assert (refused.value.code, refused.value.message) == ("MalformedPolicy", sentence)
    assert refused.value.fields == {"Detail": detail}


def test_every_action_that_the_door_asks_for_is_known() -> None:
    done = (action for (_, level, sub), (_, action) in _TABLE.items() if (sub, level) not in _NOT_DONE)
    asked = {*done, *_VERSIONED.values()}
    assert asked - OBJECT - BUCKET - ELSEWHERE == {"CreateSession"}


VPCE = {"StringEquals": {"aws:SourceVpce": "vpce-1"}}


@pytest.mark.parametrize(
    ("statement", "public"),
    [
        ({}, True),
        ({"Principal": {"AWS": "*"}}, True),
        ({"Principal": {"AWS": "123456789012"}}, False),
        ({"Effect": "Deny"}, False),
        ({"Condition": VPCE}, False),
        ({"Condition": {"StringLike": {"aws:SourceVpce": "vpce-*"}}}, True),
        ({"Condition": {"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}}, True),
        ({"Condition": {"StringEqualsIfExists": {"aws:SourceVpce": "vpce-1"}}}, True),
        ({"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}, False),
        ({"Condition": {"IpAddress": {"aws:SourceIp": "0.0.0.0/1"}}}, True),
        ({"Condition": {"Bool": {"aws:SecureTransport": "true"}}}, True),
        ({"Condition": {"Bool": {"aws:SecureTransport": "true"}} | VPCE}, False),
    ],
)
def test_a_policy_is_public_unless_fixed_values_limit_it(statement: dict[str, Any], public: bool) -> None:
    one = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [one | statement]})
    assert is_public(parse(text, "b")) is public
