"""Sessions of roles, and the keys they come with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.services.calls import ACCOUNT, invoke, make_call

from cloister.credentials import Credentials
from cloister.iam import collect
from cloister.iam.decide import Request, decide
from cloister.services import sts
from cloister.services.api import Call
from cloister.services.iam import role_policies, roles
from cloister.wire.errors import AwsError

assert sts
assert roles
assert role_policies

AWS = "arn:aws:iam::aws:policy/"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/team/jobs"


def trust(**condition: object) -> str:
    one: dict[str, object] = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "Action": "sts:AssumeRole",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [one | condition]})


@pytest.fixture
def call(tmp_path: Path) -> Call:
    call = make_call(credentials=Credentials(tmp_path, ACCOUNT, {}))
    invoke(call, "iam", "CreateRole", RoleName="jobs", Path="/team/", AssumeRolePolicyDocument=trust())
    return call


def test_a_session_is_limited_by_its_managed_session_policy(call: Call) -> None:
    for name in ("AdministratorAccess",):
        invoke(call, "iam", "AttachRolePolicy", RoleName="jobs", PolicyArn=f"arn:aws:iam::aws:policy/{name}")
    answer = invoke(
        call,
        "sts",
        "AssumeRole",
        RoleArn=ROLE,
        RoleSessionName="me",
        PolicyArns=[{"arn": "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"}],
    )
    assert answer["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/jobs/me"
    keys = answer["Credentials"]
    secret, principal = call.deps["credentials"].lookup(keys["AccessKeyId"], keys["SessionToken"], call.now)
    assert secret == keys["SecretAccessKey"]
    for action, allowed in (("s3:GetObject", True), ("s3:PutObject", False)):
        request = Request(principal=principal, action=action, resource="arn:aws:s3:::b/k")
        assert decide(request, collect.identity_policies(call.tx, principal)).allowed is allowed


def test_an_external_id_that_the_trust_policy_asks_for_must_be_given(call: Call) -> None:
    document = trust(Condition={"StringEquals": {"sts:ExternalId": "42"}})
    invoke(call, "iam", "UpdateAssumeRolePolicy", RoleName="jobs", PolicyDocument=document)
    with pytest.raises(AwsError, match="no role trust policy allows the sts:AssumeRole action"):
        invoke(call, "sts", "AssumeRole", RoleArn=ROLE, RoleSessionName="me")
    assert invoke(call, "sts", "AssumeRole", RoleArn=ROLE, RoleSessionName="me", ExternalId="42")


def test_a_session_may_not_outlast_what_the_role_permits(call: Call) -> None:
    with pytest.raises(AwsError, match="MaxSessionDuration"):
        invoke(call, "sts", "AssumeRole", RoleArn=ROLE, RoleSessionName="me", DurationSeconds=3601)


def test_a_session_policy_that_is_no_policy_is_refused(call: Call) -> None:
    with pytest.raises(AwsError) as caught:
        invoke(call, "sts", "AssumeRole", RoleArn=ROLE, RoleSessionName="me", Policy="{}")
    assert caught.value.code == "MalformedPolicyDocument"


def test_keys_survive_a_restart_expire_and_cannot_be_changed_or_swapped(call: Call, tmp_path: Path) -> None:
    keys = invoke(call, "sts", "AssumeRole", RoleArn=ROLE, RoleSessionName="me")["Credentials"]
    key, token = keys["AccessKeyId"], keys["SessionToken"]
    again = Credentials(tmp_path, ACCOUNT, {})
    assert again.root_secret_access_key == call.deps["credentials"].root_secret_access_key
    assert again.lookup(key, token, call.now)[0] == keys["SecretAccessKey"]
    changed = token[:-6] + ("A" if token[-6] != "A" else "B") + token[-5:]
    for access, given, now, code in (
        (key, token, call.now + 3600, "ExpiredToken"),
        (key, changed, call.now, "InvalidToken"),
        (key, "", call.now, "InvalidClientTokenId"),
        (key, "ü", call.now, "InvalidToken"),
        ("ASIAAAAAAAAAAAAAAAAA", token, call.now, "InvalidToken"),
        ("AKIAAAAAAAAAAAAAAAAA", None, call.now, "InvalidClientTokenId"),
    ):
        with pytest.raises(AwsError) as caught:
            again.lookup(access, given, now)
        assert caught.value.code == code
    for name in ("root.json", "secret.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_session_of_a_deleted_role_gets_nothing_of_a_new_one_of_the_same_name(call: Call) -> None:
    keys = invoke(call, "sts", "AssumeRole", RoleArn=ROLE, RoleSessionName="me")["Credentials"]
    _, principal = call.deps["credentials"].lookup(keys["AccessKeyId"], keys["SessionToken"], call.now)
    invoke(call, "iam", "DeleteRole", RoleName="jobs")
    invoke(call, "iam", "CreateRole", RoleName="jobs", Path="/team/", AssumeRolePolicyDocument=trust())
    invoke(
        call,
        "iam",
        "AttachRolePolicy",
        RoleName="jobs",
        PolicyArn="arn:aws:iam::aws:policy/AmazonS3FullAccess",
    )
    assert collect.identity_policies(call.tx, principal).identity == ()
