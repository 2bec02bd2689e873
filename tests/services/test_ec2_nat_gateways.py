from __future__ import annotations

import pytest
from tests.services.calls import make_call
from tests.services.ec2 import ec2, ids, refusal

from cloister.services.api import Call
from cloister.services.ec2.nat_gateways import LISTED_SECONDS
from cloister.vpc.model import NatGateway
from cloister.world import World


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


@pytest.fixture
def subnet_id(call: Call, vpc_id: str) -> str:
    made: str = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/28")["Subnet"]["SubnetId"]
    return made


@pytest.fixture
def elastic(call: Call) -> dict:
    made: dict = ec2(call, "AllocateAddress")
    return made


def attach_gateway(call: Call, vpc_id: str) -> str:
    gateway_id: str = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway_id, VpcId=vpc_id)
    return gateway_id


def described(call: Call, nat_gateway_id: str) -> dict:
    (found,) = ec2(call, "DescribeNatGateways", NatGatewayIds=[nat_gateway_id])["NatGateways"]
    nat: dict = found
    return nat


def test_a_public_gateway_has_an_elastic_ip_and_an_interface_that_only_it_manages(
    call: Call, vpc_id: str, subnet_id: str, elastic: dict
) -> None:
    gateway_id = attach_gateway(call, vpc_id)
    tags = [{"ResourceType": "natgateway", "Tags": [{"Key": "Name", "Value": "out"}]}]
    wanted: dict = {
        "SubnetId": subnet_id,
        "AllocationId": elastic["AllocationId"],
        "PrivateIpAddress": "10.0.0.9",
        "TagSpecifications": tags,
        "ClientToken": "once",
    }
    made = ec2(call, "CreateNatGateway", **wanted)
    nat = made["NatGateway"]
    assert (nat["State"], nat["ConnectivityType"], nat["VpcId"]) == ("pending", "public", vpc_id)
    assert ec2(call, "CreateNatGateway", **wanted)["NatGateway"]["NatGatewayId"] == nat["NatGatewayId"]
    (eni,) = ec2(call, "DescribeNetworkInterfaces")["NetworkInterfaces"]
    (address,) = nat["NatGatewayAddresses"]
    assert address == {
        "AllocationId": elastic["AllocationId"],
        "AssociationId": eni["Association"]["AssociationId"],
        "NetworkInterfaceId": eni["NetworkInterfaceId"],
        "PrivateIp": "10.0.0.9",
        "PublicIp": elastic["PublicIp"],
        "IsPrimary": True,
        "Status": "succeeded",
    }
    assert (eni["InterfaceType"], eni["RequesterManaged"], eni["Groups"]) == ("nat_gateway", True, [])
    assert eni["Description"] == f"Interface for NAT Gateway {nat['NatGatewayId']}"
    assert described(call, nat["NatGatewayId"]) == {**nat, "State": "available"}
    # nobody else takes what it needs
    for operation, params, code in [
        ("DeleteNetworkInterface", {"NetworkInterfaceId": eni["NetworkInterfaceId"]}, "InvalidNetworkInterf"),
        ("DisassociateAddress", {"AssociationId": address["AssociationId"]}, "AuthFailure"),
        ("ReleaseAddress", {"AllocationId": elastic["AllocationId"]}, "InvalidIPAddress.InUse"),
        ("DeleteSubnet", {"SubnetId": subnet_id}, "DependencyViolation"),
        ("DetachInternetGateway", {"InternetGatewayId": gateway_id, "VpcId": vpc_id}, "DependencyViolation"),
    ]:
        assert refusal(call, operation, **params).code.startswith(code), operation
    # deleted, it gives all of it back, and stays listed for an hour
    ec2(call, "DeleteNatGateway", NatGatewayId=nat["NatGatewayId"])
    ec2(call, "DeleteNatGateway", NatGatewayId=nat["NatGatewayId"])
    assert ec2(call, "DescribeNetworkInterfaces")["NetworkInterfaces"] == []
    ec2(call, "ReleaseAddress", AllocationId=elastic["AllocationId"])
    gone = described(call, nat["NatGatewayId"])
    assert (gone["State"], gone["DeleteTime"].timestamp()) == ("deleted", call.now)
    call.now += LISTED_SECONDS
    assert ec2(call, "DescribeNatGateways")["NatGateways"] == []
    ec2(call, "DeleteSubnet", SubnetId=subnet_id)


def test_a_private_gateway_needs_neither(call: Call, subnet_id: str) -> None:
    nat = ec2(call, "CreateNatGateway", SubnetId=subnet_id, ConnectivityType="private")["NatGateway"]
    assert nat["ConnectivityType"] == "private"
    assert "PublicIp" not in nat["NatGatewayAddresses"][0]


