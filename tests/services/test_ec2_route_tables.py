from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.vpc.interfaces import attach, create_interface, release
from cloister.vpc.model import RouteTable

S3 = "com.amazonaws.us-east-1.s3"
S3_LIST = "pl-63a5400a"


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


@pytest.fixture
def subnet_id(call: Call, vpc_id: str) -> str:
    made: str = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    return made


def make(call: Call, vpc_id: str) -> str:
    table: str = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    return table


def described(call: Call, table_id: str) -> dict:
    (table,) = ec2(call, "DescribeRouteTables", RouteTableIds=[table_id])["RouteTables"]
    found: dict = table
    return found


def main_of(call: Call, vpc_id: str) -> dict:
    named = [*filters(vpc_id=vpc_id), {"Name": "association.main", "Values": ["true"]}]
    (table,) = ec2(call, "DescribeRouteTables", Filters=named)["RouteTables"]
    found: dict = table
    return found


def test_a_new_table_has_the_local_route_and_no_association(call: Call, vpc_id: str) -> None:
    made = ec2(call, "CreateRouteTable", VpcId=vpc_id, ClientToken="once")
    assert made["ClientToken"] == "once"
    table = made["RouteTable"]
    assert (table["Associations"], table["OwnerId"]) == ([], ACCOUNT)
    assert [(one["GatewayId"], one["State"]) for one in table["Routes"]] == [("local", "active")]
    assert described(call, table["RouteTableId"]) == table


def test_numbers_of_tables_differ_within_a_vpc_and_start_at_1000(call: Call, vpc_id: str) -> None:
    first, second = make(call, vpc_id), make(call, vpc_id)
    ec2(call, "DeleteRouteTable", RouteTableId=first)
    make(call, vpc_id)
    numbers = [table.number for table in call.tx.where(RouteTable, vpc_id=vpc_id)]
    assert sorted(numbers) == [1000, 1001, 1002]
    assert described(call, second)


def test_a_subnet_is_associated_moved_and_let_go(call: Call, vpc_id: str, subnet_id: str) -> None:
    one, other = make(call, vpc_id), make(call, vpc_id)
    made = ec2(call, "AssociateRouteTable", RouteTableId=one, SubnetId=subnet_id)
    again = ec2(call, "AssociateRouteTable", RouteTableId=one, SubnetId=subnet_id)
    assert again == made == {**made, "AssociationState": {"State": "associated"}}
    conflict = refusal(call, "AssociateRouteTable", RouteTableId=other, SubnetId=subnet_id)
    assert conflict.code == "Resource.AlreadyAssociated"
    assert refusal(call, "DeleteRouteTable", RouteTableId=one).code == "DependencyViolation"
    moved = ec2(call, "ReplaceRouteTableAssociation", AssociationId=made["AssociationId"], RouteTableId=other)
    assert moved["NewAssociationId"] != made["AssociationId"]
    assert described(call, one)["Associations"] == []
    assert ids(described(call, other)["Associations"], "SubnetId") == [subnet_id]
    ec2(call, "DisassociateRouteTable", AssociationId=moved["NewAssociationId"])
    assert described(call, other)["Associations"] == []
    gone = refusal(call, "DisassociateRouteTable", AssociationId=made["AssociationId"])
    assert (gone.code, made["AssociationId"] in gone.message) == ("InvalidAssociationID.NotFound", True)


def test_the_main_association_moves_but_does_not_end(call: Call, vpc_id: str) -> None:
    main, other = main_of(call, vpc_id), make(call, vpc_id)
    association = main["Associations"][0]["RouteTableAssociationId"]
    assert refusal(call, "DisassociateRouteTable", AssociationId=association).code == "InvalidParameterValue"
    assert refusal(call, "DeleteRouteTable", RouteTableId=main["RouteTableId"]).code == "DependencyViolation"
    ec2(call, "ReplaceRouteTableAssociation", AssociationId=association, RouteTableId=other)
    assert main_of(call, vpc_id)["RouteTableId"] == other
    ec2(call, "DeleteRouteTable", RouteTableId=main["RouteTableId"])
    same = main_of(call, vpc_id)["Associations"][0]["RouteTableAssociationId"]
    ec2(call, "ReplaceRouteTableAssociation", AssociationId=same, RouteTableId=other)
    assert len(main_of(call, vpc_id)["Associations"]) == 1


