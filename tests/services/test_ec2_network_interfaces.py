from __future__ import annotations

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, ids, refusal

from cloister.services.api import Call
from cloister.vpc.interfaces import AGENT, CONTAINER, create_interface


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


def make(call: Call, subnet_id: str, **params: object) -> dict:
    made: dict = ec2(call, "CreateNetworkInterface", SubnetId=subnet_id, **params)["NetworkInterface"]
    return made


def described(call: Call, interface_id: str) -> dict:
    (found,) = ec2(call, "DescribeNetworkInterfaces", NetworkInterfaceIds=[interface_id])["NetworkInterfaces"]
    interface: dict = found
    return interface


def of_a_job(call: Call, subnet_id: str) -> str:
    return create_interface(
        call.tx,
        subnet_id=subnet_id,
        now=call.now,
        attach=(CONTAINER, AGENT),
        description="a job",
        requester_managed=True,
        requester_id="sagemaker",
    ).interface_id


def test_an_interface_is_described_as_it_was_made(call: Call, vpc_id: str, subnet_id: str) -> None:
    tags = [{"ResourceType": "network-interface", "Tags": [{"Key": "Name", "Value": "x"}]}]
    made = make(call, subnet_id, Description="mine", PrivateIpAddress="10.0.0.9", TagSpecifications=tags)
    assert made["PrivateIpAddresses"] == [{"PrivateIpAddress": "10.0.0.9", "Primary": True}]
    assert (made["Status"], made["RequesterManaged"], made["VpcId"]) == ("available", False, vpc_id)
    assert made["TagSet"] == [{"Key": "Name", "Value": "x"}]
    assert ids(made["Groups"], "GroupName") == ["default"]
    assert "Attachment" not in made
    assert described(call, made["NetworkInterfaceId"]) == made


def test_private_names_appear_with_dns_hostnames(call: Call, vpc_id: str, subnet_id: str) -> None:
    interface_id = make(call, subnet_id, PrivateIpAddress="10.0.0.9")["NetworkInterfaceId"]
    assert "PrivateDnsName" not in described(call, interface_id)
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsHostnames={"Value": True})
    assert described(call, interface_id)["PrivateDnsName"] == "ip-10-0-0-9.ec2.internal"


def test_further_addresses_are_listed_or_counted(call: Call, subnet_id: str) -> None:
    listed = make(
        call,
        subnet_id,
        PrivateIpAddresses=[
            {"PrivateIpAddress": "10.0.0.20"},
            {"PrivateIpAddress": "10.0.0.21", "Primary": True},
        ],
    )
    assert listed["PrivateIpAddress"] == "10.0.0.21"
    assert len(make(call, subnet_id, SecondaryPrivateIpAddressCount=3)["PrivateIpAddresses"]) == 4
    (subnet,) = ec2(call, "DescribeSubnets", SubnetIds=[subnet_id])["Subnets"]
    assert subnet["AvailableIpAddressCount"] == 251 - 6


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"SubnetId": "subnet-1"}, "InvalidSubnetID.NotFound", "subnet-1"),
        ({"Groups": ["sg-1"]}, "InvalidGroup.NotFound", "sg-1"),
        ({"PrivateIpAddress": "10.0.0.3"}, "InvalidParameterValue", "10.0.0.3"),
        ({"PrivateIpAddress": "10.9.0.3"}, "InvalidParameterValue", "10.9.0.3"),
        ({"PrivateIpAddress": "ten"}, "InvalidParameterValue", "ten"),
        ({"PrivateIpAddress": "10.0.0.50"}, "InvalidIPAddress.InUse", "10.0.0.50"),
        ({"SecondaryPrivateIpAddressCount": 300}, "InsufficientFreeAddressesInSubnet", "enough"),
        ({"Ipv6AddressCount": 1}, "UnsupportedOperation", "Ipv6AddressCount"),
        ({"InterfaceType": "efa"}, "UnsupportedOperation", "InterfaceType"),
        (
            {"PrivateIpAddress": "10.0.0.8", "PrivateIpAddresses": [{"PrivateIpAddress": "10.0.0.9"}]},
            "InvalidParameterCombination",
            "PrivateIpAddresses",
        ),
        (
            {
                "PrivateIpAddresses": [
                    {"PrivateIpAddress": "10.0.0.8", "Primary": True},
                    {"PrivateIpAddress": "10.0.0.9", "Primary": True},
                ]
            },
            "InvalidParameterValue",
            "primary",
        ),
    ],
)
def test_a_bad_interface_is_refused_naming_the_value(
    call: Call, subnet_id: str, params: dict, code: str, named: str
) -> None:
    make(call, subnet_id, PrivateIpAddress="10.0.0.50")
    error = refusal(call, "CreateNetworkInterface", **{"SubnetId": subnet_id, **params})
    assert error.code == code
    assert named in error.message


