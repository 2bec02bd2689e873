"""IAM's operations, each as its users meet it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
from tests.services.calls import ACCOUNT, invoke, make_call

from cloister import services
from cloister.services.api import Call
from cloister.wire.errors import AwsError

services.load("cloister.services.iam")
TRUST = json.dumps(
    {"Statement": {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"},
                   "Action": "sts:AssumeRole"}}
)  # fmt: skip
READ = json.dumps({"Statement": {"Effect": "Allow", "Action": "s3:Get*", "Resource": "*"}})
ARN = f"arn:aws:iam::{ACCOUNT}:policy/p"


@pytest.fixture
def call() -> Call:
    call = make_call()
    invoke(call, "iam", "CreateRole", RoleName="r", AssumeRolePolicyDocument=TRUST)
    invoke(call, "iam", "CreatePolicy", PolicyName="p", PolicyDocument=READ)
    return call


@pytest.mark.parametrize(
    ("name", "params", "code"),
    [
        ("CreateRole", {"RoleName": "R", "AssumeRolePolicyDocument": TRUST}, "EntityAlreadyExists"),
        ("CreateRole", {"RoleName": "x", "AssumeRolePolicyDocument": READ}, "MalformedPolicyDocument"),
        ("GetRole", {"RoleName": "nobody"}, "NoSuchEntity"),
        ("PutRolePolicy", {"RoleName": "r", "PolicyName": "i", "PolicyDocument": "{"},
         "MalformedPolicyDocument"),
        ("DeleteRolePolicy", {"RoleName": "r", "PolicyName": "none"}, "NoSuchEntity"),
        ("AttachRolePolicy", {"RoleName": "r", "PolicyArn": ARN + "x"}, "NoSuchEntity"),
        ("AttachRolePolicy", {"RoleName": "r", "PolicyArn": "not-an-arn-at-all-really"}, "InvalidInput"),
        ("CreatePolicy", {"PolicyName": "p", "PolicyDocument": READ}, "EntityAlreadyExists"),
        ("DeletePolicyVersion", {"PolicyArn": ARN, "VersionId": "v1"}, "DeleteConflict"),
        ("DeletePolicy", {"PolicyArn": "arn:aws:iam::aws:policy/AdministratorAccess"}, "AccessDenied"),
        ("TagRole", {"RoleName": "r", "Tags": [{"Key": "a", "Value": ""}, {"Key": "A", "Value": ""}]},
         "InvalidInput"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_name(
    call: Call, name: str, params: dict[str, Any], code: str
) -> None:
    with pytest.raises(AwsError) as caught:
        invoke(call, "iam", name, **params)
    assert caught.value.code == code


def test_documents_come_back_url_encoded(call: Call) -> None:
    document = invoke(call, "iam", "GetRole", RoleName="r")["Role"]["AssumeRolePolicyDocument"]
    assert document.startswith("%7B%22Statement%22")
    assert unquote(document) == TRUST


def test_a_role_with_policies_cannot_be_deleted(call: Call) -> None:
    invoke(call, "iam", "AttachRolePolicy", RoleName="r", PolicyArn=ARN)
    for name, params in (("DeleteRole", {"RoleName": "r"}), ("DeletePolicy", {"PolicyArn": ARN})):
        with pytest.raises(AwsError, match="DeleteConflict"):
            invoke(call, "iam", name, **params)
    invoke(call, "iam", "DetachRolePolicy", RoleName="r", PolicyArn=ARN)
    invoke(call, "iam", "DeleteRole", RoleName="r")
    invoke(call, "iam", "DeletePolicy", PolicyArn=ARN)


def test_pages_hold_every_role_once_also_when_roles_are_deleted_between_them(call: Call) -> None:
    for n in range(5):
        invoke(call, "iam", "CreateRole", RoleName=f"r{n}", AssumeRolePolicyDocument=TRUST)
    first = invoke(call, "iam", "ListRoles", MaxItems=3)
    invoke(call, "iam", "DeleteRole", RoleName="r")
    second = invoke(call, "iam", "ListRoles", MaxItems=3, Marker=first["Marker"])
    assert [role["RoleName"] for role in first["Roles"] + second["Roles"]] == [
        "r",
        "r0",
        "r1",
        "r2",
        "r3",
        "r4",
    ]
    assert not second["IsTruncated"]


def test_a_policy_has_five_versions_and_never_one_number_twice(call: Call) -> None:
    for _ in range(4):
        made = invoke(call, "iam", "CreatePolicyVersion", PolicyArn=ARN, PolicyDocument=READ)
    with pytest.raises(AwsError, match="LimitExceeded"):
        invoke(call, "iam", "CreatePolicyVersion", PolicyArn=ARN, PolicyDocument=READ)
    invoke(call, "iam", "DeletePolicyVersion", PolicyArn=ARN, VersionId=made["PolicyVersion"]["VersionId"])
    again = invoke(call, "iam", "CreatePolicyVersion", PolicyArn=ARN, PolicyDocument=READ, SetAsDefault=True)
    assert again["PolicyVersion"]["VersionId"] == "v6"
    assert invoke(call, "iam", "GetPolicy", PolicyArn=ARN)["Policy"]["DefaultVersionId"] == "v6"


def test_a_simulation_says_what_a_call_of_the_role_would_be_told(call: Call) -> None:
    invoke(call, "iam", "AttachRolePolicy", RoleName="r", PolicyArn=ARN)
    answer = invoke(
        call,
        "iam",
        "SimulatePrincipalPolicy",
        PolicySourceArn=f"arn:aws:iam::{ACCOUNT}:role/r",
        ActionNames=["s3:GetObject", "s3:PutObject"],
    )
    assert [r["EvalDecision"] for r in answer["EvaluationResults"]] == ["allowed", "implicitDeny"]


def test_a_role_has_no_instance_profiles_and_can_be_deleted_by_who_asks_first(call: Call) -> None:
    invoke(call, "iam", "CreateRole", RoleName="gone", AssumeRolePolicyDocument=TRUST)
    listed = invoke(call, "iam", "ListInstanceProfilesForRole", RoleName="gone")
    assert listed == {"InstanceProfiles": [], "IsTruncated": False}
    with pytest.raises(AwsError, match="cannot be found"):
        invoke(call, "iam", "ListInstanceProfilesForRole", RoleName="nobody")


@pytest.mark.parametrize(
    ("name", "may", "may_not"),
    [
        ("PowerUserAccess", ["s3:GetObject", "iam:ListRoles", "ec2:CreateVpc"], ["iam:CreateRole"]),
        ("IAMFullAccess", ["iam:CreateRole"], ["s3:GetObject"]),
        ("AmazonEC2FullAccess", ["ec2:CreateVpc"], ["iam:CreateRole"]),
        ("AmazonVPCFullAccess", ["ec2:CreateVpcEndpoint"], ["ec2:RunInstances"]),
        ("CloudWatchLogsFullAccess", ["logs:PutLogEvents"], ["s3:GetObject"]),
        ("CloudWatchLogsReadOnlyAccess", ["logs:GetLogEvents"], ["logs:PutLogEvents"]),
        ("AmazonEC2ContainerRegistryReadOnly", ["ecr:BatchGetImage"], ["ecr:PutImage"]),
        ("AmazonSageMakerReadOnly", ["sagemaker:ListProcessingJobs"], ["sagemaker:CreateProcessingJob"]),
    ],
)
def test_policies_of_aws_that_are_attached_by_name_allow_what_their_names_say(
    call: Call, name: str, may: list[str], may_not: list[str]
) -> None:
    invoke(call, "iam", "AttachRolePolicy", RoleName="r", PolicyArn=f"arn:aws:iam::aws:policy/{name}")
    found = invoke(
        call,
        "iam",
        "SimulatePrincipalPolicy",
        PolicySourceArn=f"arn:aws:iam::{ACCOUNT}:role/r",
        ActionNames=may + may_not,
    )["EvaluationResults"]
    assert [each["EvalActionName"] for each in found if each["EvalDecision"] == "allowed"] == may
