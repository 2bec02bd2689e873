from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call


@pytest.fixture
def call() -> Call:
    return make_call()


def make(call: Call, cidr: str = "10.0.0.0/16", **params: object) -> str:
    vpc_id: str = ec2(call, "CreateVpc", CidrBlock=cidr, **params)["Vpc"]["VpcId"]
    return vpc_id


def test_a_new_vpc_has_a_main_route_table_with_local_and_a_default_group(call: Call) -> None:
    vpc_id = make(call)
    (table,) = ec2(call, "DescribeRouteTables", Filters=filters(vpc_id=vpc_id))["RouteTables"]
    assert [one["Main"] for one in table["Associations"]] == [True]
    assert table["Routes"] == [
        {
            "DestinationCidrBlock": "10.0.0.0/16",
            "GatewayId": "local",
            "Origin": "CreateRouteTable",
            "State": "active",
        }
    ]
    (group,) = ec2(call, "DescribeSecurityGroups", Filters=filters(vpc_id=vpc_id))["SecurityGroups"]
    assert group["GroupName"] == "default"
    assert group["IpPermissions"][0]["UserIdGroupPairs"] == [{"UserId": ACCOUNT, "GroupId": group["GroupId"]}]
    assert group["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]


def test_a_vpc_is_pending_when_made_and_available_when_described(call: Call) -> None:
    vpc = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]
    assert vpc["State"] == "pending"
    (described,) = ec2(call, "DescribeVpcs", VpcIds=[vpc["VpcId"]])["Vpcs"]
    assert described == {**vpc, "State": "available"}


def test_host_bits_of_a_block_are_dropped(call: Call) -> None:
    vpc = ec2(call, "CreateVpc", CidrBlock="100.68.0.18/18")["Vpc"]
    assert vpc["CidrBlock"] == "100.68.0.0/18"


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({}, "MissingParameter", "cidrBlock"),
        ({"CidrBlock": "10.0.0.0/15"}, "InvalidVpc.Range", "10.0.0.0/15"),
        ({"CidrBlock": "10.0.0.0/29"}, "InvalidVpc.Range", "10.0.0.0/29"),
        ({"CidrBlock": "10.0.0.0"}, "InvalidParameterValue", "10.0.0.0"),
        ({"CidrBlock": "10.0.0/16"}, "InvalidParameterValue", "10.0.0/16"),
        ({"CidrBlock": "ten"}, "InvalidParameterValue", "ten"),
        (
            {"CidrBlock": "10.0.0.0/16", "Ipv6CidrBlock": "2001:db8::/56"},
            "UnsupportedOperation",
            "Ipv6CidrBlock",
        ),
        (
            {"CidrBlock": "10.0.0.0/16", "AmazonProvidedIpv6CidrBlock": True},
            "UnsupportedOperation",
            "AmazonProvidedIpv6CidrBlock",
        ),
        ({"Ipv4IpamPoolId": "ipam-pool-1"}, "UnsupportedOperation", "Ipv4IpamPoolId"),
        ({"CidrBlock": "10.0.0.0/16", "InstanceTenancy": "dedicated"}, "UnsupportedOperation", "dedicated"),
    ],
)
def test_a_bad_vpc_is_refused_naming_the_value(call: Call, params: dict, code: str, named: str) -> None:
    error = refusal(call, "CreateVpc", **params)
    assert error.code == code
    assert named in error.message


def test_a_parameter_that_asks_for_nothing_is_no_reason_to_refuse(call: Call) -> None:
    make(call, AmazonProvidedIpv6CidrBlock=False, InstanceTenancy="default")


def test_vpcs_are_filtered_by_every_documented_name(call: Call) -> None:
    one = make(call, TagSpecifications=[{"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": "lab"}]}])
    make(call, "192.168.0.0/20")
    association = ec2(call, "DescribeVpcs", VpcIds=[one])["Vpcs"][0]["CidrBlockAssociationSet"][0]
    for name, value, expected in [
        ("cidr", "10.0.0.0/16", 1),
        ("cidr-block-association.cidr-block", "10.0.*", 1),
        ("cidr-block-association.association-id", association["AssociationId"], 1),
        ("cidr-block-association.state", "associated", 2),
        ("dhcp-options-id", "dopt-*", 2),
        ("ipv6-cidr-block-association.state", "*", 0),
        ("is-default", "false", 2),
        ("owner-id", ACCOUNT, 2),
        ("state", "available", 2),
        ("tag:Name", "l?b", 1),
        ("tag:name", "lab", 0),
        ("tag-key", "N*", 1),
        ("vpc-id", one, 1),
    ]:
        found = ec2(call, "DescribeVpcs", Filters=[{"Name": name, "Values": [value]}])["Vpcs"]
        assert len(found) == expected, name


