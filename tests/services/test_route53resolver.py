"""Outbound endpoints and resolver rules, by the API."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.calls import ACCOUNT, invoke, make_call
from tests.services.ec2 import ec2, refusal

from cloister.services import route53resolver
from cloister.services.api import Call
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import NetworkInterface
from cloister.vpc.resolver_rules import ResolverRuleAssociation
from cloister.why.request import why_request
from cloister.wire.errors import AwsError

assert route53resolver
SERVICE = "route53resolver"


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


@pytest.fixture
def subnets(call: Call, vpc_id: str) -> list[str]:
    return [
        ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock=f"10.0.{number}.0/24")["Subnet"]["SubnetId"]
        for number in (1, 2)
    ]


@pytest.fixture
def group(call: Call, vpc_id: str) -> str:
    made: str = ec2(call, "CreateSecurityGroup", GroupName="dns", Description="x", VpcId=vpc_id)["GroupId"]
    return made


def resolver(call: Call, name: str, /, **params: Any) -> dict[str, Any]:
    return invoke(call, SERVICE, name, **params)


def wrong(call: Call, name: str, /, **params: Any) -> AwsError:
    scratch = make_call(call.tx.commit())
    with pytest.raises(AwsError) as caught:
        resolver(scratch, name, **params)
    return caught.value


@pytest.fixture
def endpoint(call: Call, subnets: list[str], group: str) -> dict[str, Any]:
    made: dict[str, Any] = resolver(
        call,
        "CreateResolverEndpoint",
        CreatorRequestId="one",
        Name="out",
        Direction="OUTBOUND",
        SecurityGroupIds=[group],
        IpAddresses=[{"SubnetId": subnets[0], "Ip": "10.0.1.53"}, {"SubnetId": subnets[1]}],
    )["ResolverEndpoint"]
    return made


def rule(call: Call, endpoint: dict[str, Any], domain: str = "corp.example", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = resolver(
        call,
        "CreateResolverRule",
        **{
            "CreatorRequestId": f"rule {domain}",
            "RuleType": "FORWARD",
            "DomainName": domain,
            "TargetIps": [{"Ip": "10.0.1.9"}, {"Ip": "192.168.0.9", "Port": 5353}],
            "ResolverEndpointId": endpoint["Id"],
            **more,
        },
    )["ResolverRule"]
    return made


def test_an_endpoint_has_interfaces_that_only_the_service_manages(
    call: Call, endpoint: dict[str, Any], vpc_id: str, group: str
) -> None:
    assert endpoint["Status"] == "OPERATIONAL"
    assert (endpoint["HostVPCId"], endpoint["IpAddressCount"]) == (vpc_id, 2)
    assert endpoint["Arn"].endswith(f":resolver-endpoint/{endpoint['Id']}")
    found = resolver(call, "ListResolverEndpointIpAddresses", ResolverEndpointId=endpoint["Id"])[
        "IpAddresses"
    ]
    assert "10.0.1.53" in {each["Ip"] for each in found}
    interfaces = list(call.tx.all(NetworkInterface))
    assert len(interfaces) == 2
    for interface in interfaces:
        assert interface.requester_managed
        assert interface.group_ids == (group,)
        error = refusal(call, "DeleteNetworkInterface", NetworkInterfaceId=interface.interface_id)
        assert error.code in (
            "OperationNotPermitted",
            "InvalidParameterValue",
            "InvalidNetworkInterface.InUse",
        )
    again = resolver(
        call,
        "CreateResolverEndpoint",
        CreatorRequestId="one",
        Direction="OUTBOUND",
        SecurityGroupIds=[group],
        IpAddresses=[],
    )
    assert again["ResolverEndpoint"] == endpoint
    assert resolver(call, "ListResolverEndpoints")["ResolverEndpoints"] == [endpoint]
    assert resolver(call, "DeleteResolverEndpoint", ResolverEndpointId=endpoint["Id"])
    assert not list(call.tx.all(NetworkInterface))


def test_a_rule_is_made_associated_changed_and_deleted(
    call: Call, endpoint: dict[str, Any], vpc_id: str
) -> None:
    made = rule(call, endpoint, "Corp.Example.")
    assert made["DomainName"] == "corp.example."
    assert made["TargetIps"][0] == {"Ip": "10.0.1.9", "Port": 53, "Protocol": "Do53"}
    number = {"ResolverRuleId": made["Id"]}
    assert resolver(call, "GetResolverRule", **number)["ResolverRule"] == made
    association = resolver(call, "AssociateResolverRule", **number, VPCId=vpc_id)["ResolverRuleAssociation"]
    assert association["Status"] == "COMPLETE"
    assert wrong(call, "DeleteResolverRule", **number).code == "ResourceInUseException"
    assert wrong(call, "AssociateResolverRule", **number, VPCId=vpc_id).code == "ResourceExistsException"
    used = wrong(call, "DeleteResolverEndpoint", ResolverEndpointId=endpoint["Id"])
    assert used.code == "InvalidRequestException"
    assert made["Id"] in used.message
    config = {"Name": "new", "TargetIps": [{"Ip": "10.0.2.9"}]}
    changed = resolver(call, "UpdateResolverRule", **number, Config=config)["ResolverRule"]
    assert (changed["Name"], changed["TargetIps"][0]["Ip"]) == ("new", "10.0.2.9")
    listed = resolver(call, "ListResolverRuleAssociations", Filters=[{"Name": "VPC_ID", "Values": [vpc_id]}])
    assert listed["ResolverRuleAssociations"] == [association]
    resolver(call, "DisassociateResolverRule", **number, VPCId=vpc_id)
    assert wrong(call, "DisassociateResolverRule", **number, VPCId=vpc_id).code == "ResourceNotFoundException"
    resolver(call, "DeleteResolverRule", **number)
    assert wrong(call, "GetResolverRule", **number).code == "ResourceNotFoundException"


def test_rules_are_listed_in_pages_and_by_filters(call: Call, endpoint: dict[str, Any]) -> None:
    made = [rule(call, endpoint, f"d{number}.example") for number in range(12)]
    first = resolver(call, "ListResolverRules")
    assert len(first["ResolverRules"]) == 10
    rest = resolver(call, "ListResolverRules", NextToken=first["NextToken"])
    assert "NextToken" not in rest
    assert {one["Id"] for one in first["ResolverRules"] + rest["ResolverRules"]} == {
        one["Id"] for one in made
    }
    only = resolver(call, "ListResolverRules", Filters=[{"Name": "DomainName", "Values": ["d3.example."]}])
    assert [one["DomainName"] for one in only["ResolverRules"]] == ["d3.example."]
    assert wrong(call, "ListResolverRules", NextToken="x").code == "InvalidNextTokenException"
    error = wrong(call, "ListResolverRules", Filters=[{"Name": "Colour", "Values": ["red"]}])
    assert "'Colour'" in error.message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"DomainName": "a..b"}, "'a..b'"),
        ({"DomainName": ""}, "DomainName"),
        ({"TargetIps": []}, "not 0"),
        ({"TargetIps": [{"Ip": "10.0.0.999"}]}, "10.0.0.999"),
        ({"TargetIps": [{"Ip": "10.0.0.9", "Protocol": "DoH"}]}, "DoH"),
        ({"TargetIps": [{"Ipv6": "::1"}]}, "::1"),
        ({"RuleType": "RECURSIVE"}, "RECURSIVE"),
        ({"RuleType": "SYSTEM"}, "SYSTEM"),
        ({"ResolverEndpointId": "rslvr-out-9"}, "rslvr-out-9"),
    ],
)
def test_a_wrong_rule_is_refused_by_its_value(
    call: Call, endpoint: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    scratch = make_call(call.tx.commit())
    with pytest.raises(AwsError) as caught:
        rule(scratch, endpoint, **changes)
    assert named in caught.value.message


def test_an_endpoint_elsewhere_is_refused(call: Call, subnets: list[str], group: str) -> None:
    far = ec2(call, "CreateVpc", CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    there = ec2(call, "CreateSubnet", VpcId=far, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    given: dict[str, Any] = {"CreatorRequestId": "x", "Direction": "OUTBOUND", "SecurityGroupIds": [group]}
    two = [{"SubnetId": subnets[0]}, {"SubnetId": there}]
    assert far in wrong(call, "CreateResolverEndpoint", **given, IpAddresses=two).message
    alone = [{"SubnetId": there}, {"SubnetId": there}]
    assert group in wrong(call, "CreateResolverEndpoint", **given, IpAddresses=alone).message
    inbound = {**given, "Direction": "INBOUND"}
    assert "Cloister does not" in wrong(call, "CreateResolverEndpoint", **inbound, IpAddresses=two).message


def test_tags_are_kept_on_endpoints_and_rules(call: Call, endpoint: dict[str, Any]) -> None:
    for arn in (endpoint["Arn"], rule(call, endpoint)["Arn"]):
        resolver(
            call, "TagResource", ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}]
        )
        resolver(call, "UntagResource", ResourceArn=arn, TagKeys=["b"])
        assert resolver(call, "ListTagsForResource", ResourceArn=arn)["Tags"] == [{"Key": "a", "Value": "1"}]


def test_a_vpc_takes_its_associations_along(call: Call, endpoint: dict[str, Any]) -> None:
    other = ec2(call, "CreateVpc", CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    resolver(call, "AssociateResolverRule", ResolverRuleId=rule(call, endpoint)["Id"], VPCId=other)
    ec2(call, "DeleteVpc", VpcId=other)
    assert not list(call.tx.all(ResolverRuleAssociation))


def test_why_names_the_rule_and_what_keeps_its_server_away(
    call: Call, endpoint: dict[str, Any], subnets: list[str], group: str, vpc_id: str
) -> None:
    made = rule(call, endpoint)
    resolver(call, "AssociateResolverRule", ResolverRuleId=made["Id"], VPCId=vpc_id)
    create_interface(call.tx, subnet_id=subnets[0], addresses=["10.0.1.9"], now=0, attach=("",))
    eni = create_interface(call.tx, subnet_id=subnets[0], now=0, attach=("",))

    def asked() -> str:
        return why_request(
            call.tx,
            eni,
            "GET",
            "https://db.corp.example",
            principal=None,
            region="us-east-1",
            account=ACCOUNT,
            now=0,
        ).reason

    # the server's default group lets in only its own members
    assert f"is asked of 10.0.1.9 ({made['Id']}), which is not reached" in asked()
    default = ec2(call, "DescribeSecurityGroups", Filters=[{"Name": "group-name", "Values": ["default"]}])
    opened = {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "UserIdGroupPairs": [{"GroupId": group}]}
    (number,) = (one["GroupId"] for one in default["SecurityGroups"] if one["VpcId"] == vpc_id)
    ec2(call, "AuthorizeSecurityGroupIngress", GroupId=number, IpPermissions=[opened])
    assert asked().endswith("Cloister cannot tell what that server answers.")
