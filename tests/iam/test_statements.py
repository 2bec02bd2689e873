"""Which statements apply to a request: principals, actions, resources and what is excepted from them; and how
the gates of a session add up, in its own account and in another."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.iam.decide import Policies, Request, decide
from cloister.iam.model import Caller, FederatedPrincipal, Principal, ServicePrincipal
from cloister.iam.policy import Kind, Policy, parse

ACCOUNT, OTHER = "123456789012", "999988887777"
ROOT = Principal(arn=f"arn:aws:iam::{ACCOUNT}:root", account=ACCOUNT, user_id=ACCOUNT, access_key_id="AKIA")
ROLE = f"arn:aws:iam::{ACCOUNT}:role/team/jobs"
ROLE_ID = "AROAAAAAAAAAAAAAAAAA"
SESSION = Principal(
    arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/jobs/SageMaker",
    account=ACCOUNT,
    user_id=f"{ROLE_ID}:SageMaker",
    access_key_id="ASIA",
    role_name="jobs",
    role_arn=ROLE,
    session_name="SageMaker",
)
SAGEMAKER = ServicePrincipal(service="sagemaker.amazonaws.com")
COGNITO = FederatedPrincipal(provider="cognito-identity.amazonaws.com")
OBJECT = "arn:aws:s3:::bucket/key"


def document(kind: Kind, *statements: dict[str, Any], version: str = "2012-10-17") -> Policy:
    return parse(json.dumps({"Version": version, "Statement": list(statements)}), kind)


def one(effect: str = "Allow", **members: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"Effect": effect}
    if "NotAction" not in members:
        base["Action"] = "s3:GetObject"
    if "NotResource" not in members:
        base["Resource"] = "*"
    return base | members


def allowed(
    action: str = "s3:GetObject",
    resource: str = OBJECT,
    caller: Caller = SESSION,
    owner: str | None = None,
    context: dict[str, Any] | None = None,
    resource_policy: Policy | None = None,
    **gates: Policy,
) -> bool:
    request = Request(
        principal=caller, action=action, resource=resource, resource_account=owner, context=context or {}
    )
    if resource_policy is not None:
        gates["resource"] = resource_policy
    return decide(request, Policies(**{name: ((name, policy),) for name, policy in gates.items()})).allowed


@pytest.mark.parametrize(
    ("members", "action", "resource", "applies"),
    [
        ({"Action": "s3:getobject"}, "s3:GetObject", OBJECT, True),
        ({"Action": "S3:*"}, "s3:GetObject", OBJECT, True),
        ({"Action": "s3:Get*"}, "s3:GetObjectVersion", OBJECT, True),
        ({"Action": "s3:Get?bject"}, "s3:GetObject", OBJECT, True),
        ({"Action": "s3:GetObject"}, "s3:GetObjectVersion", OBJECT, False),
        ({"Action": "*"}, "ec2:RunInstances", OBJECT, True),
        ({"Action": ["s3:Put*", "s3:GetObject"]}, "s3:GetObject", OBJECT, True),
        ({"NotAction": "s3:GetObject"}, "s3:GetObject", OBJECT, False),
        ({"NotAction": "s3:getobject"}, "s3:GetObject", OBJECT, False),
        ({"NotAction": "s3:Put*"}, "s3:GetObject", OBJECT, True),
        ({"NotAction": ["s3:Put*", "s3:Get*"]}, "s3:GetObject", OBJECT, False),
        ({"NotAction": "s3:*"}, "ec2:DescribeVpcs", "*", True),
        ({"Resource": "arn:aws:s3:::bucket/*"}, "s3:GetObject", OBJECT, True),
        ({"Resource": "arn:aws:s3:::bucket"}, "s3:GetObject", OBJECT, False),
        ({"Resource": "arn:aws:s3:::Bucket/*"}, "s3:GetObject", OBJECT, False),
        ({"Resource": "arn:aws:s3:::b?cket/*"}, "s3:GetObject", OBJECT, True),
        ({"Resource": "arn:aws:s3*"}, "s3:GetObject", OBJECT, True),
        ({"Resource": "arn:aws:s3:::bucket/a*c"}, "s3:GetObject", "arn:aws:s3:::bucket/a/b:c", True),
        ({"Resource": "arn:aws:s3:::bucket/?"}, "s3:GetObject", "arn:aws:s3:::bucket/\n", True),
        ({"Resource": "arn:aws:s3:::bucket/[k]ey"}, "s3:GetObject", OBJECT, False),
        ({"NotResource": OBJECT}, "s3:GetObject", OBJECT, False),
        ({"NotResource": "arn:aws:s3:::bucket/*"}, "s3:GetObject", "arn:aws:s3:::other/key", True),
        ({"NotResource": ["arn:aws:s3:::b", "arn:aws:s3:::bucket/k*"]}, "s3:GetObject", OBJECT, False),
        ({"Resource": "arn:aws:s3:::bucket/${aws:userid}"}, "s3:GetObject", "arn:aws:s3:::bucket/u*", True),
        ({"Resource": "arn:aws:s3:::bucket/${aws:userid}"}, "s3:GetObject", "arn:aws:s3:::bucket/uu", False),
        ({"Resource": "arn:aws:s3:::bucket/${x:no}"}, "s3:GetObject", "arn:aws:s3:::bucket/", False),
        # A variable without value matches nothing, so NotResource with it excepts nothing.
        ({"NotResource": "arn:aws:s3:::bucket/${x:no}"}, "s3:GetObject", "arn:aws:s3:::bucket/", True),
        ({"Resource": "arn:aws:s3:::bucket/${*}"}, "s3:GetObject", "arn:aws:s3:::bucket/*", True),
        ({"Resource": "arn:aws:s3:::bucket/${*}"}, "s3:GetObject", OBJECT, False),
    ],
)
def test_actions_and_resources(members: dict[str, Any], action: str, resource: str, applies: bool) -> None:
    asked: dict[str, Any] = {"action": action, "resource": resource, "context": {"aws:userid": "u*"}}
    assert allowed(identity=document("identity", one(**members)), **asked) is applies
    # The same statement as a Deny takes away exactly what it gave.
    everything = one(Action="*")
    assert allowed(identity=document("identity", everything, one("Deny", **members)), **asked) is not applies


A = f"arn:aws:iam::{ACCOUNT}"


@pytest.mark.parametrize(
    ("caller", "principal", "allow", "allow_not", "deny_not"),
    # enough in an Allow; enough as NotPrincipal of an Allow; spared as NotPrincipal of a Deny
    [
        (SESSION, "*", True, False, True),
        (SESSION, {"AWS": "*"}, True, False, True),
        (SESSION, {"AWS": ACCOUNT}, False, False, False),  # naming the account only delegates
        (SESSION, {"AWS": f"{A}:root"}, False, False, False),
        (SESSION, {"AWS": ROLE}, True, False, False),
        (SESSION, {"AWS": ROLE_ID}, True, False, False),
        (SESSION, {"AWS": SESSION.arn}, True, False, False),
        (SESSION, {"AWS": [ROLE, SESSION.arn]}, True, False, False),
        (SESSION, {"AWS": [ACCOUNT, ROLE]}, True, False, False),
        (SESSION, {"AWS": [ACCOUNT, ROLE, SESSION.arn]}, True, False, True),
        (SESSION, {"AWS": [f"{A}:root", ROLE_ID, SESSION.arn]}, True, False, True),
        (SESSION, {"AWS": f"{A}:role/jobs"}, False, True, False),  # the path is missing
        (SESSION, {"AWS": f"{SESSION.arn}2"}, False, True, False),
        (SESSION, {"AWS": OTHER}, False, True, False),
        (SESSION, {"Service": SAGEMAKER.service}, False, True, False),
        (SESSION, {"AWS": ROLE, "Service": SAGEMAKER.service}, True, False, False),
        (SAGEMAKER, {"Service": SAGEMAKER.service}, True, False, True),
        (SAGEMAKER, {"Service": "ec2.amazonaws.com"}, False, True, False),
        (SAGEMAKER, {"AWS": ACCOUNT}, False, True, False),
        (COGNITO, {"Federated": COGNITO.provider}, True, False, True),
        (COGNITO, {"Service": COGNITO.provider}, False, True, False),
        (None, "*", True, False, True),
        (None, {"AWS": "*"}, True, False, True),
        (None, {"AWS": ACCOUNT}, False, True, False),
        (None, {"CanonicalUser": "0" * 64}, False, True, False),
    ],
)
def test_principals_and_who_is_not_one(
    caller: Caller, principal: Any, allow: bool, allow_not: bool, deny_not: bool
) -> None:
    def may(*statements: dict[str, Any]) -> bool:
        return allowed(caller=caller, resource_policy=document("resource", *statements))

    assert may(one(Principal=principal)) is allow
    assert may(one(NotPrincipal=principal)) is allow_not
    assert may(one(Principal="*"), one("Deny", NotPrincipal=principal)) is deny_not


def test_roots_own_account_names_it_wholly() -> None:
    for principal in ({"AWS": ACCOUNT}, {"AWS": ROOT.arn}):
        deny = document("resource", one("Deny", Principal=principal))
        assert not allowed(caller=ROOT, resource_policy=deny)
        spared = document("resource", one("Deny", NotPrincipal=principal))
        assert allowed(caller=ROOT, resource_policy=spared)
    assert not allowed(
        caller=ROOT, resource_policy=document("resource", one("Deny", NotPrincipal={"AWS": ROLE}))
    )


# -- the gates of a session together --

GIVES = one()
DENIES = one("Deny")
SILENT = one(Action="s3:PutObject")
OPINIONS: dict[str, dict[str, Any] | None] = {"-": None, "allow": GIVES, "silent": SILENT, "deny": DENIES}


def gate(kind: Kind, opinion: str, principal: Any = None) -> dict[str, Policy]:
    statement = OPINIONS[opinion]
    if statement is None:
        return {}
    named = statement if principal is None else statement | {"Principal": principal}
    return {"resource_policy" if kind == "resource" else kind: document(kind, named)}


@pytest.mark.parametrize("session", OPINIONS)
@pytest.mark.parametrize("boundary", OPINIONS)
@pytest.mark.parametrize("identity", OPINIONS)
def test_a_session_may_what_identity_boundary_and_session_policy_all_allow(
    identity: str, boundary: str, session: str
) -> None:
    """AWS: "the effective permissions are the intersection"; a limit that is not there limits nothing."""
    gates = gate("identity", identity) | gate("boundary", boundary) | gate("session", session)
    expected = identity == "allow" and boundary in ("-", "allow") and session in ("-", "allow")
    assert allowed(**gates) is expected
    # A bucket of its own account that names the role stands in for the identity policy, not for the limits.
    within = identity != "deny" and boundary in ("-", "allow") and session in ("-", "allow")
    assert allowed(**gates, **gate("resource", "allow", {"AWS": ROLE})) is within
    # One that names the very session passes by what the limits do not say, not what they deny.
    undenied = "deny" not in (identity, boundary, session)
    assert allowed(**gates, **gate("resource", "allow", {"AWS": SESSION.arn})) is undenied
    # A bucket of another account always needs both sides, whomever it names there.
    for principal in ({"AWS": ROLE}, {"AWS": SESSION.arn}, {"AWS": ACCOUNT}, "*"):
        across = gates | gate("resource", "allow", principal)
        assert allowed(**across, owner=OTHER) is expected
        assert not allowed(**across, **gate("endpoint", "silent", "*"), owner=OTHER)
    assert not allowed(**gates, owner=OTHER)
    assert not allowed(**gates, **gate("resource", "silent", "*"), owner=OTHER)
    assert not allowed(**gates, **gate("resource", "deny", "*"), owner=OTHER)


@pytest.mark.parametrize(
    ("owner", "resource", "expected"),
    [
        (None, "arn:aws:sns:us-east-1:999988887777:topic", False),  # the account in the ARN owns it
        (None, "arn:aws:sns:us-east-1:123456789012:topic", True),
        (None, OBJECT, True),  # a bucket's ARN names none: the caller's own
        (OTHER, OBJECT, False),
        (ACCOUNT, "arn:aws:sns:us-east-1:999988887777:topic", True),
    ],
)
def test_whose_resource_it_is(owner: str | None, resource: str, expected: bool) -> None:
    assert allowed(identity=document("identity", one()), resource=resource, owner=owner) is expected
    assert allowed(caller=ROOT, resource=resource, owner=owner) is expected


def test_services_and_strangers_have_nothing_but_what_the_resource_gives() -> None:
    gates = {"identity": document("identity", one())}
    for caller in (SAGEMAKER, COGNITO, None):
        assert not allowed(caller=caller, **gates)
        assert allowed(caller=caller, **gates, resource_policy=document("resource", one(Principal="*")))
        silent = gate("endpoint", "silent", "*")
        assert not allowed(caller=caller, **silent, resource_policy=document("resource", one(Principal="*")))


# -- a law --

_gates = st.fixed_dictionaries(
    {
        kind: st.sampled_from(sorted(OPINIONS))
        for kind in ("identity", "boundary", "session", "endpoint", "resource")
    }
)


@given(
    _gates,
    st.sampled_from(["identity", "boundary", "session", "endpoint", "resource"]),
    st.sampled_from([ROOT, SESSION, SAGEMAKER, COGNITO, None]),
    st.sampled_from([None, ACCOUNT, OTHER]),
    st.booleans(),
)
def test_an_explicit_deny_wins_whatever_else_is_said(
    opinions: dict[str, str], at: str, caller: Caller, owner: str | None, first: bool
) -> None:
    sets: dict[str, list[dict[str, Any]]] = {}
    for kind, opinion in opinions.items():
        statement = OPINIONS[opinion]
        sets[kind] = [statement] if statement is not None else []
    sets[at] = [DENIES, *sets[at]] if first else [*sets[at], DENIES]
    policies = Policies()
    for kind, statements in sets.items():
        public = kind in ("endpoint", "resource")
        full = [{**each, "Principal": "*"} if public else each for each in statements]
        if full:
            policies = replace(policies, **{kind: ((kind, document(kind, *full)),)})  # type: ignore[arg-type]
    request = Request(principal=caller, action="s3:GetObject", resource=OBJECT, resource_account=owner)
    assert decide(request, policies).reason == "EXPLICIT_DENY"
