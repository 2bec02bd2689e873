"""What a caller needs for a call, as policies with conditions see it: tags of requests and of resources,
where a resource lies, and the permission to tag while creating."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from tests.jobs.worlds import ROLE_ARN, documents, request, role
from tests.services.calls import ACCOUNT, make_call

from cloister import services
from cloister.dispatch import authorize
from cloister.iam.model import Principal, Role
from cloister.services.api import OPERATIONS, Call
from cloister.vpc.model import InternetGateway, NetworkInterface, PrivateAddress, Vpc
from cloister.vpc.resolver_rules import ResolverRule
from cloister.wire.errors import AwsError
from cloister.world import World

services.load()

EC2 = f"arn:aws:ec2:us-east-1:{ACCOUNT}:"
LOGS = f"arn:aws:logs:us-east-1:{ACCOUNT}:"
PERSON = Principal(
    arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/person/s",
    account=ACCOUNT,
    user_id="AROAPERSON:s",
    access_key_id="ASIAPERSONPERSONPERS",
    role_name="person",
    role_arn=f"arn:aws:iam::{ACCOUNT}:role/person",
)


def allow(*actions: str, resource: str | list[str] = "*", **condition: dict[str, Any]) -> dict[str, Any]:
    one: dict[str, Any] = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    return one | ({"Condition": condition} if condition else {})


def deny(*actions: str, resource: str | list[str] = "*", **condition: dict[str, Any]) -> dict[str, Any]:
    return allow(*actions, resource=resource, **condition) | {"Effect": "Deny"}


def call_of(*statements: dict[str, Any]) -> Call:
    """A call of the role `person`, whose one policy has these statements, in a World with tags."""
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    interface = NetworkInterface(
        interface_id="eni-1",
        vpc_id="vpc-1",
        subnet_id="subnet-1",
        group_ids=("sg-1",),
        mac="02:00:00:00:00:01",
        addresses=(PrivateAddress(address="10.0.1.9", primary=True),),
    )
    person = Role(
        name="person",
        role_id="AROAPERSON",
        trust_policy="{}",
        inline_policies={"p": policy},
        tags={"team": "red"},
        created=0.0,
    )
    tagged = Vpc(vpc_id="vpc-2", cidr="10.2.0.0/16", cidr_association_id="c", tags={"team": "red"})
    gateway = InternetGateway(internet_gateway_id="igw-1")
    made = [role(), *documents(), tagged, interface, person, gateway]
    return make_call(World.of(made), principal=PERSON)


def refused(call: Call, service: str, operation: str, /, **params: Any) -> str | None:
    """The sentence of the refusal; None when the call may be made."""
    try:
        authorize(call.tx, OPERATIONS[service, operation], call, params)
    except AwsError as error:
        return error.message
    return None


def tags(kind: str, **given: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in given.items()]}]


def test_tags_on_create_need_the_permission_to_tag() -> None:
    call = call_of(allow("ec2:CreateVpc", "sagemaker:CreateProcessingJob", "iam:CreateRole"))
    assert refused(call, "ec2", "CreateVpc", CidrBlock="10.0.0.0/16") is None
    sentence = refused(call, "ec2", "CreateVpc", TagSpecifications=tags("vpc", team="red"))
    assert sentence is not None
    assert f"not authorized to perform: ec2:CreateTags on resource: {EC2}vpc/*" in sentence
    assert refused(call, "sagemaker", "CreateProcessingJob", **request()) is None
    job = request() | {"Tags": [{"Key": "team", "Value": "red"}]}
    assert "sagemaker:AddTags on resource" in str(refused(call, "sagemaker", "CreateProcessingJob", **job))
    made = {"RoleName": "r", "AssumeRolePolicyDocument": "{}"}
    assert refused(call, "iam", "CreateRole", **made) is None
    assert "iam:TagRole" in str(refused(call, "iam", "CreateRole", **made, Tags=[{"Key": "a", "Value": "b"}]))


def test_tagging_can_be_allowed_while_creating_only() -> None:
    call = call_of(
        allow("ec2:CreateVpc"),
        allow("ec2:CreateTags", StringEquals={"ec2:CreateAction": "CreateVpc"}),
    )
    assert refused(call, "ec2", "CreateVpc", TagSpecifications=tags("vpc", team="red")) is None
    assert refused(call, "ec2", "CreateTags", Resources=["vpc-1"], Tags=[{"Key": "a", "Value": ""}])


def test_what_is_made_can_be_required_to_have_a_tag() -> None:
    call = call_of(
        allow("ec2:*"),
        deny("ec2:CreateVpc", resource=EC2 + "vpc/*", Null={"aws:RequestTag/team": "true"}),
        deny("ec2:CreateVpc", **{"ForAnyValue:StringNotEquals": {"aws:TagKeys": ["team", "Name"]}}),
    )
    assert refused(call, "ec2", "CreateVpc", TagSpecifications=tags("vpc", team="red")) is None
    assert refused(call, "ec2", "CreateVpc") is not None
    assert refused(call, "ec2", "CreateVpc", TagSpecifications=tags("vpc", team="red", more="x")) is not None


@pytest.mark.parametrize(
    ("service", "operation", "params"),
    [
        ("logs", "UntagResource", {"resourceArn": f"{LOGS}log-group:g", "tagKeys": ["team"]}),
        ("logs", "UntagLogGroup", {"logGroupName": "g", "tags": ["team"]}),
        ("route53resolver", "UntagResource", {"ResourceArn": "arn:x", "TagKeys": ["team"]}),
    ],
)
def test_a_tag_can_be_kept_from_going(service: str, operation: str, params: dict[str, Any]) -> None:
    call = call_of(
        allow(f"{service}:*"),
        deny(f"{service}:Untag*", **{"ForAnyValue:StringEquals": {"aws:TagKeys": "team"}}),
    )
    assert refused(call, service, operation, **params) is not None


def test_a_resolver_rule_is_asked_for_its_tags_and_for_those_it_is_to_have() -> None:
    call = call_of(
        allow("route53resolver:*"),
        deny("route53resolver:Delete*", StringEquals={"aws:ResourceTag/team": "red"}),
        deny("route53resolver:Create*", Null={"aws:RequestTag/team": "true"}),
    )
    for number, team in (("rslvr-rr-1", "red"), ("rslvr-rr-2", "blue")):
        rule = ResolverRule(
            rule_id=number, creator_request_id="", kind="FORWARD", domain="corp", created=0, modified=0,
            tags={"team": team},
        )  # fmt: skip
        call.tx.put(rule)
    delete = partial(refused, call, "route53resolver", "DeleteResolverRule")
    assert delete(ResolverRuleId="rslvr-rr-1") is not None
    assert delete(ResolverRuleId="rslvr-rr-2") is None
    create = partial(refused, call, "route53resolver", "CreateResolverRule", RuleType="FORWARD")
    assert create() is not None
    assert create(Tags=[{"Key": "team", "Value": "red"}]) is None


@pytest.mark.parametrize("key", ["aws:ResourceTag/team", "ec2:ResourceTag/team"])
def test_a_resource_is_asked_for_its_own_tags(key: str) -> None:
    call = call_of(allow("ec2:DeleteVpc", StringEquals={key: "${aws:PrincipalTag/team}"}))
    assert refused(call, "ec2", "DeleteVpc", VpcId="vpc-2") is None
    assert refused(call, "ec2", "DeleteVpc", VpcId="vpc-1") is not None


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("CreateSubnet", {"VpcId": "vpc-1", "CidrBlock": "10.0.9.0/24"}),
        ("CreateSecurityGroup", {"VpcId": "vpc-1", "GroupName": "g", "Description": "d"}),
        ("DeleteSubnet", {"SubnetId": "subnet-1"}),
        ("AuthorizeSecurityGroupIngress", {"GroupId": "sg-1"}),
        ("CreateNetworkInterface", {"SubnetId": "subnet-1", "Groups": ["sg-1"]}),
        ("DeleteNetworkInterface", {"NetworkInterfaceId": "eni-1"}),
    ],
)
def test_a_policy_can_keep_a_caller_within_one_vpc(operation: str, params: dict[str, Any]) -> None:
    for vpc_id, may in (("vpc-1", True), ("vpc-2", False)):
        call = call_of(
            allow("ec2:*", StringEquals={"ec2:Vpc": f"{EC2}vpc/{vpc_id}"}),
            allow("ec2:*", resource=EC2 + "vpc/*"),
        )
        assert (refused(call, "ec2", operation, **params) is None) is may


def test_an_id_of_another_kind_of_resource_has_no_keys() -> None:
    call = call_of(allow("ec2:*"))
    for parameter, operation in (("RouteTableId", "DeleteRouteTable"), ("SubnetId", "DeleteSubnet")):
        for other in ("sgr-True", "igw-1", "vpc-1", "eni-1", "nobody", ""):
            assert refused(call, "ec2", operation, **{parameter: other}) is None
    call = call_of(allow("ec2:*", StringEquals={"ec2:ResourceTag/team": "red"}))
    assert refused(call, "ec2", "DeleteVpc", VpcId="vpc-2") is None
    assert refused(call, "ec2", "DeleteSubnet", SubnetId="vpc-2") is not None


def test_an_interface_is_asked_for_its_subnet_and_zone() -> None:
    condition = {"ec2:Subnet": EC2 + "subnet/subnet-1", "ec2:AvailabilityZone": "us-east-1a"}
    call = call_of(
        allow("ec2:CreateNetworkInterface", resource=EC2 + "network-interface/*", StringEquals=condition),
        allow("ec2:CreateNetworkInterface", resource=[EC2 + "subnet/*", EC2 + "security-group/*"]),
    )
    assert refused(call, "ec2", "CreateNetworkInterface", SubnetId="subnet-1", Groups=["sg-1"]) is None
    assert refused(call, "ec2", "CreateNetworkInterface", SubnetId="subnet-2", Groups=["sg-1"]) is not None


def test_a_role_can_be_passed_by_its_tags_and_by_who_passes_it() -> None:
    for tagged, may in (({"for": "jobs"}, True), ({}, False)):
        condition = {"iam:ResourceTag/for": "jobs", "aws:PrincipalTag/team": "red"}
        call = call_of(
            allow("sagemaker:CreateProcessingJob"),
            allow("iam:PassRole", resource=ROLE_ARN, StringEquals=condition),
        )
        call.tx.put(
            Role(
                name="jobs",
                role_id="AROAJOBS",
                trust_policy=role().trust_policy,
                inline_policies=role().inline_policies,
                tags=tagged,
                created=0.0,
            )
        )
        if may:
            assert OPERATIONS["sagemaker", "CreateProcessingJob"].handler(call, request())
        else:
            with pytest.raises(AwsError, match="iam:PassRole on resource"):
                OPERATIONS["sagemaker", "CreateProcessingJob"].handler(call, request())


def test_a_log_groups_tags_are_asked_for() -> None:
    call = call_of(
        allow("logs:CreateLogGroup"), allow("logs:TagResource", StringEquals={"aws:RequestTag/team": "red"})
    )
    for team, may in (("red", True), ("blue", False)):
        given = {"logGroupName": "g", "tags": {"team": team}}
        assert (refused(call, "logs", "CreateLogGroup", **given) is None) is may
