"""DHCP options: the default set, sets of one's own, and what a VPC's jobs are told."""

from __future__ import annotations

from typing import Any

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, filters, ids, refusal

from cloister.services.api import Call
from cloister.vpc import dhcp
from cloister.vpc.flow import Step
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import Vpc
from cloister.why.request import why_request

REGION = "us-east-1"


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def vpc_id(call: Call) -> str:
    made: str = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    return made


def options(**given: list[str]) -> list[dict[str, Any]]:
    return [{"Key": key.replace("_", "-"), "Values": values} for key, values in given.items()]


def create(call: Call, **given: list[str]) -> str:
    made = ec2(call, "CreateDhcpOptions", DhcpConfigurations=options(**given))
    found: str = made["DhcpOptions"]["DhcpOptionsId"]
    return found


def told(call: Call, vpc_id: str) -> str:
    vpc = call.tx.get(Vpc, vpc_id)
    assert vpc is not None
    return dhcp.resolv_conf(call.tx, vpc, REGION)


def test_a_set_is_made_described_and_deleted(call: Call) -> None:
    made = ec2(
        call,
        "CreateDhcpOptions",
        DhcpConfigurations=options(
            domain_name_servers=["10.0.1.5, 10.0.1.6"], ntp_servers=["169.254.169.123"]
        ),
        TagSpecifications=[{"ResourceType": "dhcp-options", "Tags": [{"Key": "Name", "Value": "ours"}]}],
    )["DhcpOptions"]
    assert made["OwnerId"] == ACCOUNT
    assert made["DhcpConfigurations"] == [
        {"Key": "domain-name-servers", "Values": [{"Value": "10.0.1.5"}, {"Value": "10.0.1.6"}]},
        {"Key": "ntp-servers", "Values": [{"Value": "169.254.169.123"}]},
    ]
    number = made["DhcpOptionsId"]
    assert ec2(call, "DescribeDhcpOptions", DhcpOptionsIds=[number])["DhcpOptions"] == [made]
    assert len(ec2(call, "DescribeDhcpOptions")["DhcpOptions"]) == 2
    for named in (filters(key="ntp-servers"), filters(value="10.0.1.6"), filters(tag__Name="ours")):
        assert ids(ec2(call, "DescribeDhcpOptions", Filters=named)["DhcpOptions"], "DhcpOptionsId") == [
            number
        ]
    ec2(call, "DeleteDhcpOptions", DhcpOptionsId=number)
    assert refusal(call, "DeleteDhcpOptions", DhcpOptionsId=number).code == "InvalidDhcpOptionID.NotFound"


def test_a_vpc_tells_what_its_set_says(call: Call, vpc_id: str) -> None:
    default = ec2(call, "DescribeVpcs", VpcIds=[vpc_id])["Vpcs"][0]["DhcpOptionsId"]
    assert told(call, vpc_id) == "search ec2.internal\nnameserver 10.0.0.2\n"
    own = create(call, domain_name=["corp.example"], domain_name_servers=["10.0.1.5", "AmazonProvidedDNS"])
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId=own, VpcId=vpc_id)
    assert told(call, vpc_id) == "search corp.example\nnameserver 10.0.1.5\nnameserver 10.0.0.2\n"
    assert refusal(call, "DeleteDhcpOptions", DhcpOptionsId=own).code == "DependencyViolation"
    found = ec2(call, "DescribeVpcs", Filters=filters(dhcp_options_id=own))["Vpcs"]
    assert ids(found, "VpcId") == [vpc_id]
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId="default", VpcId=vpc_id)
    assert told(call, vpc_id) == ""
    assert ec2(call, "DescribeVpcs", VpcIds=[vpc_id])["Vpcs"][0]["DhcpOptionsId"] == "default"
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId=default, VpcId=vpc_id)
    assert told(call, vpc_id) == "search ec2.internal\nnameserver 10.0.0.2\n"
    ec2(call, "DeleteDhcpOptions", DhcpOptionsId=own)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"domain_name_servers": ["10.0.0.999"]}, "10.0.0.999"),
        ({"domain_name_servers": ["10.0.1.1,10.0.1.2,10.0.1.3,10.0.1.4,10.0.1.5"]}, "5 are given"),
        ({"domain_name_servers": []}, "0 are given"),
        ({"domain_name": ["a..b"]}, "a..b"),
        ({"domain_name": ["evil\nnameserver 8.8.8.8"]}, "8.8.8.8"),
        ({"netbios_node_type": ["3"]}, "'netbios-node-type'"),
        ({"boot_file": ["x"]}, "'boot-file'"),
    ],
)
def test_a_wrong_option_is_refused_by_its_value(call: Call, given: dict[str, list[str]], named: str) -> None:
    error = refusal(call, "CreateDhcpOptions", DhcpConfigurations=options(**given))
    assert error.code == "InvalidParameterValue"
    assert named in error.message


