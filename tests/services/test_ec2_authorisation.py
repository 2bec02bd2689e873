from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2

from cloister.services.api import OPERATIONS, Call


@pytest.fixture
def call() -> Call:
    return make_call()


def arns(call: Call, operation: str, **params: object) -> list[str]:
    resources = OPERATIONS[("ec2", operation)].resources
    assert resources is not None
    prefix = f"arn:aws:ec2:us-east-1:{ACCOUNT}:"
    return [arn.removeprefix(prefix) for arn in resources(call, params)]


def test_operations_are_authorised_on_the_resources_they_touch(call: Call) -> None:
    for operation, params, expected in [
        ("CreateVpc", {}, ["vpc/*"]),
        ("DeleteVpc", {"VpcId": "vpc-1"}, ["vpc/vpc-1"]),
        ("CreateSubnet", {"VpcId": "vpc-1"}, ["subnet/*", "vpc/vpc-1"]),
        ("CreateVpcEndpoint", {"VpcId": "vpc-1"}, ["vpc-endpoint/*", "vpc/vpc-1"]),
        (
            "CreateVpcEndpoint",
            {
                "VpcId": "vpc-1",
                "SubnetIds": ["subnet-1"],
                "SubnetConfigurations": [{"SubnetId": "subnet-2"}],
                "SecurityGroupIds": ["sg-1"],
            },
            ["vpc-endpoint/*", "vpc/vpc-1", "subnet/subnet-1", "subnet/subnet-2", "security-group/sg-1"],
        ),
        (
            "ModifyVpcEndpoint",
            {"VpcEndpointId": "vpce-1", "AddRouteTableIds": ["rtb-1"], "RemoveRouteTableIds": ["rtb-2"]},
            ["vpc-endpoint/vpce-1", "route-table/rtb-1", "route-table/rtb-2"],
        ),
        (
            "DeleteVpcEndpoints",
            {"VpcEndpointIds": ["vpce-1", "vpce-2"]},
            ["vpc-endpoint/vpce-1", "vpc-endpoint/vpce-2"],
        ),
        ("AuthorizeSecurityGroupIngress", {"GroupId": "sg-1"}, ["security-group/sg-1"]),
        ("DeleteSecurityGroup", {"GroupName": "nobody"}, ["security-group/*"]),
        ("DisassociateRouteTable", {"AssociationId": "rtbassoc-1"}, ["*"]),
        ("DisassociateVpcCidrBlock", {"AssociationId": "x"}, ["*"]),
        (
            "AttachInternetGateway",
            {"InternetGatewayId": "igw-1", "VpcId": "vpc-1"},
            ["internet-gateway/igw-1", "vpc/vpc-1"],
        ),
        (
            "CreateNatGateway",
            {"SubnetId": "subnet-1", "AllocationId": "eipalloc-1"},
            ["natgateway/*", "subnet/subnet-1", "elastic-ip/eipalloc-1"],
        ),
        ("AllocateAddress", {}, ["elastic-ip/*"]),
        (
            "AssociateAddress",
            {"AllocationId": "eipalloc-1", "NetworkInterfaceId": "eni-1"},
            ["elastic-ip/eipalloc-1", "network-interface/eni-1"],
        ),
        ("DisassociateAddress", {"AssociationId": "eipassoc-1"}, ["*"]),
        (
            "CreateVpcPeeringConnection",
            {"VpcId": "vpc-1", "PeerVpcId": "vpc-2"},
            ["vpc/vpc-1", "vpc-peering-connection/*"],
        ),
        (
            "DeleteVpcPeeringConnection",
            {"VpcPeeringConnectionId": "pcx-1"},
            ["vpc-peering-connection/pcx-1"],
        ),
        ("DescribeStaleSecurityGroups", {"VpcId": "vpc-1"}, ["vpc/vpc-1"]),
    ]:
        assert arns(call, operation, **params) == expected, operation


def test_a_group_or_table_named_indirectly_is_authorised_as_itself(call: Call) -> None:
    vpc_id = ec2(call, "CreateDefaultVpc")["Vpc"]["VpcId"]
    group_id = ec2(call, "CreateSecurityGroup", GroupName="web", Description="d")["GroupId"]
    assert arns(call, "DeleteSecurityGroup", GroupName="web") == [f"security-group/{group_id}"]
    assert arns(call, "CreateSecurityGroup", GroupName="x") == ["security-group/*", f"vpc/{vpc_id}"]
    (table,) = ec2(call, "DescribeRouteTables")["RouteTables"]
    association = table["Associations"][0]["RouteTableAssociationId"]
    found = arns(call, "ReplaceRouteTableAssociation", RouteTableId="rtb-1", AssociationId=association)
    assert found == ["route-table/rtb-1", f"route-table/{table['RouteTableId']}"]
    block = ec2(call, "DescribeVpcs")["Vpcs"][0]["CidrBlockAssociationSet"][0]["AssociationId"]
    assert arns(call, "DisassociateVpcCidrBlock", AssociationId=block) == [f"vpc/{vpc_id}"]
