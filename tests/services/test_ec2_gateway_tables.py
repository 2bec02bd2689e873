"""Route tables of internet gateways (edge associations): what they may have, how they are shown and end."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.services.calls import make_call
from tests.services.ec2 import ec2, filters, refusal

from cloister.services.api import Call
from cloister.vpc.interfaces import create_interface


@dataclass(frozen=True, kw_only=True)
class Edge:
    call: Call
    vpc: str
    gateway: str
    table: str
    subnet: str
    interface: str

    def associate(self, **params: str) -> str:
        wanted = {"RouteTableId": self.table, "GatewayId": self.gateway} | params
        made: str = ec2(self.call, "AssociateRouteTable", **wanted)["AssociationId"]
        return made

    def described(self) -> dict:
        (table,) = ec2(self.call, "DescribeRouteTables", RouteTableIds=[self.table])["RouteTables"]
        found: dict = table
        return found


@pytest.fixture
def edge() -> Edge:
    call = make_call()
    vpc = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    gateway = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway, VpcId=vpc)
    subnet = ec2(call, "CreateSubnet", VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    return Edge(
        call=call,
        vpc=vpc,
        gateway=gateway,
        table=ec2(call, "CreateRouteTable", VpcId=vpc)["RouteTable"]["RouteTableId"],
        subnet=subnet,
        interface=create_interface(call.tx, subnet_id=subnet, now=0, attach=("",)).interface_id,
    )


def test_a_gateway_is_shown_among_the_associations_and_found_by_its_filter(edge: Edge) -> None:
    made = ec2(edge.call, "AssociateRouteTable", RouteTableId=edge.table, GatewayId=edge.gateway)
    assert made["AssociationState"] == {"State": "associated"}
    assert edge.associate() == made["AssociationId"]  # once more is the same
    assert edge.described()["Associations"] == [
        {
            "RouteTableAssociationId": made["AssociationId"],
            "RouteTableId": edge.table,
            "Main": False,
            "GatewayId": edge.gateway,
            "AssociationState": {"State": "associated"},
        }
    ]
    by_gateway = [{"Name": "association.gateway-id", "Values": [edge.gateway]}]
    found = ec2(edge.call, "DescribeRouteTables", Filters=by_gateway)["RouteTables"]
    assert [one["RouteTableId"] for one in found] == [edge.table]
    ec2(edge.call, "DisassociateRouteTable", AssociationId=made["AssociationId"])
    assert edge.described()["Associations"] == []
    assert ec2(edge.call, "DescribeRouteTables", Filters=by_gateway)["RouteTables"] == []


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"GatewayId": "igw-1"}, "InvalidGatewayID.NotFound", "igw-1"),
        ({"GatewayId": "vgw-1"}, "InvalidVpnGatewayID.NotFound", "vgw-1"),
        ({"SubnetId": "subnet-1"}, "InvalidParameterCombination", "GatewayId"),
        ({"GatewayId": ""}, "MissingParameter", ""),
    ],
)
def test_a_bad_gateway_is_refused_naming_it(edge: Edge, params: dict, code: str, named: str) -> None:
    wanted = {"RouteTableId": edge.table, "GatewayId": edge.gateway} | params
    error = refusal(edge.call, "AssociateRouteTable", **wanted)
    assert (error.code, named in error.message) == (code, True)


def test_a_gateway_of_another_vpc_or_of_none_is_refused(edge: Edge) -> None:
    loose = ec2(edge.call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    error = refusal(edge.call, "AssociateRouteTable", RouteTableId=edge.table, GatewayId=loose)
    assert error.code == "InvalidParameterValue"
    assert "belong to different networks" in error.message


def test_a_gateway_has_one_table_and_may_get_another(edge: Edge) -> None:
    first = edge.associate()
    other = ec2(edge.call, "CreateRouteTable", VpcId=edge.vpc)["RouteTable"]["RouteTableId"]
    error = refusal(edge.call, "AssociateRouteTable", RouteTableId=other, GatewayId=edge.gateway)
    assert error.code == "Resource.AlreadyAssociated"
    out = {"RouteTableId": other, "DestinationCidrBlock": "0.0.0.0/0", "GatewayId": edge.gateway}
    ec2(edge.call, "CreateRoute", **out)
    moved = {"AssociationId": first, "RouteTableId": other}
    assert refusal(edge.call, "ReplaceRouteTableAssociation", **moved).code == "InvalidParameterValue"
    ec2(edge.call, "DeleteRoute", RouteTableId=other, DestinationCidrBlock="0.0.0.0/0")
    ec2(edge.call, "ReplaceRouteTableAssociation", **moved)
    assert edge.described()["Associations"] == []
    found = ec2(edge.call, "DescribeRouteTables", Filters=filters(route_table_id=other))["RouteTables"]
    assert found[0]["Associations"][0]["GatewayId"] == edge.gateway


def test_a_table_with_other_routes_cannot_be_a_gateways(edge: Edge) -> None:
    out = {"RouteTableId": edge.table, "DestinationCidrBlock": "0.0.0.0/0"}
    wanted = {"RouteTableId": edge.table, "GatewayId": edge.gateway}
    ec2(edge.call, "CreateRoute", **out, GatewayId=edge.gateway)
    error = refusal(edge.call, "AssociateRouteTable", **wanted)
    assert (error.code, f"route target: {edge.gateway}" in error.message) == ("InvalidParameterValue", True)
    ec2(edge.call, "ReplaceRoute", **out, NetworkInterfaceId=edge.interface)
    error = refusal(edge.call, "AssociateRouteTable", **wanted)
    assert (error.code, "destination: 0.0.0.0/0" in error.message) == ("InvalidParameterValue", True)
    ec2(edge.call, "DeleteRoute", **out)
    endpoint = ec2(
        edge.call,
        "CreateVpcEndpoint",
        VpcId=edge.vpc,
        ServiceName="com.amazonaws.us-east-1.s3",
        RouteTableIds=[edge.table],
    )["VpcEndpoint"]["VpcEndpointId"]
    assert endpoint in refusal(edge.call, "AssociateRouteTable", **wanted).message
    ec2(edge.call, "ModifyVpcEndpoint", VpcEndpointId=endpoint, RemoveRouteTableIds=[edge.table])
    edge.associate()


def test_a_gateways_table_takes_routes_to_interfaces_for_whole_blocks_only(edge: Edge) -> None:
    edge.associate()
    to = {"RouteTableId": edge.table, "NetworkInterfaceId": edge.interface}
    for destination in ("0.0.0.0/0", "10.0.0.0/25", "10.0.0.0/8", "192.168.0.0/24"):
        error = refusal(edge.call, "CreateRoute", **to, DestinationCidrBlock=destination)
        assert (error.code, destination in error.message) == ("InvalidParameterValue", True)
    listed = refusal(edge.call, "CreateRoute", **to, DestinationPrefixListId="pl-63a5400a")
    assert (listed.code, "pl-63a5400a" in listed.message) == ("InvalidParameterValue", True)
    block = {"RouteTableId": edge.table, "DestinationCidrBlock": "10.0.0.0/24"}
    assert refusal(edge.call, "CreateRoute", **block, GatewayId=edge.gateway).code == "InvalidParameterValue"
    ec2(edge.call, "CreateRoute", **to, DestinationCidrBlock="10.0.0.0/24")
    ec2(edge.call, "ReplaceRoute", **to, DestinationCidrBlock="10.0.0.0/16")
    routes = {
        one["DestinationCidrBlock"]: one.get("NetworkInterfaceId") for one in edge.described()["Routes"]
    }
    assert routes == {"10.0.0.0/16": edge.interface, "10.0.0.0/24": edge.interface}
    endpoint = ec2(edge.call, "CreateVpcEndpoint", VpcId=edge.vpc, ServiceName="com.amazonaws.us-east-1.s3")[
        "VpcEndpoint"
    ]["VpcEndpointId"]
    error = refusal(edge.call, "ModifyVpcEndpoint", VpcEndpointId=endpoint, AddRouteTableIds=[edge.table])
    assert (error.code, endpoint in error.message) == ("InvalidParameterValue", True)


def test_neither_the_table_goes_nor_the_gateway_while_they_are_associated(edge: Edge) -> None:
    made = edge.associate()
    assert refusal(edge.call, "DeleteRouteTable", RouteTableId=edge.table).code == "DependencyViolation"
    detach = {"InternetGatewayId": edge.gateway, "VpcId": edge.vpc}
    error = refusal(edge.call, "DetachInternetGateway", **detach)
    assert (error.code, edge.table in error.message) == ("DependencyViolation", True)
    ec2(edge.call, "DisassociateRouteTable", AssociationId=made)
    ec2(edge.call, "DetachInternetGateway", **detach)
    ec2(edge.call, "DeleteRouteTable", RouteTableId=edge.table)