def test_tables_and_subnets_of_different_vpcs_do_not_meet(call: Call, subnet_id: str, vpc_id: str) -> None:
    other = make(call, ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"])
    error = refusal(call, "AssociateRouteTable", RouteTableId=other, SubnetId=subnet_id)
    assert "belong to different networks" in error.message
    association = main_of(call, vpc_id)["Associations"][0]["RouteTableAssociationId"]
    error = refusal(call, "ReplaceRouteTableAssociation", AssociationId=association, RouteTableId=other)
    assert "belong to different networks" in error.message


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({}, "MissingParameter", "destinationCidrBlock"),
        ({"DestinationCidrBlock": "0.0.0.0/0"}, "MissingParameter", "target"),
        ({"DestinationCidrBlock": "0.0.0.0"}, "InvalidParameterValue", "0.0.0.0"),
        ({"DestinationCidrBlock": "10.0.0.0/16", "GatewayId": "igw-1"}, "RouteAlreadyExists", "10.0.0.0/16"),
        ({"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-1"}, "InvalidGatewayID.NotFound", "igw-1"),
        (
            {"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": "nat-1"},
            "InvalidNatGatewayID.NotFound",
            "nat-1",
        ),
        (
            {"DestinationCidrBlock": "0.0.0.0/0", "NetworkInterfaceId": "eni-1"},
            "InvalidNetworkInterfaceID.NotFound",
            "eni-1",
        ),
        ({"DestinationCidrBlock": "0.0.0.0/0", "InstanceId": "i-1"}, "InvalidInstanceID.NotFound", "i-1"),
        (
            {"DestinationCidrBlock": "0.0.0.0/0", "VpcPeeringConnectionId": "pcx-1"},
            "InvalidVpcPeeringConnectionID.NotFound",
            "pcx-1",
        ),
        (
            {"DestinationCidrBlock": "0.0.0.0/0", "VpcEndpointId": "vpce-1"},
            "InvalidVpcEndpointId.NotFound",
            "vpce-1",
        ),
        (
            {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-1", "NatGatewayId": "nat-1"},
            "InvalidParameterCombination",
            "NatGatewayId",
        ),
        ({"DestinationIpv6CidrBlock": "::/0", "GatewayId": "igw-1"}, "UnsupportedOperation", "Ipv6"),
        (
            {"DestinationCidrBlock": "0.0.0.0/0", "CoreNetworkArn": "a"},
            "UnsupportedOperation",
            "CoreNetworkArn",
        ),
        ({"DestinationPrefixListId": "pl-1", "GatewayId": "igw-1"}, "InvalidPrefixListID.NotFound", "pl-1"),
    ],
)
def test_a_bad_route_is_refused_naming_the_value(
    call: Call, vpc_id: str, params: dict, code: str, named: str
) -> None:
    error = refusal(call, "CreateRoute", RouteTableId=make(call, vpc_id), **params)
    assert error.code == code
    assert named in error.message


def test_an_interface_is_a_target_while_something_is_attached_to_it(
    call: Call, vpc_id: str, subnet_id: str
) -> None:
    table_id = make(call, vpc_id)
    eni = create_interface(call.tx, subnet_id=subnet_id, now=call.now).interface_id
    route: dict = {"RouteTableId": table_id, "DestinationCidrBlock": "0.0.0.0/0"}
    ec2(call, "CreateRoute", **route, NetworkInterfaceId=eni)
    shown = {"DestinationCidrBlock": "0.0.0.0/0", "NetworkInterfaceId": eni, "Origin": "CreateRoute"}
    assert described(call, table_id)["Routes"][1] == shown | {"State": "blackhole"}
    attach(call.tx, eni, now=call.now)
    assert described(call, table_id)["Routes"][1] == shown | {
        "InstanceOwnerId": ACCOUNT,
        "State": "active",
    }
    other = create_interface(call.tx, subnet_id=subnet_id, now=call.now, attach=("",)).interface_id
    ec2(call, "ReplaceRoute", **route, NetworkInterfaceId=other)
    assert described(call, table_id)["Routes"][1]["NetworkInterfaceId"] == other
    release(call.tx, other)
    assert described(call, table_id)["Routes"][1] == shown | {
        "NetworkInterfaceId": other,
        "State": "blackhole",
    }
    found = ec2(call, "DescribeRouteTables", Filters=[{"Name": "route.state", "Values": ["blackhole"]}])
    assert ids(found["RouteTables"], "RouteTableId") == [table_id]


