"""Interface endpoints by the API: interfaces, groups, names, and what AWS refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.services.calls import make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.vpc import dns
from cloister.vpc.model import VpcEndpoint

STS = "com.amazonaws.us-east-1.sts"
S3 = "com.amazonaws.us-east-1.s3"


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ec2(call, "ModifyVpcAttribute", VpcId=made, EnableDnsHostnames={"Value": True})
    return made


@pytest.fixture
def subnets(call: Call, vpc_id: str) -> list[str]:
    """One in zone a, one in zone b, another in zone a."""
    made = [
        ec2(
            call,
            "CreateSubnet",
            VpcId=vpc_id,
            CidrBlock=f"10.0.{n}.0/24",
            AvailabilityZone=f"us-east-1{zone}",
        )
        for n, zone in enumerate("aba")
    ]
    return [one["Subnet"]["SubnetId"] for one in made]


def make(call: Call, vpc_id: str, service: str = STS, **params: object) -> dict:
    made: dict = ec2(
        call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=service, VpcEndpointType="Interface", **params
    )["VpcEndpoint"]
    return made


def refused(call: Call, vpc_id: str, service: str = STS, **params: object) -> tuple[str, str]:
    wanted = {"VpcId": vpc_id, "ServiceName": service, "VpcEndpointType": "Interface", **params}
    error = refusal(call, "CreateVpcEndpoint", **wanted)
    return error.code, error.message


def described(call: Call, endpoint_id: str) -> dict:
    (endpoint,) = ec2(call, "DescribeVpcEndpoints", VpcEndpointIds=[endpoint_id])["VpcEndpoints"]
    found: dict = endpoint
    return found


def interfaces(call: Call, vpc_id: str) -> list[dict]:
    found: list[dict] = ec2(call, "DescribeNetworkInterfaces", Filters=filters(vpc_id=vpc_id))[
        "NetworkInterfaces"
    ]
    return found


def address(call: Call, interface_id: str) -> str:
    (found,) = ec2(call, "DescribeNetworkInterfaces", NetworkInterfaceIds=[interface_id])["NetworkInterfaces"]
    text: str = found["PrivateIpAddress"]
    return text


def lookup(call: Call, vpc_id: str, name: str) -> dns.Answer:
    return dns.answer(call.tx, vpc_id, name, dns.A, region="us-east-1")


def test_an_endpoint_has_an_interface_in_each_subnet_with_the_default_group(
    call: Call, vpc_id: str, subnets: list[str]
) -> None:
    made = make(call, vpc_id, SubnetIds=subnets[:2])
    assert (made["VpcEndpointType"], made["State"]) == ("Interface", "pending")
    assert (made["SubnetIds"], made["PrivateDnsEnabled"]) == (subnets[:2], True)
    assert ids(made["Groups"], "GroupName") == ["default"]
    assert json.loads(made["PolicyDocument"])["Statement"][0]["Action"] == "*"
    found = interfaces(call, vpc_id)
    assert sorted(ids(found, "NetworkInterfaceId")) == sorted(made["NetworkInterfaceIds"])
    for one in found:
        assert one["InterfaceType"] == "vpc_endpoint"
        assert one["RequesterManaged"]
        assert one["Description"] == f"VPC Endpoint Interface {made['VpcEndpointId']}"
        assert one["Groups"] == made["Groups"]
    assert described(call, made["VpcEndpointId"]) == made


def test_an_endpoints_interface_is_the_endpoints_alone(call: Call, vpc_id: str, subnets: list[str]) -> None:
    made = make(call, vpc_id, SubnetIds=subnets[:1])
    (interface_id,) = made["NetworkInterfaceIds"]
    deleted = refusal(call, "DeleteNetworkInterface", NetworkInterfaceId=interface_id)
    assert deleted.code == "InvalidNetworkInterface.InUse"
    group = {"NetworkInterfaceId": interface_id, "Groups": ids(made["Groups"], "GroupId")}
    assert refusal(call, "ModifyNetworkInterfaceAttribute", **group).code == "OperationNotPermitted"
    assert refusal(call, "DeleteSubnet", SubnetId=subnets[0]).code == "DependencyViolation"
    ec2(call, "DeleteVpcEndpoints", VpcEndpointIds=[made["VpcEndpointId"]])
    assert interfaces(call, vpc_id) == []
    ec2(call, "DeleteSubnet", SubnetId=subnets[0])


def test_its_names_are_of_the_region_of_each_zone_and_the_services_own(
    call: Call, vpc_id: str, subnets: list[str]
) -> None:
    made = make(call, vpc_id, "com.amazonaws.us-east-1.sagemaker.api", SubnetIds=subnets[:2])
    regional, first, second, private = ids(made["DnsEntries"], "DnsName")
    domain = ".api.sagemaker.us-east-1.vpce.amazonaws.com"
    assert regional.startswith(made["VpcEndpointId"] + "-")
    stem = regional.removesuffix(domain)
    assert (first, second) == (f"{stem}-us-east-1a{domain}", f"{stem}-us-east-1b{domain}")
    assert private == "api.sagemaker.us-east-1.amazonaws.com"
    one, other = (address(call, interface_id) for interface_id in made["NetworkInterfaceIds"])
    assert lookup(call, vpc_id, regional).records == lookup(call, vpc_id, private).records == (one, other)
    assert lookup(call, vpc_id, first).records == (one,)
    assert lookup(call, vpc_id, second).records == (other,)


def test_its_own_names_are_known_in_every_vpc_the_private_ones_in_its_own(
    call: Call, vpc_id: str, subnets: list[str]
) -> None:
    far = ec2(call, "CreateVpc", CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    made = make(call, vpc_id, SubnetIds=subnets[:1])
    own, _, private = ids(made["DnsEntries"], "DnsName")
    held = (address(call, made["NetworkInterfaceIds"][0]),)
    assert lookup(call, far, own).records == held
    assert lookup(call, far, private).records[0].startswith("203.0.113.")
    forged = own.replace(made["VpcEndpointId"], "vpce-0123456789abcdef0")
    assert lookup(call, vpc_id, forged).rcode == dns.NXDOMAIN
    assert lookup(call, vpc_id, own.replace(".sts.", ".kms.")).rcode == dns.NXDOMAIN
    assert lookup(call, vpc_id, f"x.{own}").rcode == dns.NXDOMAIN


def test_without_private_dns_the_services_name_is_the_public_one(
    call: Call, vpc_id: str, subnets: list[str]
) -> None:
    made = make(call, vpc_id, SubnetIds=subnets[:1], PrivateDnsEnabled=False)
    name = "sts.us-east-1.amazonaws.com"
    assert name not in ids(made["DnsEntries"], "DnsName")
    assert lookup(call, vpc_id, name).records[0].startswith("203.0.113.")
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=made["VpcEndpointId"], PrivateDnsEnabled=True)
    assert lookup(call, vpc_id, name).records == (address(call, made["NetworkInterfaceIds"][0]),)
    assert lookup(call, vpc_id, f"below.{name}").rcode == dns.NXDOMAIN  # the hosted zone hides it
    ec2(call, "ModifyVpcAttribute", VpcId=vpc_id, EnableDnsHostnames={"Value": False})
    assert lookup(call, vpc_id, name).records[0].startswith("203.0.113.")


def test_private_dns_wants_the_vpcs_dns_attributes(call: Call) -> None:
    plain = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    code, message = refused(call, plain, PrivateDnsEnabled=True)
    assert code == "InvalidParameter"
    assert message == (
        "Enabling private DNS requires both enableDnsSupport and enableDnsHostnames VPC attributes set to "
        f"true for {plain}"
    )
    assert not make(call, plain, PrivateDnsEnabled=False)["PrivateDnsEnabled"]


def test_two_endpoints_of_a_service_cannot_both_have_private_dns(call: Call, vpc_id: str) -> None:
    make(call, vpc_id)
    code, message = refused(call, vpc_id)
    assert code == "InvalidParameter"
    assert message == (
        "private-dns-enabled cannot be set because there is already a conflicting DNS domain for "
        f"sts.us-east-1.amazonaws.com in the VPC {vpc_id}"
    )
    other = make(call, vpc_id, PrivateDnsEnabled=False)["VpcEndpointId"]
    error = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=other, PrivateDnsEnabled=True)
    assert "conflicting DNS domain" in error.message


def test_a_service_without_private_names_says_so(call: Call, vpc_id: str) -> None:
    dynamodb = "com.amazonaws.us-east-1.dynamodb"
    code, message = refused(call, vpc_id, dynamodb, PrivateDnsEnabled=True)
    assert (code, dynamodb in message) == ("InvalidParameter", True)
    assert message.endswith("does not provide a private DNS name.")
    assert not make(call, vpc_id, dynamodb)["PrivateDnsEnabled"]


def test_s3s_private_names_are_the_gateways_unless_asked_otherwise(
    call: Call, vpc_id: str, subnets: list[str]
) -> None:
    code, message = refused(call, vpc_id, S3, SubnetIds=subnets[:1], PrivateDnsEnabled=True)
    assert code == "InvalidParameter"
    assert "must have a Gateway endpoint for the service" in message
    name = "bucket.s3.us-east-1.amazonaws.com"
    options = {"PrivateDnsOnlyForInboundResolverEndpoint": False}
    made = make(call, vpc_id, S3, SubnetIds=subnets[:1], PrivateDnsEnabled=True, DnsOptions=options)
    held = (address(call, made["NetworkInterfaceIds"][0]),)
    assert lookup(call, vpc_id, name).records == held
    assert lookup(call, vpc_id, "s3.us-east-1.amazonaws.com").records == held
    assert (
        lookup(call, vpc_id, "bucket.s3.amazonaws.com").records != held
    )  # the global name is no private one
    own = ids(made["DnsEntries"], "DnsName")[0]
    assert own.startswith("*.vpce-")
    for prefix in ("bucket", "my.own.bucket"):
        assert lookup(call, vpc_id, own.replace("*", prefix)).records == held
    assert lookup(call, vpc_id, own.removeprefix("*.")).rcode == dns.NXDOMAIN

    ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName=S3)
    inbound = {"PrivateDnsOnlyForInboundResolverEndpoint": True}
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=made["VpcEndpointId"], DnsOptions=inbound)
    assert lookup(call, vpc_id, name).records != held
    assert described(call, made["VpcEndpointId"])["DnsOptions"] == inbound | {"DnsRecordIpType": "ipv4"}


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"VpcId": "vpc-1"}, "InvalidVpcID.NotFound", "vpc-1"),
        ({"ServiceName": "com.amazonaws.us-east-1.lex"}, "InvalidServiceName", "lex"),
        ({"ServiceName": "com.amazonaws.eu-west-1.sts"}, "InvalidServiceName", "eu-west-1"),
        ({"SubnetIds": ["subnet-1"]}, "InvalidSubnetID.NotFound", "subnet-1"),
        ({"SecurityGroupIds": ["sg-1"]}, "InvalidGroup.NotFound", "sg-1"),
        ({"RouteTableIds": ["rtb-1"]}, "InvalidParameter", "RouteTableIds"),
        ({"PolicyDocument": "no json"}, "InvalidPolicyDocument", ""),
        ({"IpAddressType": "ipv6"}, "UnsupportedOperation", "ipv6"),
        ({"ResourceConfigurationArn": "arn:x"}, "UnsupportedOperation", "ResourceConfigurationArn"),
    ],
)
def test_a_bad_endpoint_is_refused_naming_the_value(
    call: Call, vpc_id: str, params: dict, code: str, named: str
) -> None:
    wanted = {"VpcId": vpc_id, "ServiceName": STS, "VpcEndpointType": "Interface", **params}
    error = refusal(call, "CreateVpcEndpoint", **wanted)
    assert error.code == code
    assert named in error.message


def test_a_zone_has_one_subnet_and_all_is_of_one_vpc(call: Call, vpc_id: str, subnets: list[str]) -> None:
    code, message = refused(call, vpc_id, SubnetIds=[subnets[0], subnets[2]])
    assert (code, subnets[2] in message) == ("DuplicateSubnetsInSameZone", True)
    far = ec2(call, "CreateVpc", CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2(call, "CreateSubnet", VpcId=far, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    group = ec2(call, "CreateSecurityGroup", GroupName="g", Description="d", VpcId=far)["GroupId"]
    assert "different networks" in refused(call, vpc_id, SubnetIds=[subnet])[1]
    assert "different networks" in refused(call, vpc_id, SecurityGroupIds=[group])[1]


def test_subnets_and_groups_come_and_go(call: Call, vpc_id: str, subnets: list[str]) -> None:
    group = ec2(call, "CreateSecurityGroup", GroupName="g", Description="d", VpcId=vpc_id)["GroupId"]
    made = make(call, vpc_id, SubnetIds=subnets[:1])
    endpoint_id, default = made["VpcEndpointId"], made["Groups"][0]["GroupId"]
    ec2(
        call,
        "ModifyVpcEndpoint",
        VpcEndpointId=endpoint_id,
        AddSubnetIds=[subnets[1]],
        AddSecurityGroupIds=[group],
        RemoveSecurityGroupIds=[default],
    )
    assert described(call, endpoint_id)["SubnetIds"] == subnets[:2]
    assert [ids(one["Groups"], "GroupId") for one in interfaces(call, vpc_id)] == [[group], [group]]
    assert refusal(call, "DeleteSecurityGroup", GroupId=group).code == "DependencyViolation"
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, RemoveSubnetIds=[subnets[0]])
    (left,) = interfaces(call, vpc_id)
    assert described(call, endpoint_id)["NetworkInterfaceIds"] == [left["NetworkInterfaceId"]]
    assert left["SubnetId"] == subnets[1]
    last = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, RemoveSecurityGroupIds=[group])
    assert last.code == "InvalidParameter"
    gone = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, RemoveSubnetIds=[subnets[0]])
    assert (gone.code, subnets[0] in gone.message) == ("InvalidParameter", True)


def test_an_address_can_be_asked_for_and_changed(call: Call, vpc_id: str, subnets: list[str]) -> None:
    wanted = [{"SubnetId": subnets[0], "Ipv4": "10.0.0.77"}]
    made = make(call, vpc_id, SubnetIds=subnets[:1], SubnetConfigurations=wanted)
    assert address(call, made["NetworkInterfaceIds"][0]) == "10.0.0.77"
    other = [{"SubnetId": subnets[0], "Ipv4": "10.0.0.78"}]
    ec2(call, "ModifyVpcEndpoint", VpcEndpointId=made["VpcEndpointId"], SubnetConfigurations=other)
    (interface,) = interfaces(call, vpc_id)
    assert interface["PrivateIpAddress"] == "10.0.0.78"


def test_an_endpoint_is_idempotent_by_its_token(call: Call, vpc_id: str, subnets: list[str]) -> None:
    first = make(call, vpc_id, SubnetIds=subnets[:1], ClientToken="t")
    assert make(call, vpc_id, SubnetIds=subnets[:1], ClientToken="t") == first
    assert len(interfaces(call, vpc_id)) == 1


def test_the_parameters_of_a_gateway_are_refused_when_modifying(call: Call, vpc_id: str) -> None:
    endpoint_id = make(call, vpc_id)["VpcEndpointId"]
    error = refusal(call, "ModifyVpcEndpoint", VpcEndpointId=endpoint_id, AddRouteTableIds=["rtb-1"])
    assert (error.code, "AddRouteTableIds" in error.message) == ("InvalidParameter", True)


def test_an_endpoint_whose_interfaces_are_gone_has_no_address(
    call: Call, vpc_id: str, subnets: list[str]
) -> None:
    made = make(call, vpc_id, SubnetIds=subnets[:1])
    endpoint = call.tx.get(VpcEndpoint, made["VpcEndpointId"])
    assert endpoint is not None
    call.tx.put(replace(endpoint, subnet_ids=(), interface_ids=()))
    assert lookup(call, vpc_id, "sts.us-east-1.amazonaws.com").rcode == dns.NXDOMAIN
