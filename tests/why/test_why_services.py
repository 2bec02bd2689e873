"""A service out of a private subnet's reach: the commands that `why` gives, carried out, lead to it."""

from __future__ import annotations

import re
import shlex

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2

from cloister.services.api import Call
from cloister.vpc.flow import Verdict
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import NetworkInterface
from cloister.why.request import why_request

REGION = "us-east-1"


@pytest.fixture
def call() -> Call:
    return make_call()


@pytest.fixture
def interface(call: Call) -> NetworkInterface:
    """In a subnet without any way out, with a group of its own."""
    vpc = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2(call, "CreateSubnet", VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    group = ec2(call, "CreateSecurityGroup", GroupName="g", Description="d", VpcId=vpc)["GroupId"]
    return create_interface(call.tx, subnet_id=subnet, group_ids=[group], now=0, attach=("",))


def why(call: Call, interface: NetworkInterface, url: str) -> Verdict:
    return why_request(
        call.tx, interface, "POST", url, principal=None, region=REGION, account=ACCOUNT, now=call.now
    )


def carry_out(call: Call, command: str) -> str:
    """Run one `aws ec2 …` command of ours by the API; the operation."""
    _, _, verb, *words = shlex.split(command)
    given: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            given[word[2:]] = []
        else:
            given[list(given)[-1]].append(word)
    one = {name: values[0] for name, values in given.items() if values}
    if verb == "modify-vpc-attribute":
        assert "enable-dns-hostnames" in given
        ec2(call, "ModifyVpcAttribute", VpcId=one["vpc-id"], EnableDnsHostnames={"Value": True})
    elif verb == "create-vpc-endpoint":
        ec2(
            call,
            "CreateVpcEndpoint",
            VpcEndpointType=one["vpc-endpoint-type"],
            VpcId=one["vpc-id"],
            ServiceName=one["service-name"],
            SubnetIds=given["subnet-ids"],
            SecurityGroupIds=given["security-group-ids"],
            PrivateDnsEnabled="private-dns-enabled" in given,
        )
    elif verb == "modify-vpc-endpoint":
        ec2(call, "ModifyVpcEndpoint", VpcEndpointId=one["vpc-endpoint-id"], PrivateDnsEnabled=True)
    else:
        assert verb == "authorize-security-group-ingress"
        match = re.fullmatch(
            r"IpProtocol=tcp,FromPort=443,ToPort=443,UserIdGroupPairs=\[\{GroupId=(sg-\w+)\}\]",
            one["ip-permissions"],
        )
        assert match is not None
        permission = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443}
        permission["UserIdGroupPairs"] = [{"GroupId": match[1]}]
        ec2(call, "AuthorizeSecurityGroupIngress", GroupId=one["group-id"], IpPermissions=[permission])
    return verb


@pytest.mark.parametrize("host", ["sts", "api.sagemaker", "secretsmanager"])
def test_following_the_fixes_one_by_one_leads_to_the_service(
    call: Call, interface: NetworkInterface, host: str
) -> None:
    done = []
    while not (verdict := why(call, interface, f"https://{host}.{REGION}.amazonaws.com/")).allowed:
        assert verdict.refusal is not None
        assert verdict.refusal.fix
        assert len(done) < 5
        done.append(carry_out(call, verdict.refusal.fix))
    assert done == ["modify-vpc-attribute", "create-vpc-endpoint", "authorize-security-group-ingress"]
    assert verdict.steps[-1].gate == "endpoint"


def test_an_endpoint_without_private_dns_gets_it(call: Call, interface: NetworkInterface) -> None:
    ec2(call, "ModifyVpcAttribute", VpcId=interface.vpc_id, EnableDnsHostnames={"Value": True})
    made = ec2(
        call,
        "CreateVpcEndpoint",
        VpcEndpointType="Interface",
        VpcId=interface.vpc_id,
        ServiceName=f"com.amazonaws.{REGION}.kms",
        SubnetIds=[interface.subnet_id],
        PrivateDnsEnabled=False,
    )["VpcEndpoint"]
    url = f"https://kms.{REGION}.amazonaws.com/"
    refusal = why(call, interface, url).refusal
    assert refusal is not None
    assert made["VpcEndpointId"] in (refusal.fix or "")
    assert carry_out(call, refusal.fix or "") == "modify-vpc-endpoint"
    again = why(call, interface, url).refusal
    assert again is not None
    assert again.gate == "ingress"  # the default group does not let the interface's in


def test_a_service_that_has_no_private_name_gets_no_such_fix(call: Call, interface: NetworkInterface) -> None:
    refusal = why(call, interface, f"https://dynamodb.{REGION}.amazonaws.com/").refusal
    assert refusal is not None
    assert (refusal.gate, refusal.fix) == ("route", None)