def test_an_unknown_filter_is_refused_by_name(call: Call) -> None:
    error = refusal(call, "DescribeVpcs", Filters=filters(colour="red"))
    assert (error.code, error.message) == ("InvalidParameterValue", "The filter 'colour' is invalid")


def test_values_of_a_filter_are_alternatives_and_filters_add_up(call: Call) -> None:
    one, other = make(call), make(call, "10.1.0.0/16")
    either = filters(cidr=["10.0.0.0/16", "10.1.0.0/16"])
    assert set(ids(ec2(call, "DescribeVpcs", Filters=either)["Vpcs"], "VpcId")) == {one, other}
    both = [*either, *filters(vpc_id=other)]
    assert ids(ec2(call, "DescribeVpcs", Filters=both)["Vpcs"], "VpcId") == [other]


def test_an_escaped_wildcard_stands_for_itself(call: Call) -> None:
    tags = [{"ResourceType": "vpc", "Tags": [{"Key": "k", "Value": "a*b"}]}]
    make(call, TagSpecifications=tags)
    for value, expected in [("a\\*b", 1), ("a\\?b", 0), ("a?b", 1), ("*", 1), ("a*", 1), ("b*", 0)]:
        found = ec2(call, "DescribeVpcs", Filters=[{"Name": "tag:k", "Values": [value]}])["Vpcs"]
        assert len(found) == expected, value


def test_pages_cover_everything_once_also_when_a_vpc_goes_in_between(call: Call) -> None:
    made = {make(call, f"10.{i}.0.0/16") for i in range(12)}
    page = ec2(call, "DescribeVpcs", MaxResults=5)
    seen = ids(page["Vpcs"], "VpcId")
    ec2(call, "DeleteVpc", VpcId=seen[-1])
    while "NextToken" in page:
        page = ec2(call, "DescribeVpcs", MaxResults=5, NextToken=page["NextToken"])
        seen += ids(page["Vpcs"], "VpcId")
    assert len(seen) == len(set(seen))
    assert set(seen) == made


def test_a_token_belongs_to_its_query(call: Call) -> None:
    for i in range(6):
        make(call, f"10.{i}.0.0/16")
    token = ec2(call, "DescribeVpcs", MaxResults=5)["NextToken"]
    other = filters(state="available")
    assert (
        refusal(call, "DescribeVpcs", MaxResults=5, NextToken=token, Filters=other).code == "InvalidNextToken"
    )
    for forged in ("x", "é", "bnVsbA==", token[:-4], "W10="):
        assert refusal(call, "DescribeVpcs", MaxResults=5, NextToken=forged).code == "InvalidNextToken"


def test_ids_and_pages_do_not_combine(call: Call) -> None:
    vpc_id = make(call)
    error = refusal(call, "DescribeVpcs", VpcIds=[vpc_id], MaxResults=5)
    assert error.code == "InvalidParameterCombination"


@pytest.mark.parametrize("operation", ["DeleteVpc", "ModifyVpcAttribute", "AssociateVpcCidrBlock"])
def test_an_unknown_vpc_is_named(call: Call, operation: str) -> None:
    further = {"AssociateVpcCidrBlock": {"CidrBlock": "10.9.0.0/16"}}.get(operation, {})
    error = refusal(call, operation, VpcId="vpc-0123", **further)
    assert (error.code, error.message) == ("InvalidVpcID.NotFound", "The vpc ID 'vpc-0123' does not exist")


def test_what_cannot_be_a_vpc_id_is_malformed(call: Call) -> None:
    error = refusal(call, "DescribeVpcs", VpcIds=["subnet-1"])
    assert (error.code, error.message) == (
        "InvalidVpcID.Malformed",
        'Invalid id: "subnet-1" (expecting "vpc-...")',
    )