def test_a_jobs_interface_shows_its_attachment_and_cannot_be_managed(call: Call, subnet_id: str) -> None:
    interface_id = of_a_job(call, subnet_id)
    found = described(call, interface_id)
    assert (found["Status"], found["RequesterManaged"], found["RequesterId"]) == ("in-use", True, "sagemaker")
    assert (found["Attachment"]["Status"], found["Attachment"]["InstanceOwnerId"]) == (
        "attached",
        "amazon-aws",
    )
    assert len(found["PrivateIpAddresses"]) == 2
    one: dict = {"NetworkInterfaceId": interface_id}
    assert refusal(call, "DeleteNetworkInterface", **one).code == "InvalidNetworkInterface.InUse"
    for operation, params in [
        ("ModifyNetworkInterfaceAttribute", {"Description": {"Value": "x"}}),
        ("ModifyNetworkInterfaceAttribute", {"SourceDestCheck": {"Value": False}}),
        ("AssignPrivateIpAddresses", {"SecondaryPrivateIpAddressCount": 1}),
        ("UnassignPrivateIpAddresses", {"PrivateIpAddresses": [found["PrivateIpAddress"]]}),
    ]:
        error = refusal(call, operation, **one, **params)
        assert (error.code, interface_id in error.message) == ("OperationNotPermitted", True)


def test_attributes_are_changed_one_at_a_time_and_described(call: Call, vpc_id: str, subnet_id: str) -> None:
    interface_id = make(call, subnet_id)["NetworkInterfaceId"]
    group_id = ec2(call, "CreateSecurityGroup", VpcId=vpc_id, GroupName="a", Description="a")["GroupId"]
    one: dict = {"NetworkInterfaceId": interface_id}
    ec2(call, "ModifyNetworkInterfaceAttribute", **one, Groups=[group_id])
    ec2(call, "ModifyNetworkInterfaceAttribute", **one, Description={"Value": "new"})
    ec2(call, "ModifyNetworkInterfaceAttribute", **one, SourceDestCheck={"Value": True})
    for attribute, expected in [
        ("description", {"Description": {"Value": "new"}}),
        ("groupSet", {"Groups": [{"GroupId": group_id, "GroupName": "a"}]}),
        ("sourceDestCheck", {"SourceDestCheck": {"Value": True}}),
        ("attachment", {}),
        ("associatePublicIpAddress", {"AssociatePublicIpAddress": False}),
    ]:
        assert ec2(call, "DescribeNetworkInterfaceAttribute", **one, Attribute=attribute) == one | expected
    assert refusal(call, "DescribeNetworkInterfaceAttribute", **one).code == "MissingParameter"
    ec2(call, "ModifyNetworkInterfaceAttribute", **one, SourceDestCheck={"Value": False})
    off = ec2(call, "DescribeNetworkInterfaceAttribute", **one, Attribute="sourceDestCheck")
    assert off == one | {"SourceDestCheck": {"Value": False}}
    assert described(call, interface_id)["SourceDestCheck"] is False
    both: dict = {"Groups": [group_id], "Description": {"Value": "x"}}
    for params, code in [
        ({}, "InvalidParameterCombination"),
        (both, "InvalidParameterCombination"),
        ({"Groups": ["sg-1"]}, "InvalidGroup.NotFound"),
        ({"Attachment": {"AttachmentId": "x", "DeleteOnTermination": True}}, "UnsupportedOperation"),
    ]:
        assert refusal(call, "ModifyNetworkInterfaceAttribute", **one, **params).code == code