def test_an_interface_of_another_vpc_is_no_target(call: Call, vpc_id: str) -> None:
    far = ec2(call, "CreateVpc", CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    far_subnet = ec2(call, "CreateSubnet", VpcId=far, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    eni = create_interface(call.tx, subnet_id=far_subnet, now=call.now).interface_id
    route: dict = {"RouteTableId": make(call, vpc_id), "DestinationCidrBlock": "0.0.0.0/0"}
    error = refusal(call, "CreateRoute", **route, NetworkInterfaceId=eni)
    assert error.code == "InvalidParameterValue"
    assert f"interface {eni} belong to different networks" in error.message


def test_a_route_within_the_vpc_is_for_a_whole_subnet_and_not_to_a_gateway(
    call: Call, vpc_id: str, subnet_id: str
) -> None:
    table_id = make(call, vpc_id)
    eni = create_interface(call.tx, subnet_id=subnet_id, now=call.now, attach=("",)).interface_id
    igw = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=igw, VpcId=vpc_id)
    for destination in ("10.0.0.0/25", "10.0.0.0/23", "10.0.1.0/24", "10.0.0.5/32"):
        route: dict = {"RouteTableId": table_id, "DestinationCidrBlock": destination}
        error = refusal(call, "CreateRoute", **route, NetworkInterfaceId=eni)
        assert (error.code, destination in error.message) == ("InvalidParameterValue", True)
    route = {"RouteTableId": table_id, "DestinationCidrBlock": "10.0.0.0/24"}
    assert refusal(call, "CreateRoute", **route, GatewayId=igw).code == "InvalidParameterValue"
    ec2(call, "CreateRoute", **route, NetworkInterfaceId=eni)
    assert refusal(call, "ReplaceRoute", **route, GatewayId=igw).code == "InvalidParameterValue"
    assert refusal(call, "ReplaceRoute", **route, LocalTarget=True).code == "InvalidParameterValue"
    ec2(call, "DeleteRoute", **route)
    assert len(described(call, table_id)["Routes"]) == 1


def test_a_local_route_gets_another_target_and_its_own_back(call: Call, vpc_id: str, subnet_id: str) -> None:
    route: dict = {"RouteTableId": make(call, vpc_id), "DestinationCidrBlock": "10.0.0.0/16"}
    eni = create_interface(call.tx, subnet_id=subnet_id, now=call.now, attach=("",)).interface_id
    igw = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=igw, VpcId=vpc_id)
    assert refusal(call, "DeleteRoute", **route).code == "InvalidParameterValue"
    assert refusal(call, "ReplaceRoute", **route, GatewayId=igw).code == "InvalidParameterValue"
    local = described(call, route["RouteTableId"])["Routes"]
    ec2(call, "ReplaceRoute", **route, LocalTarget=True)
    assert described(call, route["RouteTableId"])["Routes"] == local
    both = refusal(call, "ReplaceRoute", **route, LocalTarget=True, NetworkInterfaceId=eni)
    assert both.code == "InvalidParameterCombination"
    for _ in range(2):
        ec2(call, "ReplaceRoute", **route, NetworkInterfaceId=eni)
        (replaced,) = described(call, route["RouteTableId"])["Routes"]
        assert (replaced["NetworkInterfaceId"], replaced["Origin"]) == (eni, "CreateRouteTable")
    assert refusal(call, "CreateRoute", **route, NetworkInterfaceId=eni).code == "RouteAlreadyExists"
    assert refusal(call, "DeleteRoute", **route).code == "InvalidParameterValue"
    ec2(call, "ReplaceRoute", **route, LocalTarget=True)
    assert described(call, route["RouteTableId"])["Routes"] == local
    missing = refusal(
        call, "DeleteRoute", RouteTableId=route["RouteTableId"], DestinationCidrBlock="1.0.0.0/8"
    )
    assert missing.code == "InvalidRoute.NotFound"