def test_an_empty_vpc_is_deleted_with_its_table_and_group(call: Call) -> None:
    vpc_id = make(call)
    ec2(call, "DeleteVpc", VpcId=vpc_id)
    assert call.tx.changes == []


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("CreateSubnet", {"CidrBlock": "10.0.0.0/24"}),
        ("CreateSecurityGroup", {"GroupName": "a", "Description": "a"}),
        ("CreateRouteTable", {}),
        ("CreateVpcEndpoint", {"ServiceName": "com.amazonaws.us-east-1.s3"}),
    ],
)
def test_a_vpc_in_use_is_kept(call: Call, operation: str, params: dict) -> None:
    vpc_id = make(call)
    ec2(call, operation, VpcId=vpc_id, **params)
    error = refusal(call, "DeleteVpc", VpcId=vpc_id)
    assert error.code == "DependencyViolation"
    assert vpc_id in error.message


def test_attributes_are_changed_one_at_a_time(call: Call) -> None:
    vpc_id = make(call)

    def value(attribute: str, member: str) -> bool:
        got = ec2(call, "DescribeVpcAttribute", VpcId=vpc_id, Attribute=attribute)
        found: bool = got[member]["Value"]
        return found

    assert value("enableDnsSupport", "EnableDnsSupport")
    assert not value("enableDnsHostnames", "EnableDnsHostnames")
    assert not value("enableNetworkAddressUsageMetrics", "EnableNetworkAddressUsageMetrics")
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsHostnames={"Value": True})
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsSupport={"Value": False})
    assert not value("enableDnsSupport", "EnableDnsSupport")
    assert value("enableDnsHostnames", "EnableDnsHostnames")
    both = {"EnableDnsHostnames": {"Value": True}, "EnableDnsSupport": {"Value": True}}
    assert refusal(call, "ModifyVpcAttribute", VpcId=vpc_id, **both).code == "InvalidParameterCombination"
    assert refusal(call, "ModifyVpcAttribute", VpcId=vpc_id).code == "InvalidParameterCombination"
    metrics = refusal(
        call, "ModifyVpcAttribute", VpcId=vpc_id, EnableNetworkAddressUsageMetrics={"Value": True}
    )
    assert "EnableNetworkAddressUsageMetrics" in metrics.message


def test_a_further_block_brings_its_local_route_and_takes_it_away(call: Call) -> None:
    vpc_id = make(call)
    association = ec2(call, "AssociateVpcCidrBlock", VpcId=vpc_id, CidrBlock="10.7.0.0/16")[
        "CidrBlockAssociation"
    ]
    (table,) = ec2(call, "DescribeRouteTables", Filters=filters(vpc_id=vpc_id))["RouteTables"]
    assert ids(table["Routes"], "DestinationCidrBlock") == ["10.0.0.0/16", "10.7.0.0/16"]
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.7.1.0/24")["Subnet"]
    error = refusal(call, "DisassociateVpcCidrBlock", AssociationId=association["AssociationId"])
    assert error.code == "InvalidCidrBlock.InUse"
    ec2(call, "DeleteSubnet", SubnetId=subnet["SubnetId"])
    ec2(call, "DisassociateVpcCidrBlock", AssociationId=association["AssociationId"])
    (table,) = ec2(call, "DescribeRouteTables", Filters=filters(vpc_id=vpc_id))["RouteTables"]
    assert ids(table["Routes"], "DestinationCidrBlock") == ["10.0.0.0/16"]


def test_the_primary_block_stays_and_five_are_the_limit(call: Call) -> None:
    vpc = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]
    primary = vpc["CidrBlockAssociationSet"][0]["AssociationId"]
    assert refusal(call, "DisassociateVpcCidrBlock", AssociationId=primary).code == "OperationNotPermitted"
    for i in range(1, 5):
        ec2(call, "AssociateVpcCidrBlock", VpcId=vpc["VpcId"], CidrBlock=f"10.{i}.0.0/16")
    error = refusal(call, "AssociateVpcCidrBlock", VpcId=vpc["VpcId"], CidrBlock="10.9.0.0/16")
    assert error.code == "CidrLimitExceeded"
    unknown = refusal(call, "DisassociateVpcCidrBlock", AssociationId="vpc-cidr-assoc-1")
    assert unknown.code == "InvalidVpcCidrBlockAssociationID.NotFound"
