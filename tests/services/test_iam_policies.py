"""Simulations, tags, boundaries, and who uses a policy; and the two operations of STS about keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.services.calls import ACCOUNT, invoke, make_call

from cloister import services
from cloister.credentials import Credentials
from cloister.iam import collect
from cloister.iam.decide import Request, decide
from cloister.iam.model import Principal, Role
from cloister.services import sts
from cloister.services.api import Call
from cloister.wire.errors import AwsError

services.load("cloister.services.iam")
assert sts
TRUST = json.dumps(
    {"Statement": {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "sts:AssumeRole"}}
)
ARN = f"arn:aws:iam::{ACCOUNT}:policy/read"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/r"


def document(effect: str = "Allow", action: str = "s3:Get*", **more: Any) -> str:
    one = {"Effect": effect, "Action": action, "Resource": "*", **more}
    return json.dumps({"Version": "2012-10-17", "Statement": one})


@pytest.fixture
def call(tmp_path: Path) -> Call:
    call = make_call(credentials=Credentials(tmp_path, ACCOUNT, {}))
    invoke(call, "iam", "CreateRole", RoleName="r", AssumeRolePolicyDocument=TRUST)
    invoke(call, "iam", "CreatePolicy", PolicyName="read", PolicyDocument=document())
    return call


def simulate(call: Call, **params: Any) -> list[str]:
    params = {"PolicyInputList": [], "ActionNames": ["s3:GetObject"]} | params
    answer = invoke(call, "iam", "SimulateCustomPolicy", **params)
    return [result["EvalDecision"] for result in answer["EvaluationResults"]]


# -- SimulateCustomPolicy --


def test_a_simulation_asks_each_action_on_each_resource(call: Call) -> None:
    answer = invoke(
        call,
        "iam",
        "SimulateCustomPolicy",
        PolicyInputList=[document(Resource="arn:aws:s3:::a/*"), document("Deny", "s3:GetObjectAcl")],
        ActionNames=["s3:GetObject", "s3:GetObjectAcl"],
        ResourceArns=["arn:aws:s3:::a/k", "arn:aws:s3:::b/k"],
    )
    assert [
        (r["EvalActionName"], r["EvalResourceName"][13:], r["EvalDecision"])
        for r in answer["EvaluationResults"]
    ] == [
        ("s3:GetObject", "a/k", "allowed"),
        ("s3:GetObject", "b/k", "implicitDeny"),
        ("s3:GetObjectAcl", "a/k", "explicitDeny"),
        ("s3:GetObjectAcl", "b/k", "explicitDeny"),
    ]
    matched = answer["EvaluationResults"][2]["MatchedStatements"]
    assert [m["SourcePolicyId"] for m in matched] == ["PolicyInputList.1", "PolicyInputList.2"]
    assert not answer["IsTruncated"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ContextEntries": [{"ContextKeyValues": ["a"]}]}, "no ContextKeyName"),
        (
            {"ActionNames": ["s3:GetObject"] * 101, "ResourceArns": ["arn:aws:s3:::a"] * 100},
            "101 actions on 100",
        ),
    ],
)
def test_what_cannot_be_simulated_is_invalid_input(call: Call, params: dict[str, Any], said: str) -> None:
    with pytest.raises(AwsError, match=said) as error:
        simulate(call, **params)
    assert error.value.code == "InvalidInput"


def test_the_root_that_asks_is_not_the_one_asked_about(call: Call) -> None:
    assert simulate(call) == ["implicitDeny"]


def test_a_simulation_takes_the_boundary_and_says_whether_it_allowed(call: Call) -> None:
    asked = {"PolicyInputList": [document()], "ActionNames": ["s3:GetObject"]}
    for boundary, decision, allowed in (
        (document(), "allowed", True),
        (document(action="s3:Put*"), "implicitDeny", False),
        (document("Deny"), "explicitDeny", False),
    ):
        answer = invoke(
            call, "iam", "SimulateCustomPolicy", **asked, PermissionsBoundaryPolicyInputList=[boundary]
        )
        (result,) = answer["EvaluationResults"]
        assert result["EvalDecision"] == decision
        assert result["PermissionsBoundaryDecisionDetail"]["AllowedByPermissionsBoundary"] is allowed


def test_a_simulation_takes_context_and_names_the_keys_it_lacked(call: Call) -> None:
    condition = {"StringEquals": {"aws:SourceVpce": "vpce-1"}, "Bool": {"aws:SecureTransport": "true"}}
    asked = {"PolicyInputList": [document(Condition=condition)], "ActionNames": ["s3:GetObject"]}
    entry = {
        "ContextKeyName": "aws:SourceVpce",
        "ContextKeyValues": ["vpce-1"],
        "ContextKeyType": "string",
    }
    (without,) = invoke(call, "iam", "SimulateCustomPolicy", **asked, ContextEntries=[entry])[
        "EvaluationResults"
    ]
    assert (without["EvalDecision"], without["MissingContextValues"]) == (
        "implicitDeny",
        ["aws:securetransport"],
    )
    secure = {
        "ContextKeyName": "aws:SecureTransport",
        "ContextKeyValues": ["true"],
        "ContextKeyType": "boolean",
    }
    assert simulate(call, **asked, ContextEntries=[entry, secure]) == ["allowed"]


def test_a_list_in_the_context_is_a_multivalued_key(call: Call) -> None:
    policy = document(Condition={"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}})
    for values, decision in ((["a"], "allowed"), (["b", "a"], "allowed"), (["a", "c"], "implicitDeny")):
        entry = {"ContextKeyName": "aws:TagKeys", "ContextKeyValues": values, "ContextKeyType": "stringList"}
        assert simulate(call, PolicyInputList=[policy], ContextEntries=[entry]) == [decision]


def test_a_resource_policy_and_another_owner_need_both_sides(call: Call) -> None:
    bucket = json.dumps(
        {"Statement": {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::a/*"}}
    )
    asked: dict[str, Any] = {"ResourceArns": ["arn:aws:s3:::a/k"], "ResourcePolicy": bucket}
    asked["CallerArn"] = f"arn:aws:iam::{ACCOUNT}:user/ann"
    owner = "arn:aws:iam::999988887777:root"
    assert simulate(call, **asked) == ["allowed"]
    assert simulate(call, **asked, ResourceOwner=owner) == ["implicitDeny"]
    assert simulate(call, **asked, ResourceOwner=owner, PolicyInputList=[document()]) == ["allowed"]


def test_a_simulation_comes_in_pages(call: Call) -> None:
    actions = [f"s3:Get{n}" for n in range(5)]
    first = invoke(
        call,
        "iam",
        "SimulateCustomPolicy",
        PolicyInputList=[document()],
        ActionNames=actions,
        MaxItems=3,
    )
    rest = invoke(
        call,
        "iam",
        "SimulateCustomPolicy",
        PolicyInputList=[document()],
        ActionNames=actions,
        MaxItems=3,
        Marker=first["Marker"],
    )
    shown = first["EvaluationResults"] + rest["EvaluationResults"]
    assert [result["EvalActionName"] for result in shown] == actions


def test_a_simulated_document_that_is_none_is_refused(call: Call) -> None:
    with pytest.raises(AwsError) as caught:
        simulate(call, PolicyInputList=["{"])
    assert caught.value.code == "InvalidInput"


def test_simulating_a_principal_reads_its_boundary(call: Call) -> None:
    invoke(call, "iam", "AttachRolePolicy", RoleName="r", PolicyArn=ARN)
    none = document(action="ec2:*")
    arn = invoke(call, "iam", "CreatePolicy", PolicyName="none", PolicyDocument=none)["Policy"]["Arn"]
    invoke(call, "iam", "PutRolePermissionsBoundary", RoleName="r", PermissionsBoundary=arn)
    answer = invoke(
        call, "iam", "SimulatePrincipalPolicy", PolicySourceArn=ROLE, ActionNames=["s3:GetObject"]
    )
    assert answer["EvaluationResults"][0]["EvalDecision"] == "implicitDeny"
    with pytest.raises(AwsError, match="NoSuchEntity"):
        invoke(call, "iam", "SimulatePrincipalPolicy", PolicySourceArn=ROLE + "x", ActionNames=["a:B"])


# -- boundaries --


def may(call: Call, action: str) -> bool:
    role = call.tx.get(Role, "r")
    assert role is not None
    session = Principal(
        arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/r/s",
        account=ACCOUNT,
        user_id=f"{role.role_id}:s",
        access_key_id="ASIA",
        role_name="r",
        role_arn=ROLE,
    )
    request = Request(principal=session, action=action, resource="arn:aws:s3:::b/k")
    return decide(request, collect.identity_policies(call.tx, session)).allowed


def test_a_boundary_limits_what_a_role_may_until_it_is_taken_off(call: Call) -> None:
    invoke(
        call, "iam", "PutRolePolicy", RoleName="r", PolicyName="all", PolicyDocument=document(action="s3:*")
    )
    assert may(call, "s3:PutObject")
    invoke(call, "iam", "PutRolePermissionsBoundary", RoleName="r", PermissionsBoundary=ARN)
    assert not may(call, "s3:PutObject")
    assert may(call, "s3:GetObject")
    shown = invoke(call, "iam", "GetRole", RoleName="r")["Role"]["PermissionsBoundary"]
    assert shown == {"PermissionsBoundaryType": "PermissionsBoundaryPolicy", "PermissionsBoundaryArn": ARN}
    invoke(call, "iam", "DeleteRolePermissionsBoundary", RoleName="r")
    assert may(call, "s3:PutObject")
    with pytest.raises(AwsError, match="NoSuchEntity"):
        invoke(call, "iam", "DeleteRolePermissionsBoundary", RoleName="r")


def test_a_policy_that_bounds_a_role_cannot_be_deleted_and_must_exist(call: Call) -> None:
    invoke(call, "iam", "PutRolePermissionsBoundary", RoleName="r", PermissionsBoundary=ARN)
    with pytest.raises(AwsError, match="DeleteConflict"):
        invoke(call, "iam", "DeletePolicy", PolicyArn=ARN)
    with pytest.raises(AwsError, match="NoSuchEntity"):
        invoke(call, "iam", "PutRolePermissionsBoundary", RoleName="r", PermissionsBoundary=ARN + "x")


# -- who uses a policy --


def test_a_policys_entities_are_the_roles_that_attach_it_or_are_bounded_by_it(call: Call) -> None:
    for name, path in (("bounded", "/"), ("both", "/team/")):
        invoke(
            call,
            "iam",
            "CreateRole",
            RoleName=name,
            Path=path,
            AssumeRolePolicyDocument=TRUST,
            PermissionsBoundary=ARN,
        )
    for name in ("r", "both"):
        invoke(call, "iam", "AttachRolePolicy", RoleName=name, PolicyArn=ARN)

    def entities(**filters: Any) -> list[str]:
        answer = invoke(call, "iam", "ListEntitiesForPolicy", PolicyArn=ARN, **filters)
        assert (answer["PolicyGroups"], answer["PolicyUsers"]) == ([], [])
        return [role["RoleName"] for role in answer["PolicyRoles"]]

    assert entities() == ["both", "bounded", "r"]
    assert entities(PolicyUsageFilter="PermissionsPolicy") == ["both", "r"]
    assert entities(PolicyUsageFilter="PermissionsBoundary") == ["both", "bounded"]
    assert entities(PathPrefix="/team/") == ["both"]
    assert entities(EntityFilter="Role") == ["both", "bounded", "r"]
    assert entities(EntityFilter="User") == []
    assert entities(MaxItems=2) == ["both", "bounded"]
    with pytest.raises(AwsError, match="NoSuchEntity"):
        invoke(call, "iam", "ListEntitiesForPolicy", PolicyArn=ARN + "x")


# -- tags --


@pytest.mark.parametrize(
    ("kind", "named"), [("Role", {"RoleName": "r"}), ("Policy", {"PolicyArn": ARN})], ids=["role", "policy"]
)
def test_tags_are_set_changed_listed_in_pages_and_taken_off(
    call: Call, kind: str, named: dict[str, str]
) -> None:
    def tags(**page: Any) -> dict[str, str]:
        answer = invoke(call, "iam", f"List{kind}Tags", **named, **page)
        return {tag["Key"]: tag["Value"] for tag in answer["Tags"]}

    def tag(**values: str) -> None:
        pairs = [{"Key": key, "Value": value} for key, value in values.items()]
        invoke(call, "iam", f"Tag{kind}", **named, Tags=pairs)

    tag(team="red", stage="")
    tag(Team="blue", owner="ann")  # keys differ by more than case; the last spelling stays
    assert tags() == {"Team": "blue", "owner": "ann", "stage": ""}
    assert len(tags(MaxItems=2)) == 2
    invoke(call, "iam", f"Untag{kind}", **named, TagKeys=["TEAM", "absent"])
    assert tags() == {"owner": "ann", "stage": ""}
    shown = invoke(call, "iam", f"Get{kind}", **named)[kind]["Tags"]
    assert {one["Key"] for one in shown} == {"owner", "stage"}
    with pytest.raises(AwsError, match="reserved"):
        tag(**{"aws:x": "1"})
    with pytest.raises(AwsError) as caught:
        tag(**{f"k{n}": "" for n in range(49)})
    assert caught.value.code == "LimitExceeded"


# -- STS --


def test_the_roots_session_is_the_root_for_an_hour_at_most(call: Call) -> None:
    keys = invoke(call, "sts", "GetSessionToken", DurationSeconds=129_600)["Credentials"]
    credentials = call.deps["credentials"]
    secret, principal = credentials.lookup(keys["AccessKeyId"], keys["SessionToken"], call.now)
    assert secret == keys["SecretAccessKey"]
    assert (principal.is_root, principal.expires) == (True, call.now + 3600)
    with pytest.raises(AwsError) as caught:
        credentials.lookup(keys["AccessKeyId"], keys["SessionToken"], call.now + 3600)
    assert caught.value.code == "ExpiredToken"

    again = make_call(principal=principal, credentials=credentials)
    with pytest.raises(AwsError, match="with session credentials"):
        invoke(again, "sts", "GetSessionToken")
    with pytest.raises(AwsError, match="no MFA devices"):
        invoke(call, "sts", "GetSessionToken", SerialNumber="arn:aws:iam::1:mfa/x", TokenCode="123456")


def test_an_access_key_tells_its_account(call: Call) -> None:
    credentials = call.deps["credentials"]
    temporary = invoke(call, "sts", "GetSessionToken")["Credentials"]["AccessKeyId"]
    for key in (credentials.root_access_key_id, temporary):
        assert invoke(call, "sts", "GetAccessKeyInfo", AccessKeyId=key) == {"Account": ACCOUNT}
    with pytest.raises(AwsError, match="The access key ID is not valid: AKIAAAAAAAAAAAAAAAAA"):
        invoke(call, "sts", "GetAccessKeyInfo", AccessKeyId="AKIAAAAAAAAAAAAAAAAA")
