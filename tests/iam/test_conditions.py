"""Every condition operator, with IfExists and the set operators; over one value, many, none.

AWS: IAM user guide, "IAM JSON policy elements: Condition operators" and "Multivalued context keys".
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.iam.conditions import condition, lookup_in

NONE: Any = object()
ROLE = "arn:aws:iam::123456789012:role/team/jobs"
BINARY = base64.b64encode(b"\x00\xffkey").decode()


def holds(operator: str, wanted: Any, have: Any = NONE, *, variables: bool = True, **others: Any) -> bool:
    """Does `operator` hold for the key x:k with the value(s) `have`, wanted `wanted`?"""
    values = tuple(wanted) if isinstance(wanted, (list, tuple)) else (wanted,)
    context = {f"x:{name}": value for name, value in others.items()}
    if have is not NONE:
        context["x:k"] = have
    return condition(operator, "x:K", values, variables=variables).holds(context, lookup_in(context))


#: operator, the policy's value, a value of the request that matches, one that does not
TABLE: list[tuple[str, Any, Any, Any]] = [
    ("StringEquals", "a", "a", "A"),
    ("StringEquals", "a*", "a*", "ab"),
    ("StringEquals", ["a", "b"], "b", "c"),
    ("StringEquals", "true", True, False),
    ("StringEquals", "7", 7, 8),
    ("StringEqualsIgnoreCase", "Straße", "STRASSE", "strase"),
    ("StringLike", "a*c?", "a/b:cd", "a/b:c"),
    ("StringLike", "*", "", NONE),
    ("StringLike", ["x*", "y?"], "yz", "y"),
    ("StringLike", "A*", "Ab", "ab"),
    ("NumericEquals", "10", 10.0, 11),
    ("NumericEquals", "10", "1e1", "ten"),
    ("NumericLessThan", "10", 9.99, 10),
    ("NumericLessThan", ["10", "20"], 15, 20),
    ("NumericLessThanEquals", "10", 10, 10.01),
    ("NumericGreaterThan", "-3", -2, -3),
    ("NumericGreaterThanEquals", "10", "10", "9"),
    ("DateEquals", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-01-01T00:00:01Z"),
    ("DateEquals", "2026", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
    ("DateEquals", "2026-02", "2026-02-01", "2026-02-02"),
    ("DateLessThan", "2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z"),
    ("DateLessThan", "1767225600", "2025-12-31T23:59:59Z", 1767225600),
    ("DateLessThanEquals", "2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
    ("DateGreaterThan", "2026-01-01T00:00:00Z", 1767225601, "2026-01-01T00:00:00Z"),
    ("DateGreaterThanEquals", "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00Z"),
    ("DateEquals", "2026-01-01", NONE, "never"),
    ("Bool", "true", True, False),
    ("Bool", "TRUE", "true", "yes"),
    ("Bool", "false", False, True),
    ("BinaryEquals", BINARY, b"\x00\xffkey", b"\x00\xffkez"),
    ("BinaryEquals", BINARY, BINARY, "not base64!"),
    ("IpAddress", "10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
    ("IpAddress", "203.0.113.9", "203.0.113.9", "203.0.113.10"),
    ("IpAddress", "10.1.2.3/16", "10.1.9.9", "10.2.0.0"),
    ("IpAddress", ["10.0.0.0/8", "2001:db8::/32"], "2001:db8::1", "2001:db9::1"),
    ("IpAddress", "0.0.0.0/0", "198.51.100.1", "::1"),
    ("IpAddress", "0.0.0.0/0", "198.51.100.1", "not an address"),
    ("ArnEquals", ROLE, ROLE, ROLE + "x"),
    ("ArnEquals", "arn:aws:iam::123456789012:role/*", ROLE, "arn:aws:iam::123456789013:role/jobs"),
    ("ArnLike", "arn:*:iam::*:role/t?am/*", ROLE, "arn:aws:iam::123456789012:user/team/jobs"),
    ("ArnLike", "arn:aws:sns:*:*:topic", "arn:aws:sns:us-east-1:1:topic", "arn:aws:sns:us-east-1:1:a:topic"),
    ("ArnLike", "arn:aws:s3:::*", "arn:aws:s3:::a/b:c", "arn:aws:sqs:::a"),
    ("ArnLike", "*", ROLE, NONE),
    ("ArnLike", "arn:aws:*", "arn:aws:s3:::a", "arn:aws-cn:s3:::a"),
]  # fmt: skip

NEGATIONS = {
    "StringEquals": "StringNotEquals",
    "StringEqualsIgnoreCase": "StringNotEqualsIgnoreCase",
    "StringLike": "StringNotLike",
    "NumericEquals": "NumericNotEquals",
    "DateEquals": "DateNotEquals",
    "IpAddress": "NotIpAddress",
    "ArnEquals": "ArnNotEquals",
    "ArnLike": "ArnNotLike",
}
POSITIVE = sorted({row[0] for row in TABLE})
SAMPLE = {row[0]: row for row in reversed(TABLE) if NONE not in row}


@pytest.mark.parametrize(("operator", "wanted", "match", "other"), TABLE)
def test_an_operator_holds_for_what_it_names_and_its_negation_for_all_else(
    operator: str, wanted: Any, match: Any, other: Any
) -> None:
    for name in (operator, operator + "IfExists"):
        if match is not NONE:
            assert holds(name, wanted, match)
        if other is not NONE:
            assert not holds(name, wanted, other)
        if operator in NEGATIONS:
            negation = name.replace(operator, NEGATIONS[operator])
            if match is not NONE:
                assert not holds(negation, wanted, match)
            if other is not NONE:
                assert holds(negation, wanted, other)


def test_the_table_has_every_operator_that_there_is() -> None:
    from cloister.iam import conditions

    assert {*POSITIVE, *NEGATIONS.values(), "Null"} == set(conditions._MAKERS)


@pytest.mark.parametrize("operator", POSITIVE)
def test_a_key_that_is_missing_or_empty(operator: str) -> None:
    wanted = SAMPLE[operator][1]
    for have in (NONE, (), []):
        assert not holds(operator, wanted, have)
        assert holds(operator + "IfExists", wanted, have)
        assert holds("ForAllValues:" + operator, wanted, have)
        assert not holds("ForAnyValue:" + operator, wanted, have)
        assert holds("ForAnyValue:" + operator + "IfExists", wanted, have)
        if operator in NEGATIONS:
            negation = NEGATIONS[operator]
            assert holds(negation, wanted, have)
            assert holds(negation + "IfExists", wanted, have)
            assert holds("ForAllValues:" + negation, wanted, have)
            assert not holds("ForAnyValue:" + negation, wanted, have)


@pytest.mark.parametrize("operator", POSITIVE)
def test_a_key_of_several_values(operator: str) -> None:
    _, wanted, match, other = SAMPLE[operator]
    #: values of the request -> positive: ForAllValues, ForAnyValue; negated: ForAllValues, ForAnyValue
    cases: list[tuple[list[Any], bool, bool, bool, bool]] = [
        ([match], True, True, False, False),
        ([other], False, False, True, True),
        ([match, match], True, True, False, False),
        ([match, other], False, True, False, True),
        ([other, other], False, False, True, True),
    ]
    for have, every, some, not_every, not_some in cases:
        assert holds("ForAllValues:" + operator, wanted, have) is every
        assert holds("ForAnyValue:" + operator, wanted, tuple(have)) is some
        if operator in NEGATIONS:
            assert holds("ForAllValues:" + NEGATIONS[operator], wanted, have) is not_every
            assert holds("ForAnyValue:" + NEGATIONS[operator], wanted, have) is not_some


@pytest.mark.parametrize(
    ("wanted", "have", "expected"),
    [
        ("true", NONE, True),
        ("true", (), True),
        ("true", "", False),
        ("true", "v", False),
        ("true", False, False),
        ("false", NONE, False),
        ("false", (), False),
        ("false", "", True),
        ("False", ("v",), True),
        (["true", "false"], NONE, True),
        (["true", "false"], "v", True),
    ],
)
def test_null_asks_whether_a_key_is_there(wanted: Any, have: Any, expected: bool) -> None:
    assert holds("Null", wanted, have) is expected


def test_operators_and_keys_are_read_without_regard_to_case_and_values_with() -> None:
    assert holds("stringequals", "a", "a")
    assert holds("FORANYVALUE:StringLIKEifexists", "a*", ["x", "ab"])
    assert not holds("stringequals", "a", "A")


@pytest.mark.parametrize(
    "operator",
    ["StringMatches", "StringEqualsIfExist", "NullIfExists", "ForNoValue:StringEquals", "", "IfExists"],
)
def test_an_operator_that_does_not_exist_is_refused(operator: str) -> None:
    with pytest.raises(LookupError):
        condition(operator, "x:k", ("a",), variables=True)


@pytest.mark.parametrize(
    ("operator", "value"),
    [
        ("NumericEquals", "ten"), ("NumericLessThan", "nan"), ("NumericEquals", "1_000"),
        ("NumericLessThan", "inf"), ("NumericEquals", ""), ("DateEquals", "tomorrow"), ("Bool", "yes"),
        ("DateLessThan", "2026-13-01"), ("BinaryEquals", "not base64"), ("IpAddress", "10.0.0.0/33"),
        ("NotIpAddress", "10.0.0"), ("Null", "maybe"),
    ],
)  # fmt: skip
def test_a_value_that_an_operator_cannot_compare_is_refused_when_written(operator: str, value: str) -> None:
    with pytest.raises(ValueError):
        condition(operator, "x:k", (value,), variables=True)


# -- policy variables --


@pytest.mark.parametrize(
    ("operator", "wanted", "have", "expected"),
    [
        ("StringEquals", "${x:user}", "ann", True),
        ("StringEquals", "${X:User}", "ann", True),
        ("StringEquals", "${ x:user }", "ann", True),
        ("StringEquals", "home/${x:user}/${x:team}", "home/ann/red", True),
        ("StringEquals", "${x:nobody}", "", False),
        ("StringEquals", "${x:nobody}", "${x:nobody}", False),
        ("StringEquals", "${x:nobody, 'guest'}", "guest", True),
        ("StringEquals", "${x:user, 'guest'}", "ann", True),
        ("StringEquals", "${x:nobody, ''}", "", True),
        ("StringEquals", "${x:many}", "one", False),  # a multivalued key has no value here
        ("StringEquals", "${*}${?}${$}", "*?$", True),
        ("StringLike", "a${*}c", "a*c", True),
        ("StringLike", "a${*}c", "abc", False),
        ("StringLike", "a${?}c", "abc", False),
        ("StringLike", "${$}{x:user}", "${x:user}", True),
        ("StringLike", "${x:star}", "anything", False),  # a value is never read as a wildcard
        ("StringLike", "${x:star}", "*", True),
        ("StringLike", "${x:user}/*", "ann/notes", True),
        ("StringNotEquals", "${x:nobody}", "ann", True),
        ("StringEqualsIgnoreCase", "${x:user}", "ANN", True),
        ("NumericLessThan", "${x:limit}", "9", True),
        ("NumericLessThan", "${x:user}", "9", False),
        ("NumericNotEquals", "${x:user}", "9", True),
        ("DateLessThan", "${x:day}", "2025-12-31", True),
        ("Bool", "${x:yes}", True, True),
        ("IpAddress", "${x:net}", "10.0.0.7", True),
        ("NotIpAddress", "${x:nobody}", "10.0.0.7", True),
        ("ArnLike", "arn:aws:iam::${x:account}:role/${x:user}", "arn:aws:iam::123456789012:role/ann", True),
        ("ArnEquals", "${x:arn}", "arn:aws:iam::123456789012:role/ann", True),
        ("ArnLike", "arn:aws:s3:::${x:nobody}", "arn:aws:s3:::", False),
    ],
)  # fmt: skip
def test_policy_variables(operator: str, wanted: str, have: Any, expected: bool) -> None:
    known = {
        "user": "ann",
        "team": "red",
        "star": "*",
        "limit": 10,
        "day": "2026-01-01",
        "yes": True,
        "net": "10.0.0.0/24",
        "account": "123456789012",
        "arn": "arn:aws:iam::123456789012:role/ann",
        "many": ("one",),
    }
    assert holds(operator, wanted, have, **known) is expected


def test_a_document_of_the_old_version_knows_no_variables() -> None:
    assert holds("StringEquals", "${x:user}", "${x:user}", variables=False, user="ann")
    assert not holds("StringEquals", "${x:user}", "ann", variables=False, user="ann")
    assert holds("StringLike", "${*}", "${abc}", variables=False)


# -- laws --

_texts = st.text("aA*?$1/:{}", max_size=5)
_have = st.one_of(st.just(NONE), _texts, st.lists(_texts, max_size=3))


@given(st.sampled_from(sorted(NEGATIONS)), st.lists(_texts, min_size=1, max_size=3), _have)
def test_a_negated_operator_is_the_exact_opposite(operator: str, wanted: list[str], have: Any) -> None:
    if operator in ("NumericEquals", "DateEquals", "IpAddress"):
        wanted = {"NumericEquals": ["1"], "DateEquals": ["2026"], "IpAddress": ["10.0.0.0/8"]}[operator]
    assert holds(operator, wanted, have, variables=False) is not holds(
        NEGATIONS[operator], wanted, have, variables=False
    )


@given(
    st.sampled_from(["StringEquals", "StringLike", "ArnLike"]),
    st.lists(_texts, min_size=1, max_size=3),
    _have,
)
def test_all_values_is_not_some_value_of_the_opposite(operator: str, wanted: list[str], have: Any) -> None:
    every = holds("ForAllValues:" + operator, wanted, have, variables=False)
    some_not = holds("ForAnyValue:" + NEGATIONS[operator], wanted, have, variables=False)
    assert every is not some_not


@given(_texts, _texts)
def test_a_value_put_in_for_a_variable_matches_itself_and_nothing_else(value: str, other: str) -> None:
    assert holds("StringLike", "${x:v}", value, v=value)
    assert holds("StringLike", "${x:v}", other, v=value) is (other == value)
