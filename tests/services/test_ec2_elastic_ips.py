from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, ids, refusal

from cloister.services.api import Call
from cloister.services.ec2 import elastic_ips
from cloister.vpc.gateways import PUBLIC_POOL
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import NetworkInterface


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    """With an internet gateway."""
    vpc_id: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    gateway = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway, VpcId=vpc_id)
    return vpc_id


@pytest.fixture
def subnet_id(call: Call, vpc_id: str) -> str:
    made: str = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    return made


def interface(call: Call, subnet_id: str, count: int = 1) -> str:
    return create_interface(call.tx, subnet_id=subnet_id, count=count, now=call.now).interface_id


def allocate(call: Call) -> tuple[str, str]:
    made = ec2(call, "AllocateAddress")
    return made["AllocationId"], made["PublicIp"]


def carried(call: Call, interface_id: str) -> list[str | None]:
    found = call.tx.get(NetworkInterface, interface_id)
    assert found is not None
    return [held.public_ip for held in found.addresses]


def test_an_address_is_allocated_associated_shown_and_released(call: Call, subnet_id: str) -> None:
    tags = [{"ResourceType": "elastic-ip", "Tags": [{"Key": "Name", "Value": "out"}]}]
    made = ec2(call, "AllocateAddress", Domain="vpc", TagSpecifications=tags)
    assert IPv4Address(made["PublicIp"]) in PUBLIC_POOL
    allocation_id, eni = made["AllocationId"], interface(call, subnet_id)
    association = ec2(call, "AssociateAddress", AllocationId=allocation_id, NetworkInterfaceId=eni)
    private = call.tx.get(NetworkInterface, eni).addresses[0].address  # type: ignore[union-attr]
    (shown,) = ec2(call, "DescribeAddresses")["Addresses"]
    assert shown == {
        **made,
        **association,
        "NetworkInterfaceId": eni,
        "NetworkInterfaceOwnerId": ACCOUNT,
        "PrivateIpAddress": private,
        "Tags": [{"Key": "Name", "Value": "out"}],
    }
    (described,) = ec2(call, "DescribeNetworkInterfaces")["NetworkInterfaces"]
    assert described["Association"] == {
        "PublicIp": made["PublicIp"],
        "PublicDnsName": "",
        "IpOwnerId": ACCOUNT,
        "AllocationId": allocation_id,
        **association,
    }
    assert described["PrivateIpAddresses"][0]["Association"] == described["Association"]
    assert refusal(call, "ReleaseAddress", AllocationId=allocation_id).code == "InvalidIPAddress.InUse"
    ec2(call, "DisassociateAddress", **association)
    assert carried(call, eni) == [None]
    ec2(call, "ReleaseAddress", AllocationId=allocation_id)
    assert ec2(call, "DescribeAddresses")["Addresses"] == []
    # a released one can be had again, by name
    assert ec2(call, "AllocateAddress", Address=made["PublicIp"])["PublicIp"] == made["PublicIp"]
    assert refusal(call, "AllocateAddress", Address=made["PublicIp"]).code == "InvalidAddress.NotFound"
    assert refusal(call, "AllocateAddress", Address="8.8.8.8").code == "InvalidAddress.NotFound"


def test_an_address_moves_unless_told_not_to(call: Call, subnet_id: str) -> None:
    (one, first), (other, second) = allocate(call), allocate(call)
    here, there = interface(call, subnet_id, 2), interface(call, subnet_id)
    ec2(call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=here)
    same = ec2(call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=here, AllowReassociation=False)
    refused = refusal(
        call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=there, AllowReassociation=False
    )
    assert (refused.code, same["AssociationId"] in refused.message) == ("Resource.AlreadyAssociated", True)
    taken = refusal(
        call, "AssociateAddress", AllocationId=other, NetworkInterfaceId=here, AllowReassociation=False
    )
    assert (taken.code, first in taken.message) == ("Resource.AlreadyAssociated", True)
    ec2(call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=there)
    assert (carried(call, here), carried(call, there)) == ([None, None], [first])
    secondary = call.tx.get(NetworkInterface, here).addresses[1].address  # type: ignore[union-attr]
    ec2(
        call,
        "AssociateAddress",
        PublicIp=second,
        NetworkInterfaceId=here,
        PrivateIpAddress=secondary,
    )
    assert carried(call, here) == [None, second]
    # an address that replaces another one frees it
    ec2(call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=here, PrivateIpAddress=secondary)
    assert (carried(call, here), carried(call, there)) == ([None, first], [None])
    ec2(call, "ReleaseAddress", AllocationId=other)


