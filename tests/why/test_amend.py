"""A policy that refuses is changed by as little as lets the request through; other walls stay."""

from __future__ import annotations

import json
from typing import Any

from cloister.iam.decide import Request
from cloister.iam.model import Principal
from cloister.why.amend import allowing, sparing

WHO = Principal(
    arn="arn:aws:sts::123456789012:assumed-role/jobs/SageMaker",
    account="123456789012",
    user_id="AROA1:SageMaker",
    access_key_id="ASIA",
    role_name="jobs",
    role_arn="arn:aws:iam::123456789012:role/jobs",
)
PATH = "arn:aws:s3:::data/in/a.csv"


def _request(**context: Any) -> Request:
    return Request(principal=WHO, action="s3:GetObject", resource=PATH, context=context)


def _denying(**members: Any) -> dict[str, Any]:
    return {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"} | members


def _spared(statement: dict[str, Any], request: Request | None = None) -> list[dict[str, Any]] | None:
    """The statements that are left of a bucket policy of this one."""
    text = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    document = sparing(text, 0, "resource", request or _request())
    return document["Statement"] if document is not None else None


def test_a_bucket_that_is_for_another_endpoint_gets_this_one_too_and_stays_closed() -> None:
    only = {"StringNotEquals": {"aws:SourceVpce": "vpce-other"}}
    left = _spared(_denying(Condition=only), _request(**{"aws:SourceVpce": "vpce-1", "aws:SourceVpc": "v"}))
    both = {"StringNotEquals": {"aws:SourceVpce": ["vpce-other", "vpce-1"]}}
    assert left == [_denying(Condition=both)]


def test_a_request_that_comes_by_no_endpoint_is_not_let_in_by_opening_the_bucket() -> None:
    only = {"StringNotEquals": {"aws:SourceVpce": "vpce-other"}}
    assert _spared(_denying(Condition=only), _request(**{"aws:SourceIp": "198.51.100.7"})) is None


def test_of_several_actions_only_the_requests_own_is_taken_out() -> None:
    left = _spared(_denying(Action=["s3:PutObject", "s3:GetObject"], Resource=["arn:aws:s3:::data/*", "*"]))
    assert left == [_denying(Action=["s3:PutObject"], Resource=["arn:aws:s3:::data/*", "*"])]


def test_of_several_resources_the_one_that_matches_is_taken_out() -> None:
    left = _spared(_denying(Resource=["arn:aws:s3:::data/secret/*", "arn:aws:s3:::data/in/*"]))
    assert left == [_denying(Resource=["arn:aws:s3:::data/secret/*"])]


def test_what_a_statement_spares_already_spares_the_request_as_well() -> None:
    but = {"Effect": "Deny", "Principal": "*", "NotAction": "s3:ListBucket", "Resource": "*"}
    assert _spared(but) == [but | {"NotAction": ["s3:ListBucket", "s3:GetObject"]}]
    but = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "NotResource": "arn:aws:s3:::data/out/*"}
    assert _spared(but) == [but | {"NotResource": ["arn:aws:s3:::data/out/*", PATH]}]


def test_of_several_principals_the_role_is_taken_out() -> None:
    roles = ["arn:aws:iam::123456789012:role/jobs", "arn:aws:iam::123456789012:role/interns"]
    left = _spared(_denying(Principal={"AWS": roles}))
    assert left == [_denying(Principal={"AWS": roles[1:]})]


def test_a_statement_that_cannot_be_narrowed_goes_and_the_others_stay() -> None:
    other = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [_denying(), other]})
    document = sparing(text, 0, "resource", _request())
    assert document == {"Version": "2012-10-17", "Statement": [other]}


def test_a_statement_more_leaves_those_that_are_there() -> None:
    more = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    one = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}
    document = allowing(json.dumps({"Version": "2012-10-17", "Statement": one}), more)
    assert document == {"Version": "2012-10-17", "Statement": [one, more]}
