from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, refusal

from cloister.services.api import OPERATIONS, Call


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


def tag(**tags: str) -> list[dict]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(call: Call, resource_id: str) -> dict[str, str]:
    found = ec2(call, "DescribeTags", Filters=filters(resource_id=resource_id))["Tags"]
    return {one["Key"]: one["Value"] for one in found}


def test_every_kind_of_resource_can_be_tagged(call: Call, vpc_id: str) -> None:
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    group = ec2(call, "CreateSecurityGroup", VpcId=vpc_id, GroupName="a", Description="a")["GroupId"]
    (rule,) = ec2(call, "DescribeSecurityGroupRules", Filters=filters(group_id=group))["SecurityGroupRules"]
    service = "com.amazonaws.us-east-1.s3"
    made = {
        "vpc": vpc_id,
        "subnet": subnet,
        "security-group": group,
        "security-group-rule": rule["SecurityGroupRuleId"],
        "route-table": ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"],
        "vpc-endpoint": ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=service)["VpcEndpoint"][
            "VpcEndpointId"
        ],
        "network-interface": ec2(call, "CreateNetworkInterface", SubnetId=subnet)["NetworkInterface"][
            "NetworkInterfaceId"
        ],
        "prefix-list": ec2(
            call, "CreateManagedPrefixList", PrefixListName="a", MaxEntries=1, AddressFamily="IPv4"
        )["PrefixList"]["PrefixListId"],
    }
    ec2(call, "CreateTags", Resources=list(made.values()), Tags=tag(Name="x", team="y"))
    found = ec2(call, "DescribeTags", Filters=filters(key="Name"))["Tags"]
    assert {one["ResourceType"]: one["ResourceId"] for one in found} == made
    ec2(call, "DeleteTags", Resources=list(made.values()), Tags=[{"Key": "Name"}])
    assert all(tags_of(call, one) == {"team": "y"} for one in made.values())


def test_tags_are_filtered_by_every_documented_name(call: Call, vpc_id: str) -> None:
    ec2(call, "CreateTags", Resources=[vpc_id], Tags=tag(Name="lab", team="a"))
    for name, value, expected in [
        ("key", "Name", 1),
        ("value", "l*", 1),
        ("resource-id", vpc_id, 2),
        ("resource-type", "vpc", 2),
        ("resource-type", "subnet", 0),
        ("tag:team", "a", 1),
        ("tag:team", "lab", 0),
    ]:
        found = ec2(call, "DescribeTags", Filters=[{"Name": name, "Values": [value]}])["Tags"]
        assert len(found) == expected, name


def test_a_tag_is_replaced_and_deleted_only_with_its_value(call: Call, vpc_id: str) -> None:
    ec2(call, "CreateTags", Resources=[vpc_id], Tags=tag(a="1", b="2"))
    ec2(call, "CreateTags", Resources=[vpc_id], Tags=tag(a="3"))
    ec2(call, "DeleteTags", Resources=[vpc_id], Tags=tag(a="1"))
    assert tags_of(call, vpc_id) == {"a": "3", "b": "2"}
    ec2(call, "DeleteTags", Resources=[vpc_id], Tags=tag(a="3"))
    assert tags_of(call, vpc_id) == {"b": "2"}
    ec2(call, "DeleteTags", Resources=[vpc_id])
    assert tags_of(call, vpc_id) == {}


@pytest.mark.parametrize(
    ("tags", "code", "named"),
    [
        (tag(**{"aws:x": "1"}), "InvalidParameterValue", "aws:x"),
        (tag(**{"AWS:x": "1"}), "InvalidParameterValue", "AWS:x"),
        (tag(**{"": "1"}), "InvalidParameterValue", "empty"),
        (tag(**{"k" * 129: "1"}), "InvalidParameterValue", "128"),
        (tag(k="v" * 257), "InvalidParameterValue", "256"),
        ([*tag(k="1"), *tag(k="2")], "InvalidParameterValue", "Duplicate tag key 'k'"),
        (tag(**{f"k{i}": "" for i in range(51)}), "TagLimitExceeded", "51"),
        (tag(**{f"k{i}": "" for i in range(50)}), "TagLimitExceeded", "51"),
        ([], "MissingParameter", "Tag"),
    ],
)
def test_bad_tags_are_refused(call: Call, vpc_id: str, tags: list, code: str, named: str) -> None:
    ec2(call, "CreateTags", Resources=[vpc_id], Tags=tag(there="1"))
    error = refusal(call, "CreateTags", Resources=[vpc_id], Tags=tags)
    assert error.code == code
    assert named in error.message


@pytest.mark.parametrize("resource_id", ["banana", "i-1", ""])
def test_what_is_not_there_cannot_be_tagged(call: Call, resource_id: str) -> None:
    for operation in ("CreateTags", "DeleteTags"):
        error = refusal(call, operation, Resources=[resource_id], Tags=tag(a="1"))
        assert (error.code, error.message) == ("InvalidID", f"The ID '{resource_id}' is not valid")


def test_tags_at_creation_must_name_what_is_created(call: Call) -> None:
    wrong = [{"ResourceType": "subnet", "Tags": tag(a="1")}]
    error = refusal(call, "CreateVpc", CidrBlock="10.0.0.0/16", TagSpecifications=wrong)
    assert error.message == "'subnet' is not a valid taggable resource type for this operation."
    twice = [{"ResourceType": "vpc", "Tags": tag(a="1")}, {"ResourceType": "vpc", "Tags": tag(b="1")}]
    assert (
        "more than once"
        in refusal(call, "CreateVpc", CidrBlock="10.0.0.0/16", TagSpecifications=twice).message
    )


def test_tagging_is_authorised_on_the_resources_named(call: Call) -> None:
    resources = OPERATIONS[("ec2", "CreateTags")].resources
    assert resources is not None
    assert resources(call, {"Resources": ["vpc-1", "sgr-1", "banana"]}) == [
        f"arn:aws:ec2:us-east-1:{ACCOUNT}:vpc/vpc-1",
        f"arn:aws:ec2:us-east-1:{ACCOUNT}:security-group-rule/sgr-1",
        f"arn:aws:ec2:us-east-1:{ACCOUNT}:*/banana",
    ]
