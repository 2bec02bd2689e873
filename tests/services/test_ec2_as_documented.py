"""Sentences of EC2's API reference and of the VPC guide, each held to."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.calls import make_call
from tests.services.ec2 import ec2, ids, refusal

from cloister.services.api import Call
from cloister.vpc.model import PEERING_EXPIRES


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    return vpc(call, "10.0.0.0/16")


def vpc(call: Call, cidr: str) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock=cidr)["Vpc"]["VpcId"]
    return made


def group(call: Call, vpc_id: str, name: str) -> dict[str, Any]:
    return {"VpcId": vpc_id, "GroupName": name, "Description": "d"}


def test_names_of_groups_are_unique_in_any_case_and_end_without_spaces(call: Call, vpc_id: str) -> None:
    made = ec2(call, "CreateSecurityGroup", **group(call, vpc_id, "Web servers  "))["GroupId"]
    (shown,) = ec2(call, "DescribeSecurityGroups", GroupIds=[made])["SecurityGroups"]
    assert shown["GroupName"] == "Web servers"
    for name in ("Web servers", "web SERVERS", "Default"):
        assert refusal(call, "CreateSecurityGroup", **group(call, vpc_id, name)).code in (
            "InvalidGroup.Duplicate"
        )
    ec2(call, "CreateSecurityGroup", **group(call, vpc(call, "10.1.0.0/16"), "web servers"))


def test_a_name_of_spaces_alone_is_no_name(call: Call, vpc_id: str) -> None:
    assert refusal(call, "CreateSecurityGroup", **group(call, vpc_id, "  ")).code == "InvalidParameterValue"


def test_dns_hostnames_need_dns_support(call: Call, vpc_id: str) -> None:
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsSupport={"Value": False})
    error = refusal(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsHostnames={"Value": True})
    assert (error.code, vpc_id in error.message) == ("InvalidParameterValue", True)
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsHostnames={"Value": False})


def test_a_block_that_a_route_leads_elsewhere_is_not_added(call: Call, vpc_id: str) -> None:
    gateway = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway, VpcId=vpc_id)
    table = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    for destination in ("0.0.0.0/0", "10.1.4.0/24"):
        ec2(
            call,
            "CreateRoute",
            RouteTableId=table,
            DestinationCidrBlock=destination,
            GatewayId=gateway,
        )
    for cidr in ("10.1.4.0/24", "10.1.0.0/16"):
        error = refusal(call, "AssociateVpcCidrBlock", VpcId=vpc_id, CidrBlock=cidr)
        assert (error.code, table in error.message) == ("CidrConflict", True)
    ec2(call, "AssociateVpcCidrBlock", VpcId=vpc_id, CidrBlock="10.1.4.0/25")


def test_a_peering_that_nobody_accepted_in_time_holds_nothing(call: Call, vpc_id: str) -> None:
    other = vpc(call, "10.1.0.0/16")
    made = ec2(call, "CreateVpcPeeringConnection", VpcId=vpc_id, PeerVpcId=other)["VpcPeeringConnection"]
    table = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    route = {
        "RouteTableId": table,
        "DestinationCidrBlock": "10.1.0.0/16",
        "VpcPeeringConnectionId": made["VpcPeeringConnectionId"],
    }
    assert refusal(call, "DeleteVpc", VpcId=other).code == "DependencyViolation"
    call.now += PEERING_EXPIRES
    assert refusal(call, "CreateRoute", **route).code == "InvalidVpcPeeringConnectionID.NotFound"
    ec2(call, "DeleteVpc", VpcId=other)


def test_what_is_not_listed_any_more_is_not_found_by_its_id(call: Call, vpc_id: str) -> None:
    other = vpc(call, "10.1.0.0/16")
    made = ec2(call, "CreateVpcPeeringConnection", VpcId=vpc_id, PeerVpcId=other)["VpcPeeringConnection"]
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    nat = ec2(call, "CreateNatGateway", SubnetId=subnet, ConnectivityType="private")["NatGateway"]
    peering_id, nat_id = made["VpcPeeringConnectionId"], nat["NatGatewayId"]
    ec2(call, "DeleteVpcPeeringConnection", VpcPeeringConnectionId=peering_id)
    ec2(call, "DeleteNatGateway", NatGatewayId=nat_id)
    call.now += 2 * 3600 + 1
    for operation, params, code in (
        (
            "DescribeVpcPeeringConnections",
            {"VpcPeeringConnectionIds": [peering_id]},
            "InvalidVpcPeeringConnectionID.NotFound",
        ),
        ("DescribeNatGateways", {"NatGatewayIds": [nat_id]}, "NatGatewayNotFound"),
    ):
        assert refusal(call, operation, **params).code == code


@pytest.mark.parametrize(
    ("resource_id", "code"),
    [
        ("vpc-0123", "InvalidVpcID.NotFound"),
        ("eni-0123", "InvalidNetworkInterfaceID.NotFound"),
        ("sg-0123", "InvalidGroup.NotFound"),
        ("sgr-0123", "InvalidSecurityGroupRuleId.NotFound"),
        ("eipalloc-0123", "InvalidAllocationID.NotFound"),
        ("nat-0123", "NatGatewayNotFound"),
        ("colour-0123", "InvalidID"),
        ("colour", "InvalidID"),
        ("", "InvalidID"),
    ],
)
def test_tagging_what_is_not_there_is_refused_in_the_words_of_its_kind(
    call: Call, resource_id: str, code: str
) -> None:
    """Terraform tags again what it has just made until the code no longer says NotFound."""
    tags = [{"Key": "a", "Value": "b"}]
    for operation in ("CreateTags", "DeleteTags"):
        error = refusal(call, operation, Resources=[resource_id], Tags=tags)
        assert (error.code, f"{resource_id}" in error.message) == (code, True)


def test_more_than_a_thousand_endpoints_a_page_are_a_thousand(call: Call, vpc_id: str) -> None:
    ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName="com.amazonaws.us-east-1.s3")
    assert len(ec2(call, "DescribeVpcEndpoints", MaxResults=5000)["VpcEndpoints"]) == 1
    assert ec2(call, "DescribeVpcEndpointServices", MaxResults=5000)["ServiceDetails"]
    assert refusal(call, "DescribeVpcEndpoints", MaxResults=0).code == "InvalidParameterValue"


def test_a_token_for_a_prefix_list_has_255_characters_of_any_kind(call: Call) -> None:
    params = {"PrefixListName": "a", "AddressFamily": "IPv4", "MaxEntries": 1}
    first = ec2(call, "CreateManagedPrefixList", **params, ClientToken="é" * 255)
    assert ec2(call, "CreateManagedPrefixList", **params, ClientToken="é" * 255) == first
    error = refusal(call, "CreateManagedPrefixList", **params, ClientToken="é" * 256)
    assert (error.code, "255" in error.message) == ("InvalidParameterValue", True)


def test_an_address_is_released_in_its_own_border_group_only(call: Call) -> None:
    elastic = ec2(call, "AllocateAddress")["AllocationId"]
    wrong = {"AllocationId": elastic, "NetworkBorderGroup": "eu-west-1"}
    assert refusal(call, "ReleaseAddress", **wrong).code == "InvalidAddress.NotFound"
    ec2(call, "ReleaseAddress", AllocationId=elastic, NetworkBorderGroup="us-east-1")


def test_the_accounts_limits_are_attributes(call: Call) -> None:
    found = ec2(call, "DescribeAccountAttributes")["AccountAttributes"]
    values = {one["AttributeName"]: one["AttributeValues"][0]["AttributeValue"] for one in found}
    assert values["vpc-max-security-groups-per-interface"] == "5"
    assert values["max-elastic-ips"] == values["vpc-max-elastic-ips"] == "200"
    chosen = ec2(call, "DescribeAccountAttributes", AttributeNames=["default-vpc"])["AccountAttributes"]
    assert ids(chosen, "AttributeName") == ["default-vpc"]
    error = refusal(call, "DescribeAccountAttributes", AttributeNames=["colour"])
    assert error.code == "InvalidParameterValue"


def test_three_hundred_resources_are_the_most_of_one_call_for_flow_logs(call: Call, vpc_id: str) -> None:
    error = refusal(
        call,
        "CreateFlowLogs",
        ResourceType="VPC",
        ResourceIds=[f"vpc-{n}" for n in range(301)],
        TrafficType="ALL",
    )
    assert (error.code, "300" in error.message) == ("InvalidParameter", True)


def test_a_route_that_is_not_there_is_created_and_not_replaced(call: Call, vpc_id: str) -> None:
    """In the words that scripts of NAT instances look for."""
    gateway = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway, VpcId=vpc_id)
    table = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    route = {"RouteTableId": table, "DestinationCidrBlock": "0.0.0.0/0", "GatewayId": gateway}
    error = refusal(call, "ReplaceRoute", **route)
    assert (error.code, error.message) == (
        "InvalidParameterValue",
        "There is no route defined for '0.0.0.0/0' in the route table. Use CreateRoute instead.",
    )
    ec2(call, "CreateRoute", **route)
    ec2(call, "ReplaceRoute", **route)