def test_the_replaced_target_of_a_further_block_goes_with_the_block(
    call: Call, vpc_id: str, subnet_id: str
) -> None:
    table_id = make(call, vpc_id)
    eni = create_interface(call.tx, subnet_id=subnet_id, now=call.now, attach=("",)).interface_id
    for target in (eni, None):
        made = ec2(call, "AssociateVpcCidrBlock", VpcId=vpc_id, CidrBlock="10.1.0.0/16")
        route: dict = {"RouteTableId": table_id, "DestinationCidrBlock": "10.1.0.0/16"}
        if target is not None:
            ec2(call, "ReplaceRoute", **route, NetworkInterfaceId=eni)
        assert described(call, table_id)["Routes"][1].get("NetworkInterfaceId") == target
        association = made["CidrBlockAssociation"]["AssociationId"]
        ec2(call, "DisassociateVpcCidrBlock", AssociationId=association)


def test_the_route_of_a_gateway_endpoint_comes_and_goes_by_itself(call: Call, vpc_id: str) -> None:
    table_id = make(call, vpc_id)
    endpoint = ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=S3, RouteTableIds=[table_id])
    endpoint_id = endpoint["VpcEndpoint"]["VpcEndpointId"]
    assert described(call, table_id)["Routes"][1] == {
        "DestinationPrefixListId": S3_LIST,
        "GatewayId": endpoint_id,
        "Origin": "CreateRoute",
        "State": "active",
    }
    route: dict = {"RouteTableId": table_id, "DestinationPrefixListId": S3_LIST}
    assert refusal(call, "CreateRoute", **route, GatewayId=endpoint_id).code == "RouteAlreadyExists"
    assert endpoint_id in refusal(call, "DeleteRoute", **route).message
    assert endpoint_id in refusal(call, "ReplaceRoute", **route, GatewayId="igw-1").message
    error = refusal(
        call, "CreateRoute", RouteTableId=table_id, DestinationCidrBlock="1.0.0.0/8", GatewayId=endpoint_id
    )
    assert "ModifyVpcEndpoint" in error.message
    ec2(call, "DeleteVpcEndpoints", VpcEndpointIds=[endpoint_id])
    assert len(described(call, table_id)["Routes"]) == 1


def test_an_endpoint_forgets_a_deleted_table(call: Call, vpc_id: str) -> None:
    table_id = make(call, vpc_id)
    ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=S3, RouteTableIds=[table_id])
    ec2(call, "DeleteRouteTable", RouteTableId=table_id)
    (endpoint,) = ec2(call, "DescribeVpcEndpoints")["VpcEndpoints"]
    assert endpoint["RouteTableIds"] == []


def test_tables_are_filtered_by_every_documented_name(call: Call, vpc_id: str, subnet_id: str) -> None:
    table_id = make(call, vpc_id)
    association = ec2(call, "AssociateRouteTable", RouteTableId=table_id, SubnetId=subnet_id)["AssociationId"]
    ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=S3, RouteTableIds=[table_id])
    for name, value, expected in [
        ("association.route-table-association-id", association, 1),
        ("association.route-table-id", table_id, 1),
        ("association.subnet-id", subnet_id, 1),
        ("association.main", "true", 1),
        ("association.main", "false", 1),
        ("owner-id", ACCOUNT, 2),
        ("route-table-id", "rtb-*", 2),
        ("route.destination-cidr-block", "10.0.0.0/16", 2),
        ("route.destination-prefix-list-id", S3_LIST, 1),
        ("route.gateway-id", "vpce-*", 1),
        ("route.gateway-id", "local", 2),
        ("route.nat-gateway-id", "*", 0),
        ("route.origin", "CreateRoute", 1),
        ("route.state", "active", 2),
        ("route.state", "blackhole", 0),
        ("vpc-id", vpc_id, 2),
    ]:
        found = ec2(call, "DescribeRouteTables", Filters=[{"Name": name, "Values": [value]}])
        assert len(found["RouteTables"]) == expected, (name, value)