def test_an_interface_or_a_private_address_that_goes_gives_the_public_one_back(
    call: Call, subnet_id: str
) -> None:
    (one, _), (other, _) = allocate(call), allocate(call)
    here, there = interface(call, subnet_id, 2), interface(call, subnet_id)
    secondary = call.tx.get(NetworkInterface, here).addresses[1].address  # type: ignore[union-attr]
    ec2(call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=here, PrivateIpAddress=secondary)
    ec2(call, "AssociateAddress", AllocationId=other, NetworkInterfaceId=there)
    ec2(call, "UnassignPrivateIpAddresses", NetworkInterfaceId=here, PrivateIpAddresses=[secondary])
    ec2(call, "DeleteNetworkInterface", NetworkInterfaceId=there)
    assert all("AssociationId" not in each for each in ec2(call, "DescribeAddresses")["Addresses"])
    for each in (one, other):
        ec2(call, "ReleaseAddress", AllocationId=each)


def test_there_is_an_end_to_addresses(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_ips, "ADDRESSES_PER_ACCOUNT", 300)
    found = {allocate(call)[1] for _ in range(254)}
    assert len(found) == 254
    assert refusal(call, "AllocateAddress").code == "InsufficientAddressCapacity"
    monkeypatch.undo()
    assert refusal(call, "AllocateAddress").code == "AddressLimitExceeded"


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"NetworkInterfaceId": "ENI"}, "MissingParameter", "AllocationId"),
        ({"AllocationId": "EIP"}, "MissingParameter", "NetworkInterfaceId"),
        ({"AllocationId": "eipalloc-1"}, "InvalidAllocationID.NotFound", "eipalloc-1"),
        ({"PublicIp": "198.51.100.255"}, "InvalidAddress.NotFound", "198.51.100.255"),
        ({"PublicIp": "x"}, "InvalidAddress.Malformed", "'x'"),
        ({"AllocationId": "EIP", "PublicIp": "1.1.1.1"}, "InvalidParameterCombination", "PublicIp"),
        ({"AllocationId": "EIP", "InstanceId": "i-1"}, "InvalidInstanceID.NotFound", "i-1"),
        (
            {"AllocationId": "EIP", "NetworkInterfaceId": "eni-1"},
            "InvalidNetworkInterfaceID.NotFound",
            "eni-1",
        ),
        (
            {"AllocationId": "EIP", "NetworkInterfaceId": "ENI", "PrivateIpAddress": "10.0.0.3"},
            "InvalidParameterValue",
            "10.0.0.3",
        ),
        ({"AllocationId": "EIP", "NetworkInterfaceId": "MANAGED"}, "OperationNotPermitted", "managed"),
        ({"AllocationId": "EIP", "NetworkInterfaceId": "INNER"}, "Gateway.NotAttached", "vpc-"),
    ],
)
def test_a_bad_association_is_refused_naming_the_value(
    call: Call, subnet_id: str, params: dict, code: str, named: str
) -> None:
    inner = ec2(call, "CreateVpc", CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    inner_subnet = ec2(call, "CreateSubnet", VpcId=inner, CidrBlock="10.1.0.0/24")["Subnet"]["SubnetId"]
    managed = create_interface(
        call.tx, subnet_id=subnet_id, now=0, requester_managed=True, requester_id="amazon-sagemaker"
    )
    known = {
        "EIP": allocate(call)[0],
        "ENI": interface(call, subnet_id),
        "MANAGED": managed.interface_id,
        "INNER": interface(call, inner_subnet),
    }
    error = refusal(call, "AssociateAddress", **{k: known.get(v, v) for k, v in params.items()})
    assert (error.code, named in error.message) == (code, True)


def test_what_cannot_be_released_or_disassociated_is_named(call: Call) -> None:
    allocation_id, public_ip = allocate(call)
    assert refusal(call, "DisassociateAddress", AssociationId="eipassoc-1").code == (
        "InvalidAssociationID.NotFound"
    )
    ec2(call, "DisassociateAddress", PublicIp=public_ip)
    assert "allocation id" in refusal(call, "ReleaseAddress", PublicIp=public_ip).message
    assert refusal(call, "ReleaseAddress").code == "MissingParameter"
    ec2(call, "ReleaseAddress", AllocationId=allocation_id)
    assert refusal(call, "ReleaseAddress", AllocationId=allocation_id).code == "InvalidAllocationID.NotFound"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"Domain": "standard"}, "InvalidParameterValue"),
        ({"PublicIpv4Pool": "ipv4pool-ec2-1"}, "InvalidPublicIpv4PoolID.NotFound"),
        ({"NetworkBorderGroup": "us-west-2"}, "InvalidParameterValue"),
        ({"IpamPoolId": "ipam-pool-1"}, "UnsupportedOperation"),
        ({"TagSpecifications": [{"ResourceType": "vpc"}]}, "InvalidParameterValue"),
    ],
)
def test_a_bad_allocation_is_refused(call: Call, params: dict, code: str) -> None:
    assert refusal(call, "AllocateAddress", **params).code == code


