from __future__ import annotations

from dataclasses import replace

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.vpc.interfaces import create_interface


@pytest.fixture
def call() -> Call:
    return make_call()


def made(call: Call, **params: object) -> str:
    gateway_id: str = ec2(call, "CreateInternetGateway", **params)["InternetGateway"]["InternetGatewayId"]
    return gateway_id


def vpc(call: Call, cidr: str = "10.0.0.0/16") -> str:
    vpc_id: str = ec2(call, "CreateVpc", CidrBlock=cidr)["Vpc"]["VpcId"]
    return vpc_id


def test_a_gateway_is_made_attached_detached_and_deleted(call: Call) -> None:
    tags = [{"ResourceType": "internet-gateway", "Tags": [{"Key": "Name", "Value": "out"}]}]
    gateway_id, vpc_id = made(call, TagSpecifications=tags), vpc(call)
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway_id, VpcId=vpc_id)
    (shown,) = ec2(call, "DescribeInternetGateways")["InternetGateways"]
    assert shown == {
        "InternetGatewayId": gateway_id,
        "OwnerId": ACCOUNT,
        "Attachments": [{"VpcId": vpc_id, "State": "available"}],
        "Tags": [{"Key": "Name", "Value": "out"}],
    }
    assert refusal(call, "DeleteInternetGateway", InternetGatewayId=gateway_id).code == "DependencyViolation"
    assert refusal(call, "DeleteVpc", VpcId=vpc_id).code == "DependencyViolation"
    ec2(call, "DetachInternetGateway", InternetGatewayId=gateway_id, VpcId=vpc_id)
    assert ec2(call, "DescribeInternetGateways")["InternetGateways"][0]["Attachments"] == []
    ec2(call, "DeleteVpc", VpcId=vpc_id)
    ec2(call, "DeleteInternetGateway", InternetGatewayId=gateway_id)
    assert ec2(call, "DescribeInternetGateways")["InternetGateways"] == []


def test_one_gateway_for_one_vpc(call: Call) -> None:
    one, other, here, there = made(call), made(call), vpc(call), vpc(call, "10.1.0.0/16")
    ec2(call, "AttachInternetGateway", InternetGatewayId=one, VpcId=here)
    again = refusal(call, "AttachInternetGateway", InternetGatewayId=one, VpcId=there)
    assert (again.code, one in again.message, here in again.message) == (
        "Resource.AlreadyAssociated",
        True,
        True,
    )
    second = refusal(call, "AttachInternetGateway", InternetGatewayId=other, VpcId=here)
    assert second.message == f"Network {here} already has an internet gateway attached"
    for gateway_id, vpc_id in ((other, here), (one, there)):
        error = refusal(call, "DetachInternetGateway", InternetGatewayId=gateway_id, VpcId=vpc_id)
        assert error.code == "Gateway.NotAttached"


def test_a_gateway_stays_while_public_addresses_are_mapped(call: Call) -> None:
    gateway_id, vpc_id = made(call), vpc(call)
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway_id, VpcId=vpc_id)
    interface = create_interface(call.tx, subnet_id=subnet, now=call.now)
    held = (replace(interface.addresses[0], public_ip="198.51.100.7"),)
    call.tx.put(replace(interface, addresses=held))
    detach: dict = {"InternetGatewayId": gateway_id, "VpcId": vpc_id}
    error = refusal(call, "DetachInternetGateway", **detach)
    assert (error.code, "mapped public address" in error.message) == ("DependencyViolation", True)
    ec2(call, "DeleteNetworkInterface", NetworkInterfaceId=interface.interface_id)
    ec2(call, "DetachInternetGateway", **detach)


@pytest.mark.parametrize(
    ("operation", "params", "code"),
    [
        ("DeleteInternetGateway", {"InternetGatewayId": "igw-1"}, "InvalidInternetGatewayID.NotFound"),
        ("DeleteInternetGateway", {"InternetGatewayId": "x"}, "InvalidInternetGatewayId.Malformed"),
        ("AttachInternetGateway", {"InternetGatewayId": "IGW", "VpcId": "vpc-1"}, "InvalidVpcID.NotFound"),
        ("CreateInternetGateway", {"TagSpecifications": [{"ResourceType": "vpc"}]}, "InvalidParameterValue"),
    ],
)
def test_what_is_not_there_is_named(call: Call, operation: str, params: dict, code: str) -> None:
    gateway_id = made(call)
    params = {name: gateway_id if value == "IGW" else value for name, value in params.items()}
    assert refusal(call, operation, **params).code == code


def test_gateways_are_filtered_by_every_documented_name(call: Call) -> None:
    one, _, vpc_id = made(call), made(call), vpc(call)
    ec2(call, "AttachInternetGateway", InternetGatewayId=one, VpcId=vpc_id)
    ec2(call, "CreateTags", Resources=[one], Tags=[{"Key": "k", "Value": "v"}])
    for chosen, count in [
        ({"attachment.state": "available"}, 1),
        ({"attachment.vpc-id": vpc_id}, 1),
        ({"internet-gateway-id": "igw-*"}, 2),
        ({"owner-id": ACCOUNT}, 2),
        ({"tag:k": "v"}, 1),
    ]:
        ((name, value),) = chosen.items()
        found = ec2(call, "DescribeInternetGateways", Filters=[{"Name": name, "Values": [value]}])
        assert len(found["InternetGateways"]) == count, name
    kinds = ec2(call, "DescribeTags", Filters=filters(resource_type="internet-gateway"))["Tags"]
    assert ids(kinds, "ResourceId") == [one]