def test_a_gateway_is_pending_until_the_kernel_has_it(call: Call, subnet_id: str) -> None:
    held = World()
    call.deps["applied"] = lambda: held
    made = ec2(call, "CreateNatGateway", SubnetId=subnet_id, ConnectivityType="private")["NatGateway"]
    assert described(call, made["NatGatewayId"])["State"] == "pending"
    held = World.of(call.tx.all(NatGateway))
    assert described(call, made["NatGatewayId"])["State"] == "available"
    ec2(call, "DeleteNatGateway", NatGatewayId=made["NatGatewayId"])
    assert described(call, made["NatGatewayId"])["State"] == "deleting"
    held = call.tx
    assert described(call, made["NatGatewayId"])["State"] == "deleted"


def test_a_gateway_that_cannot_work_fails_and_says_why(
    call: Call, vpc_id: str, subnet_id: str, elastic: dict
) -> None:
    wanted: dict = {"SubnetId": subnet_id, "AllocationId": elastic["AllocationId"]}

    def failure() -> str:
        made = ec2(call, "CreateNatGateway", **wanted)["NatGateway"]
        shown = described(call, made["NatGatewayId"])
        assert (made["State"], shown["State"]) == ("failed", "failed")
        assert shown["FailureMessage"]
        code: str = shown["FailureCode"]
        return code

    assert failure() == "Gateway.NotAttached"
    attach_gateway(call, vpc_id)
    ec2(call, "CreateNatGateway", **wanted)
    assert failure() == "Resource.AlreadyAssociated"
    for _ in range(10):
        ec2(call, "CreateNetworkInterface", SubnetId=subnet_id)
    wanted["AllocationId"] = ec2(call, "AllocateAddress")["AllocationId"]
    assert failure() == "InsufficientFreeAddressesInSubnet"
    # what failed keeps nothing
    ec2(call, "ReleaseAddress", AllocationId=wanted["AllocationId"])


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "MissingParameter"),
        ({"SubnetId": "SUBNET"}, "MissingParameter"),
        ({"SubnetId": "subnet-1"}, "InvalidSubnetID.NotFound"),
        ({"SubnetId": "SUBNET", "AllocationId": "eipalloc-1"}, "InvalidAllocationID.NotFound"),
        (
            {"SubnetId": "SUBNET", "ConnectivityType": "private", "AllocationId": "eipalloc-1"},
            "InvalidParameterCombination",
        ),
        (
            {"SubnetId": "SUBNET", "ConnectivityType": "private", "PrivateIpAddress": "10.9.0.1"},
            "InvalidParameterValue",
        ),
        ({"SubnetId": "SUBNET", "AvailabilityMode": "regional"}, "UnsupportedOperation"),
        ({"SubnetId": "SUBNET", "SecondaryPrivateIpAddressCount": 1}, "UnsupportedOperation"),
    ],
)
def test_a_bad_gateway_is_refused(call: Call, subnet_id: str, params: dict, code: str) -> None:
    named = {name: subnet_id if value == "SUBNET" else value for name, value in params.items()}
    assert refusal(call, "CreateNatGateway", **named).code == code


def test_gateways_are_filtered_by_every_documented_name(call: Call, vpc_id: str, subnet_id: str) -> None:
    one, other = (
        ec2(call, "CreateNatGateway", SubnetId=subnet_id, ConnectivityType="private")["NatGateway"]
        for _ in range(2)
    )
    ec2(call, "DeleteNatGateway", NatGatewayId=other["NatGatewayId"])
    ec2(call, "CreateTags", Resources=[one["NatGatewayId"]], Tags=[{"Key": "k", "Value": "v"}])
    for name, value, count in [
        ("nat-gateway-id", one["NatGatewayId"], 1),
        ("state", "available", 1),
        ("state", "deleted", 1),
        ("subnet-id", subnet_id, 2),
        ("vpc-id", vpc_id, 2),
        ("tag:k", "v", 1),
    ]:
        found = ec2(call, "DescribeNatGateways", Filter=[{"Name": name, "Values": [value]}])["NatGateways"]
        assert len(found) == count, name
    assert refusal(call, "DescribeNatGateways", NatGatewayIds=["nat-1"]).code == "NatGatewayNotFound"
    assert refusal(call, "DeleteNatGateway", NatGatewayId="nat-1").code == "NatGatewayNotFound"
    for _ in range(6):
        ec2(call, "CreateNatGateway", SubnetId=subnet_id, ConnectivityType="private")
    first = ec2(call, "DescribeNatGateways", MaxResults=5)
    second = ec2(call, "DescribeNatGateways", MaxResults=5, NextToken=first["NextToken"])
    assert len({*ids(first["NatGateways"], "NatGatewayId"), *ids(second["NatGateways"], "NatGatewayId")}) == 8
