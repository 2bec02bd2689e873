from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.vpc.interfaces import create_interface


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


def make(call: Call, vpc_id: str, cidr: str, **params: object) -> dict:
    subnet: dict = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock=cidr, **params)["Subnet"]
    return subnet


def test_a_subnet_is_described_as_it_was_made(call: Call, vpc_id: str) -> None:
    tags = [{"ResourceType": "subnet", "Tags": [{"Key": "Name", "Value": "a"}]}]
    made = make(call, vpc_id, "10.0.1.0/24", AvailabilityZone="us-east-1b", TagSpecifications=tags)
    assert made["AvailabilityZoneId"] == "use1-az2"
    assert made["SubnetArn"] == f"arn:aws:ec2:us-east-1:{ACCOUNT}:subnet/{made['SubnetId']}"
    assert made["Tags"] == [{"Key": "Name", "Value": "a"}]
    assert ec2(call, "DescribeSubnets", SubnetIds=[made["SubnetId"]])["Subnets"] == [made]


def test_a_slash_28_leaves_eleven_addresses_and_each_interface_takes_its_own(call: Call, vpc_id: str) -> None:
    subnet_id = make(call, vpc_id, "10.0.1.0/28")["SubnetId"]
    for taken, free in [(0, 11), (2, 9), (1, 8)]:
        if taken:
            create_interface(call.tx, subnet_id=subnet_id, now=call.now, count=taken)
        (subnet,) = ec2(call, "DescribeSubnets", SubnetIds=[subnet_id])["Subnets"]
        assert subnet["AvailableIpAddressCount"] == free


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({}, "MissingParameter", "CidrBlock"),
        ({"CidrBlock": "10.0.0.0/15"}, "InvalidSubnet.Range", "10.0.0.0/15"),
        ({"CidrBlock": "10.0.0.0/29"}, "InvalidSubnet.Range", "10.0.0.0/29"),
        ({"CidrBlock": "10.1.0.0/24"}, "InvalidSubnet.Range", "10.1.0.0/24"),
        ({"CidrBlock": "10.0.8.128/25"}, "InvalidSubnet.Conflict", "10.0.8.128/25"),
        ({"CidrBlock": "10.0.1"}, "InvalidParameterValue", "10.0.1"),
        (
            {"CidrBlock": "10.0.1.0/24", "AvailabilityZone": "us-east-1z"},
            "InvalidParameterValue",
            "us-east-1c",
        ),
        ({"CidrBlock": "10.0.1.0/24", "AvailabilityZoneId": "use1-az9"}, "InvalidParameterValue", "use1-az9"),
        (
            {"CidrBlock": "10.0.1.0/24", "Ipv6CidrBlock": "2001:db8::/64"},
            "UnsupportedOperation",
            "Ipv6CidrBlock",
        ),
        ({"CidrBlock": "10.0.1.0/24", "OutpostArn": "arn:x"}, "UnsupportedOperation", "OutpostArn"),
        ({"CidrBlock": "10.0.1.0/24", "VpcId": "vpc-1"}, "InvalidVpcID.NotFound", "vpc-1"),
    ],
)
def test_a_bad_subnet_is_refused_naming_the_value(
    call: Call, vpc_id: str, params: dict, code: str, named: str
) -> None:
    make(call, vpc_id, "10.0.8.0/24")
    error = refusal(call, "CreateSubnet", **{"VpcId": vpc_id, **params})
    assert error.code == code
    assert named in error.message


def test_subnets_are_filtered_by_every_documented_name(call: Call, vpc_id: str) -> None:
    one = make(call, vpc_id, "10.0.1.0/24", AvailabilityZoneId="use1-az3")
    make(call, vpc_id, "10.0.2.0/25")
    for name, value, expected in [
        ("availability-zone", "us-east-1c", 1),
        ("availabilityZone", "us-east-1a", 1),
        ("availability-zone-id", "use1-az3", 1),
        ("available-ip-address-count", "251", 1),
        ("cidr-block", "10.0.2.0/25", 1),
        ("cidr", "10.0.*", 2),
        ("default-for-az", "true", 0),
        ("map-public-ip-on-launch", "false", 2),
        ("state", "available", 2),
        ("subnet-arn", one["SubnetArn"], 1),
        ("subnet-id", one["SubnetId"], 1),
        ("vpc-id", vpc_id, 2),
        ("outpost-arn", "*", 0),
    ]:
        found = ec2(call, "DescribeSubnets", Filters=[{"Name": name, "Values": [value]}])["Subnets"]
        assert len(found) == expected, name


def test_a_subnet_with_an_interface_is_kept(call: Call, vpc_id: str) -> None:
    subnet_id = make(call, vpc_id, "10.0.1.0/24")["SubnetId"]
    interface = create_interface(call.tx, subnet_id=subnet_id, now=call.now)
    error = refusal(call, "DeleteSubnet", SubnetId=subnet_id)
    assert error.code == "DependencyViolation"
    ec2(call, "DeleteNetworkInterface", NetworkInterfaceId=interface.interface_id)
    ec2(call, "DeleteSubnet", SubnetId=subnet_id)
    assert refusal(call, "DeleteSubnet", SubnetId=subnet_id).code == "InvalidSubnetID.NotFound"


def test_a_deleted_subnet_leaves_no_association_behind(call: Call, vpc_id: str) -> None:
    subnet_id = make(call, vpc_id, "10.0.1.0/24")["SubnetId"]
    table_id = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    ec2(call, "AssociateRouteTable", RouteTableId=table_id, SubnetId=subnet_id)
    ec2(call, "DeleteSubnet", SubnetId=subnet_id)
    (table,) = ec2(call, "DescribeRouteTables", RouteTableIds=[table_id])["RouteTables"]
    assert table["Associations"] == []


def test_public_addresses_on_launch_can_be_switched_and_ipv6_cannot(call: Call, vpc_id: str) -> None:
    subnet_id = make(call, vpc_id, "10.0.1.0/24")["SubnetId"]
    ec2(call, "ModifySubnetAttribute", SubnetId=subnet_id, MapPublicIpOnLaunch={"Value": True})
    public = filters(map_public_ip_on_launch="true")
    assert ids(ec2(call, "DescribeSubnets", Filters=public)["Subnets"], "SubnetId") == [subnet_id]
    ec2(call, "ModifySubnetAttribute", SubnetId=subnet_id, AssignIpv6AddressOnCreation={"Value": False})
    error = refusal(call, "ModifySubnetAttribute", SubnetId=subnet_id, EnableDns64={"Value": True})
    assert (error.code, "EnableDns64" in error.message) == ("UnsupportedOperation", True)