def test_addresses_are_filtered_by_every_documented_name(call: Call, subnet_id: str) -> None:
    (one, first), (_, second) = allocate(call), allocate(call)
    eni = interface(call, subnet_id)
    association = ec2(call, "AssociateAddress", AllocationId=one, NetworkInterfaceId=eni)["AssociationId"]
    for name, value, count in [
        ("allocation-id", one, 1),
        ("association-id", association, 1),
        ("domain", "vpc", 2),
        ("instance-id", "*", 0),
        ("network-border-group", "us-east-1", 2),
        ("network-interface-id", eni, 1),
        ("network-interface-owner-id", ACCOUNT, 1),
        ("private-ip-address", "10.0.0.*", 1),
        ("public-ip", first, 1),
        ("public-ip", "198.51.100.*", 2),
    ]:
        found = ec2(call, "DescribeAddresses", Filters=[{"Name": name, "Values": [value]}])["Addresses"]
        assert len(found) == count, name
    chosen = ec2(call, "DescribeAddresses", PublicIps=[second, first])["Addresses"]
    assert ids(chosen, "PublicIp") == [second, first]
    assert refusal(call, "DescribeAddresses", PublicIps=["198.51.100.0"]).code == "InvalidAddress.NotFound"
    assert refusal(call, "DescribeAddresses", AllocationIds=["eipalloc-1"]).code == (
        "InvalidAllocationID.NotFound"
    )
    for name, value in [
        ("association.public-ip", first),
        ("association.allocation-id", one),
        ("association.association-id", association),
        ("addresses.association.owner-id", ACCOUNT),
    ]:
        chosen_by = [{"Name": name, "Values": [value]}]
        found = ec2(call, "DescribeNetworkInterfaces", Filters=chosen_by)["NetworkInterfaces"]
        assert ids(found, "NetworkInterfaceId") == [eni], name
    attributes = ec2(call, "DescribeAddressesAttribute", Attribute="domain-name")["Addresses"]
    assert {each["PublicIp"] for each in attributes} == {first, second}
