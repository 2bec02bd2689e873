"""Documents that AWS refuses, and its words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.iam.policy import Kind, parse
from cloister.wire.errors import AwsError

OK: dict[str, Any] = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}


def doc(**changes: Any) -> str:
    one = {k: v for k, v in {**OK, **changes}.items() if v is not None}
    return json.dumps({"Version": "2012-10-17", "Statement": one})


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("identity", "{", "Syntax errors in policy"),
        ("identity", "[]", "A policy is a JSON object"),
        ("identity", '{"Version":"2012-10-17","Version":"2012-10-17"}', 'Duplicate element: "Version"'),
        ("identity", '{"Statement": []}', "Statement is empty"),
        ("identity", doc(Effect=None), "Missing required field Effect"),
        ("identity", doc(Effect="allow"), 'Invalid effect: "allow"'),
        ("identity", doc(Action=None), "Policy statement must contain actions."),
        ("identity", doc(Resource=None), "Policy statement must contain resources."),
        ("identity", doc(Resource="bucket"), 'Resource must be in ARN format or "*": "bucket"'),
        ("identity", doc(Action="GetObject"), "must be prefaced by a vendor"),
        ("identity", doc(Principal="*"), "should not specify a principal"),
        ("identity", doc(Foo=1), 'Unknown field: "Foo"'),
        ("identity", doc(Condition={"StringIs": {"aws:x": "y"}}), 'Invalid Condition type: "StringIs"'),
        ("identity", doc(Condition={"IpAddress": {"aws:SourceIp": "x"}}), "Invalid value for IpAddress"),
        ("trust", doc(Principal="*", Action="sts:AssumeRole"), "Has prohibited field Resource"),
        ("trust", doc(Action="sts:AssumeRole", Resource=None), "Missing required field Principal"),
        ("trust", doc(Principal="*", Resource=None), "only specify STS AssumeRole actions"),
        ("resource", doc(), "Missing required field Principal"),
        ("resource", doc(Principal={"AWS": "bob"}), 'Invalid principal in policy: {"AWS": "bob"}'),
        ("resource", "x", "the first byte must be"),
        ("identity", doc(Resource="arn:aws:s3:::\ud800"), "half a character"),
        ("resource", doc(Principal="*", Sid="\udfff"), "half a character"),
    ],
)
def test_a_malformed_document_is_refused_in_awss_words(kind: Kind, text: str, message: str) -> None:
    with pytest.raises(AwsError) as caught:
        parse(text, kind)
    assert message in caught.value.message
    assert caught.value.code == ("MalformedPolicy" if kind == "resource" else "MalformedPolicyDocument")


def test_a_document_past_its_quota_is_refused_and_white_space_does_not_count() -> None:
    parse(doc() + " " * 20_000, "identity")
    with pytest.raises(AwsError) as caught:
        parse(doc(Resource=[f"arn:aws:s3:::bucket-{n}/*" for n in range(500)]), "identity")
    assert caught.value.code == "LimitExceeded"


def test_an_escaped_pair_is_one_character() -> None:
    (one,) = parse(doc(Resource="arn:aws:s3:::b/\U0001f5ff"), "identity").statements
    assert one.resources == ("arn:aws:s3:::b/\U0001f5ff",)


def test_the_caller_chooses_the_errors_code() -> None:
    with pytest.raises(AwsError) as caught:
        parse("{", "endpoint", code="InvalidParameter")
    assert caught.value.code == "InvalidParameter"


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_words = st.sampled_from(
    ["Allow", "Deny", "*", "s3:Get*", "arn:aws:s3:::b/${aws:userid}", "2012-10-17", "true", "10.0.0.0/8",
     "StringEquals", "ForAllValues:DateLessThan", "NullIfExists", "aws:x", "AWS", "Service", "123456789012"]
)  # fmt: skip
_names = st.sampled_from(
    ["Version", "Id", "Statement", "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction",
     "Resource", "NotResource", "Condition", "AWS", "Federated", "StringLike", "IpAddress", "aws:SourceIp"]
)  # fmt: skip
_json = st.recursive(
    _scalars | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names | _words, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(["identity", "resource", "trust", "endpoint", "session", "boundary"]),
    st.dictionaries(st.sampled_from([*OK, "Principal", "Condition", "Sid", "NotAction"]), _json, max_size=3),
    _json,
    st.booleans(),
)
def test_whatever_a_document_holds_it_is_a_policy_or_refused_in_words(
    kind: Kind, changes: dict[str, Any], anything: Any, whole: bool
) -> None:
    text = json.dumps(anything) if whole else json.dumps({"Statement": {**OK, **changes}})
    message = ""
    try:
        parse(text, kind)
    except AwsError as error:
        message = error.message
    assert len(message.encode()) < 2000
