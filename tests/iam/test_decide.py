"""Tables of decisions, and laws that hold for any policies."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.iam.decide import Policies, Request, decide
from cloister.iam.model import Caller, Principal, ServicePrincipal
from cloister.iam.policy import Kind, Policy, parse

ACCOUNT, OTHER = "123456789012", "999988887777"
ROOT = Principal(arn=f"arn:aws:iam::{ACCOUNT}:root", account=ACCOUNT, user_id=ACCOUNT, access_key_id="AKIA")
SESSION = Principal(
    arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/jobs/SageMaker",
    account=ACCOUNT,
    user_id="AROAAAAAAAAAAAAAAAAA:SageMaker",
    access_key_id="ASIA",
    role_name="jobs",
    role_arn=f"arn:aws:iam::{ACCOUNT}:role/team/jobs",
    session_name="SageMaker",
)
OBJECT = "arn:aws:s3:::bucket/key"


def policy(kind: Kind, *statements: dict[str, Any], version: str | None = "2012-10-17") -> Policy:
    document: dict[str, Any] = {"Statement": list(statements)}
    if version:
        document["Version"] = version
    return parse(json.dumps(document), kind)


def statement(effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*", **more}


def by(principal: Any, effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return statement(effect, Principal=principal, **more)


def ask(
    caller: Caller = SESSION,
    context: dict[str, Any] | None = None,
    arn: str = OBJECT,
    owner: str | None = None,
    **gates: Policy,
) -> Any:
    request = Request(
        principal=caller,
        action="s3:GetObject",
        resource=arn,
        context=context or {},
        resource_account=owner,
    )
    return decide(request, Policies(**{gate: ((gate, one),) for gate, one in gates.items()}))


ALLOW = policy("identity", statement())
OPEN = policy("endpoint", {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"})
NOTHING = policy("session", statement(Action="s3:PutObject"))
ROLE = {"AWS": SESSION.role_arn}
THIS_SESSION = {"AWS": SESSION.arn}
DELEGATES = {"AWS": ACCOUNT}
STRANGER = {"AWS": f"arn:aws:iam::{ACCOUNT}:role/x"}
SAGEMAKER = "sagemaker.amazonaws.com"

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("nothing grants", {}, "IMPLICIT_DENY identity"),
    ("identity grants", {"identity": ALLOW}, "ALLOW identity"),
    ("root may by default", {"caller": ROOT}, "ALLOW identity"),
    ("the bucket grants the role", {"resource": policy("resource", by(ROLE))}, "ALLOW resource"),
    ("the bucket grants everybody", {"resource": policy("resource", by("*"))}, "ALLOW resource"),
    ("a stranger by *", {"caller": None, "resource": policy("resource", by("*"))}, "ALLOW resource"),
    ("a stranger by account", {"caller": None, "resource": policy("resource", by(DELEGATES))},
     "IMPLICIT_DENY resource"),
    ("naming the account only delegates", {"resource": policy("resource", by(DELEGATES))},
     "IMPLICIT_DENY identity"),
    ("and identity takes it up", {"resource": policy("resource", by(DELEGATES)), "identity": ALLOW},
     "ALLOW identity"),
    ("another role is not ours", {"resource": policy("resource", by(STRANGER))},
     "IMPLICIT_DENY identity"),
    ("a role's path is part of its name",
     {"resource": policy("resource", by({"AWS": f"arn:aws:iam::{ACCOUNT}:role/jobs"}))},
     "IMPLICIT_DENY identity"),
    ("deny wins over allow", {"identity": policy("identity", statement(), statement("Deny"))},
     "EXPLICIT_DENY identity"),
    ("deny stops root", {"caller": ROOT, "resource": policy("resource", by("*", "Deny"))},
     "EXPLICIT_DENY resource"),
    ("other account: identity alone", {"identity": ALLOW, "owner": OTHER}, "IMPLICIT_DENY resource"),
    ("other account: bucket alone", {"resource": policy("resource", by(ROLE)), "owner": OTHER},
     "IMPLICIT_DENY identity"),
    ("other account: the session alone", {"resource": policy("resource", by(THIS_SESSION)), "owner": OTHER},
     "IMPLICIT_DENY identity"),
    ("other account: both",
     {"identity": ALLOW, "resource": policy("resource", by(DELEGATES)), "owner": OTHER},
     "ALLOW resource"),
    ("boundary does not allow", {"identity": ALLOW, "boundary": NOTHING}, "IMPLICIT_DENY boundary"),
    ("boundary limits a grant to the role", {"resource": policy("resource", by(ROLE)), "boundary": NOTHING},
     "IMPLICIT_DENY boundary"),
    ("a grant to the session passes boundary and session policy by",
     {"resource": policy("resource", by(THIS_SESSION)), "boundary": NOTHING, "session": NOTHING},
     "ALLOW resource"),
    ("but not their explicit deny",
     {"resource": policy("resource", by(THIS_SESSION)), "boundary": policy("boundary", statement("Deny"))},
     "EXPLICIT_DENY boundary"),
    ("session policy does not allow", {"identity": ALLOW, "session": NOTHING}, "IMPLICIT_DENY session"),
    ("all gates allow", {"identity": ALLOW, "session": ALLOW, "boundary": ALLOW, "endpoint": OPEN},
     "ALLOW identity"),
    ("an endpoint that allows grants nothing", {"endpoint": OPEN}, "IMPLICIT_DENY identity"),
    ("a Deny-only endpoint policy allows nothing, also for root",
     {"caller": ROOT, "endpoint": policy("endpoint", by("*", "Deny", Resource="arn:aws:s3:::x/*"))},
     "IMPLICIT_DENY endpoint"),
    ("NotPrincipal spares who is wholly listed",
     {"identity": ALLOW, "resource": policy("resource", statement(
         "Deny", NotPrincipal={"AWS": [ACCOUNT, SESSION.role_arn, SESSION.arn]}))}, "ALLOW identity"),
    ("NotPrincipal with the role alone denies the session",
     {"identity": ALLOW, "resource": policy("resource", statement("Deny", NotPrincipal=ROLE))},
     "EXPLICIT_DENY resource"),
    ("NotAction and NotResource", {"identity": policy("identity", {
        "Effect": "Allow", "NotAction": "iam:*", "NotResource": "arn:aws:s3:::secret/*"})}, "ALLOW identity"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "given", "expected"), CASES, ids=[case[0] for case in CASES])
def test_the_gates_decide_as_aws_documents_them(what: str, given: dict[str, Any], expected: str) -> None:
    decision = ask(**given)
    assert f"{decision.reason} {decision.gate}" == expected
    assert decision.allowed is (decision.reason == "ALLOW")


SEED = """{ "Statement": [ { "Sid": "AmazonLinux2AMIRepositoryAccess", "Principal": "*",
  "Action": [ "s3:GetObject" ], "Effect": "Deny",
  "Resource": [ "arn:aws:s3:::amazonlinux.*.amazonaws.com/*" ] } ] }"""


def test_the_seeds_endpoint_policy_refuses_the_package_repository_by_its_sid() -> None:
    endpoint = parse(SEED, "endpoint")
    decision = ask(
        ROOT,
        arn="arn:aws:s3:::amazonlinux.us-east-1.amazonaws.com/2/core/mirror.list",
        endpoint=endpoint,
    )
    assert decision.reason == "EXPLICIT_DENY"
    assert [m.statement for m in decision.matches] == ["AmazonLinux2AMIRepositoryAccess"]
    assert decision.sentence() == (
        f"User: {ROOT.arn} is not authorized to perform: s3:GetObject on resource: "
        '"arn:aws:s3:::amazonlinux.us-east-1.amazonaws.com/2/core/mirror.list" '
        "with an explicit deny in a VPC endpoint policy"
    )
    other = ask(ROOT, endpoint=endpoint)
    assert other.sentence().endswith(
        'on resource: "arn:aws:s3:::bucket/key" because no VPC endpoint policy allows the s3:GetObject action'
    )


def test_a_bucket_bound_to_an_endpoint_refuses_every_other_way_in() -> None:
    bucket = policy("resource", by("*", "Deny", Condition={"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}))
    through = {"aws:sourcevpce": "vpce-1", "aws:SourceVpc": "vpc-1"}
    for context, reason in (
        (through, "ALLOW"),
        ({"aws:SourceVpce": "vpce-2"}, "EXPLICIT_DENY"),
        ({"aws:SourceIp": "203.0.113.9"}, "EXPLICIT_DENY"),
    ):
        request = Request(principal=SESSION, action="s3:GetObject", resource=OBJECT, context=context)
        policies = Policies(identity=(("i", ALLOW),), resource=(("b", bucket),))
        assert decide(request, policies).reason == reason


def test_a_deny_by_source_address_fires_through_an_endpoint_where_there_is_no_source_address() -> None:
    identity = policy(
        "identity",
        statement(),
        statement("Deny", Condition={"NotIpAddress": {"aws:SourceIp": "203.0.113.0/24"}}),
    )
    assert ask(identity=identity, context={"aws:SourceIp": "203.0.113.9"}).allowed
    assert ask(identity=identity, context={"aws:SourceVpce": "vpce-1"}).reason == "EXPLICIT_DENY"


def trust(principal: Any, **more: Any) -> Policy:
    return parse(
        json.dumps(
            {"Statement": {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole", **more}}
        ),
        "trust",
    )


@pytest.mark.parametrize(
    ("caller", "principal", "identity", "allowed"),
    [
        (
            ServicePrincipal(service="sagemaker.amazonaws.com"),
            {"Service": "sagemaker.amazonaws.com"},
            False,
            True,
        ),
        (
            ServicePrincipal(service="lambda.amazonaws.com"),
            {"Service": "sagemaker.amazonaws.com"},
            False,
            False,
        ),
        (SESSION, {"Service": "sagemaker.amazonaws.com"}, True, False),
        (SESSION, {"AWS": ACCOUNT}, False, False),
        (SESSION, {"AWS": ACCOUNT}, True, True),
        (SESSION, {"AWS": SESSION.role_arn}, False, True),
        (ROOT, {"AWS": ACCOUNT}, False, True),
        (ROOT, {"AWS": OTHER}, False, False),
    ],
)
def test_a_trust_policy_must_always_allow(
    caller: Caller, principal: Any, identity: bool, allowed: bool
) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/r"
    own = policy("identity", {"Effect": "Allow", "Action": "sts:*", "Resource": "*"})
    policies = Policies(trust=((role, trust(principal)),), identity=(("i", own),) if identity else ())
    request = Request(principal=caller, action="sts:AssumeRole", resource=role)
    assert decide(request, policies).allowed is allowed


# -- laws --

KINDS = ("identity", "resource", "session", "boundary", "endpoint")
_principals = st.sampled_from(["*", ROLE, THIS_SESSION, DELEGATES, {"AWS": OTHER}])
_plain = st.fixed_dictionaries(
    {
        "Effect": st.sampled_from(["Allow", "Deny"]),
        "Action": st.sampled_from(["*", "s3:*", "s3:Get*", "s3:PutObject", "S3:getobject"]),
        "Resource": st.sampled_from(["*", OBJECT, "arn:aws:s3:::b*/k?y", "arn:aws:s3:::other/*"]),
    },
    optional={"Condition": st.sampled_from([{"Bool": {"aws:SecureTransport": "true"}},
                                            {"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}])},
)  # fmt: skip


@st.composite
def _statements(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    one = dict(draw(_plain))
    if kind in ("resource", "endpoint"):
        one["Principal"] = draw(_principals)
    return one


Raw = dict[str, list[dict[str, Any]]]
_raw = st.fixed_dictionaries({kind: st.lists(_statements(kind), max_size=3) for kind in KINDS})
_requests = st.builds(
    Request,
    principal=st.sampled_from([SESSION, ROOT, None]),
    action=st.sampled_from(["s3:GetObject", "s3:PutObject"]),
    resource=st.sampled_from([OBJECT, "arn:aws:s3:::other/x"]),
    context=st.fixed_dictionaries({}, optional={"aws:SecureTransport": st.booleans(),
                                                "aws:SourceVpce": st.sampled_from(["vpce-1", "vpce-2"])}),
    resource_account=st.sampled_from([None, OTHER]),
)  # fmt: skip


def compiled(raw: Raw) -> Policies:
    return Policies(
        **{kind: ((kind, policy(kind, *body)),) for kind, body in raw.items() if body}  # type: ignore[arg-type]
    )


@given(_raw, _requests, st.sampled_from(KINDS), st.data())
def test_another_deny_never_allows_more_and_another_allow_never_less(
    raw: Raw, request: Request, kind: str, data: st.DataObject
) -> None:
    extra = data.draw(_statements(kind))
    before, after = (
        decide(request, compiled(raw)),
        decide(request, compiled({**raw, kind: [*raw[kind], extra]})),
    )
    # A gate that did not exist and now does is a new restriction, not another statement in one.
    if extra["Effect"] == "Deny":
        assert before.allowed or not after.allowed
    elif raw[kind] or kind in ("identity", "resource"):
        assert after.allowed or not before.allowed


@given(_raw, _requests)
def test_the_order_of_statements_does_not_matter(raw: Raw, request: Request) -> None:
    first = decide(request, compiled(raw))
    turned = decide(request, compiled({kind: body[::-1] for kind, body in raw.items()}))
    assert (first.allowed, first.gate, first.reason) == (turned.allowed, turned.gate, turned.reason)


def _glob(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_glob(pattern[1:], text[n:]) for n in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and _glob(pattern[1:], text[1:])


def _naive(request: Request, raw: Raw) -> bool:
    """The documented rules, said once more as plainly as can be."""
    context, caller = request.context, request.principal

    def applies(one: dict[str, Any]) -> bool:
        if not _glob(one["Action"].lower(), request.action.lower()):
            return False
        if not _glob(one["Resource"], request.resource):
            return False
        condition = one.get("Condition", {})
        if "Bool" in condition and context.get("aws:SecureTransport") is not True:
            return False
        if "StringNotEquals" in condition and context.get("aws:SourceVpce") == "vpce-1":
            return False
        who = one.get("Principal", "*")
        return grip(who) > 0

    def grip(who: Any) -> int:
        if who == "*":
            return 2
        if caller is None or who["AWS"] == OTHER:
            return 0
        if caller is ROOT:
            return 3 if who == DELEGATES else 0
        return {str(DELEGATES): 1, str(ROLE): 2, str(THIS_SESSION): 3}[str(who)]

    hits = {kind: [one for one in body if applies(one)] for kind, body in raw.items()}
    if any(one["Effect"] == "Deny" for one in itertools.chain.from_iterable(hits.values())):
        return False
    if raw["endpoint"] and not hits["endpoint"]:
        return False
    granted = max((grip(one["Principal"]) for one in hits["resource"]), default=0)
    if caller is None:
        return granted > 0
    own = caller is ROOT or bool(hits["identity"])
    cross = request.resource_account == OTHER
    if cross:
        if not (granted and own):
            return False
    elif granted == 3:
        return True
    elif granted < 2 and not own:
        return False
    return all(hits[kind] or not raw[kind] for kind in ("boundary", "session"))


@given(_raw, _requests)
def test_decide_equals_a_naive_reading_of_the_rules(raw: Raw, request: Request) -> None:
    assert decide(request, compiled(raw)).allowed is _naive(request, raw)


@given(st.text("ab:/*?", max_size=8), st.text("ab:/", max_size=10))
def test_wildcards_match_as_a_naive_glob_does(pattern: str, text: str) -> None:
    resource = f"arn:aws:s3:::x{pattern}"
    one = policy("identity", statement(Resource=resource))
    asked = replace(
        Request(principal=SESSION, action="s3:GetObject", resource=""), resource=f"arn:aws:s3:::x{text}"
    )
    assert decide(asked, Policies(identity=(("i", one),))).allowed is _glob(resource, asked.resource)