def test_addresses_are_assigned_and_unassigned(call: Call, subnet_id: str) -> None:
    made = make(call, subnet_id, PrivateIpAddress="10.0.0.9")
    one: dict = {"NetworkInterfaceId": made["NetworkInterfaceId"]}
    added = ec2(call, "AssignPrivateIpAddresses", **one, PrivateIpAddresses=["10.0.0.10"])
    assert added["AssignedPrivateIpAddresses"] == [{"PrivateIpAddress": "10.0.0.10"}]
    ec2(call, "AssignPrivateIpAddresses", **one, SecondaryPrivateIpAddressCount=2)
    assert len(described(call, made["NetworkInterfaceId"])["PrivateIpAddresses"]) == 4
    ec2(call, "UnassignPrivateIpAddresses", **one, PrivateIpAddresses=["10.0.0.10"])
    assert len(described(call, made["NetworkInterfaceId"])["PrivateIpAddresses"]) == 3
    for operation, params, code in [
        ("UnassignPrivateIpAddresses", {"PrivateIpAddresses": ["10.0.0.9"]}, "InvalidParameterValue"),
        ("UnassignPrivateIpAddresses", {"PrivateIpAddresses": ["10.0.0.10"]}, "InvalidParameterValue"),
        ("AssignPrivateIpAddresses", {"PrivateIpAddresses": ["10.0.0.9"]}, "InvalidIPAddress.InUse"),
        ("AssignPrivateIpAddresses", {}, "MissingParameter"),
        (
            "AssignPrivateIpAddresses",
            {"PrivateIpAddresses": ["10.0.0.9"], "AllowReassignment": True},
            "UnsupportedOperation",
        ),
    ]:
        assert refusal(call, operation, **one, **params).code == code


def test_interfaces_are_filtered_by_every_documented_name(call: Call, vpc_id: str, subnet_id: str) -> None:
    mine = make(call, subnet_id, Description="mine", PrivateIpAddress="10.0.0.9")
    job = described(call, of_a_job(call, subnet_id))
    for name, value, expected in [
        ("addresses.primary", "false", 1),
        ("addresses.private-ip-address", "10.0.0.9", 1),
        ("association.public-ip", "*", 0),
        ("attachment.attachment-id", job["Attachment"]["AttachmentId"], 1),
        ("attachment.attach-time", "2023-11-14T22:13:20.000Z", 1),
        ("attachment.status", "attached", 1),
        ("attachment.instance-owner-id", "amazon-aws", 1),
        ("availability-zone", "us-east-1a", 2),
        ("availability-zone-id", "use1-az1", 2),
        ("description", "mine", 1),
        ("group-id", "sg-*", 2),
        ("group-name", "default", 2),
        ("interface-type", "interface", 2),
        ("mac-address", mine["MacAddress"], 1),
        ("network-interface-id", mine["NetworkInterfaceId"], 1),
        ("owner-id", ACCOUNT, 2),
        ("private-ip-address", "10.0.0.9", 1),
        ("requester-id", "sagemaker", 1),
        ("requester-managed", "true", 1),
        ("source-dest-check", "true", 2),
        ("status", "in-use", 1),
        ("subnet-id", subnet_id, 2),
        ("vpc-id", vpc_id, 2),
    ]:
        found = ec2(call, "DescribeNetworkInterfaces", Filters=[{"Name": name, "Values": [value]}])
        assert len(found["NetworkInterfaces"]) == expected, name