def test_an_unknown_set_and_the_default_set_are_refused(call: Call, vpc_id: str) -> None:
    default = ec2(call, "DescribeDhcpOptions")["DhcpOptions"][0]["DhcpOptionsId"]
    assert refusal(call, "DeleteDhcpOptions", DhcpOptionsId=default).code == "OperationNotPermitted"
    unknown = {"DhcpOptionsId": "dopt-0123", "VpcId": vpc_id}
    assert refusal(call, "AssociateDhcpOptions", **unknown).code == "InvalidDhcpOptionID.NotFound"
    assert refusal(call, "CreateDhcpOptions", DhcpConfigurations=[]).code == "MissingParameter"
    assert refusal(call, "DescribeDhcpOptions", DhcpOptionsIds=[default], MaxResults=5).code == (
        "InvalidParameterCombination"
    )


def test_a_job_that_finds_no_dns_server_is_told_so(call: Call, vpc_id: str) -> None:
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    eni = create_interface(call.tx, subnet_id=subnet, now=0, attach=("",))
    own = create(call, domain_name_servers=["10.0.1.9"])
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId=own, VpcId=vpc_id)

    def refusals() -> list[Step]:
        verdict = why_request(
            call.tx, eni, "GET", "s3://data/x", principal=None, region=REGION, account=ACCOUNT, now=0
        )
        return [step for step in verdict.steps if not step.allowed]

    said = f"data.s3.{REGION}.amazonaws.com is asked of 10.0.1.9 ({own}), which is not reached: "
    assert refusals()[0].sentence.startswith(said)
    both = create(call, domain_name_servers=["10.0.1.9", "AmazonProvidedDNS"])
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId=both, VpcId=vpc_id)
    assert "dns" not in {step.gate for step in refusals()}
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId="default", VpcId=vpc_id)
    (refused,) = refusals()
    assert "has no DNS server" in refused.sentence
    assert refused.fix is not None
    known = ec2(call, "DescribeDhcpOptions")["DhcpOptions"]
    assert refused.fix.split()[-1] in {each["DhcpOptionsId"] for each in known} - {own, both}


def test_why_says_which_server_is_asked_and_whether_it_is_reached(call: Call, vpc_id: str) -> None:
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    eni = create_interface(call.tx, subnet_id=subnet, now=0, attach=("",))
    server = create_interface(call.tx, subnet_id=subnet, addresses=["10.0.1.9"], now=0, attach=("",))
    own = create(call, domain_name_servers=["10.0.1.9"])
    ec2(call, "AssociateDhcpOptions", DhcpOptionsId=own, VpcId=vpc_id)

    def asked() -> str:
        verdict = why_request(
            call.tx,
            eni,
            "GET",
            "https://db.corp.example",
            principal=None,
            region=REGION,
            account=ACCOUNT,
            now=0,
        )
        assert [step.gate for step in verdict.steps] == ["dns"]
        return verdict.reason

    assert asked() == (
        f"db.corp.example is asked of 10.0.1.9 ({own}); Cloister cannot tell what that server answers."
    )
    group = ec2(call, "CreateSecurityGroup", GroupName="closed", Description="x", VpcId=vpc_id)["GroupId"]
    ec2(call, "ModifyNetworkInterfaceAttribute", NetworkInterfaceId=server.interface_id, Groups=[group])
    assert "which is not reached: " in asked()
    assert group in asked()
