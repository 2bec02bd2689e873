"""A service out of a private subnet's reach: the commands that `why` gives, carried out, lead to it."""

from __future__ import annotations

import re
import shlex

import pytest
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2

from cloister.services.api import Call
from cloister.vpc.endpoints import SERVICES, prefix_list_in
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
    elif verb == "create-vpc-endpoint" and "vpc-endpoint-type" not in one:
        ec2(
            call,
            "CreateVpcEndpoint",
            VpcId=one["vpc-id"],
            ServiceName=one["service-name"],
            RouteTableIds=given["route-table-ids"],
        )
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


def test_a_service_that_has_no_endpoints_gets_no_such_fix(call: Call, interface: NetworkInterface) -> None:
    refusal = why(call, interface, f"https://lambda.{REGION}.amazonaws.com/").refusal
    assert refusal is not None
    assert (refusal.gate, refusal.fix) == ("route", None)


def test_dynamodb_is_reached_by_its_gateway_endpoint(call: Call, interface: NetworkInterface) -> None:
    url, service = f"https://dynamodb.{REGION}.amazonaws.com/", f"com.amazonaws.{REGION}.dynamodb"
    refusal = why(call, interface, url).refusal
    assert refusal is not None
    assert refusal.gate == "route"
    assert (
        f"no route to DynamoDB: {interface.vpc_id} has no gateway endpoint for {service}" in refusal.sentence
    )
    assert "--private-dns-enabled" not in (refusal.fix or "")  # its interface endpoints have no private DNS
    assert carry_out(call, refusal.fix or "") == "create-vpc-endpoint"
    reached = why(call, interface, url)
    assert reached.allowed, reached.reason
    assert reached.reason.endswith("takes it to DynamoDB, where policies decide.")
    unencrypted = why(call, interface, url.replace("https", "http"))
    assert unencrypted.allowed
    group = ec2(call, "DescribeSecurityGroups", GroupIds=[interface.group_ids[0]])["SecurityGroups"][0]
    ec2(
        call,
        "RevokeSecurityGroupEgress",
        GroupId=group["GroupId"],
        SecurityGroupRuleIds=[
            rule["SecurityGroupRuleId"]
            for rule in ec2(call, "DescribeSecurityGroupRules")["SecurityGroupRules"]
            if rule["GroupId"] == group["GroupId"] and rule["IsEgress"]
        ],
    )
    closed = why(call, interface, url).refusal
    assert closed is not None
    assert f"PrefixListId={prefix_list_in(SERVICES['dynamodb'], REGION).prefix_list_id}" in (closed.fix or "")


def internet_gateway(call: Call, vpc_id: str) -> str:
    gateway: str = ec2(call, "CreateInternetGateway")["InternetGateway"]["InternetGatewayId"]
    ec2(call, "AttachInternetGateway", InternetGatewayId=gateway, VpcId=vpc_id)
    return gateway


def route(call: Call, table: str, to: str, **target: str) -> None:
    ec2(call, "CreateRoute", RouteTableId=table, DestinationCidrBlock=to, **target)


def own_table(call: Call, subnet: str, vpc_id: str) -> str:
    table: str = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    ec2(call, "AssociateRouteTable", RouteTableId=table, SubnetId=subnet)
    return table


def nat_gateway(call: Call, vpc_id: str, cidr: str = "10.0.9.0/24") -> tuple[str, str]:
    """A NAT gateway in a subnet of its own, and the route table there."""
    subnet = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock=cidr)["Subnet"]["SubnetId"]
    table = own_table(call, subnet, vpc_id)
    address = ec2(call, "AllocateAddress", Domain="vpc")["AllocationId"]
    nat = ec2(call, "CreateNatGateway", SubnetId=subnet, AllocationId=address)["NatGateway"]
    return nat["NatGatewayId"], table


STS = f"https://sts.{REGION}.amazonaws.com/"


def test_a_nat_gateway_in_a_private_subnet_lacks_its_route_and_nothing_else(
    call: Call, interface: NetworkInterface
) -> None:
    gateway = internet_gateway(call, interface.vpc_id)
    nat, public = nat_gateway(call, interface.vpc_id)
    route(call, own_table(call, interface.subnet_id, interface.vpc_id), "0.0.0.0/0", NatGatewayId=nat)
    refusal = why(call, interface, STS).refusal
    assert refusal is not None
    assert refusal.fix == (
        f"aws ec2 create-route --route-table-id {public} --destination-cidr-block 0.0.0.0/0 "
        f"--gateway-id {gateway}"
    )
    route(call, public, "0.0.0.0/0", GatewayId=gateway)
    assert why(call, interface, STS).allowed


def test_a_route_to_a_nat_gateway_that_is_gone_leads_to_one_that_is_there(
    call: Call, interface: NetworkInterface
) -> None:
    gateway = internet_gateway(call, interface.vpc_id)
    gone, public = nat_gateway(call, interface.vpc_id)
    route(call, public, "0.0.0.0/0", GatewayId=gateway)
    table = own_table(call, interface.subnet_id, interface.vpc_id)
    route(call, table, "0.0.0.0/0", NatGatewayId=gone)
    ec2(call, "DeleteNatGateway", NatGatewayId=gone)
    refusal = why(call, interface, STS).refusal
    assert refusal is not None
    assert "is a black hole" in refusal.sentence
    assert refusal.fix is not None
    assert refusal.fix.startswith("nat=$(aws ec2 create-nat-gateway --subnet-id ")
    assert refusal.fix.endswith("--destination-cidr-block 0.0.0.0/0 --nat-gateway-id $nat")
    other, _ = nat_gateway(call, interface.vpc_id, "10.0.8.0/24")
    refusal = why(call, interface, STS).refusal
    assert refusal is not None
    assert refusal.fix == (
        f"aws ec2 replace-route --route-table-id {table} --destination-cidr-block 0.0.0.0/0 "
        f"--nat-gateway-id {other}"
    )


def test_a_job_in_a_public_subnet_is_offered_an_endpoint_and_no_public_address(call: Call) -> None:
    vpc = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2(call, "CreateSubnet", VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    route(call, own_table(call, subnet, vpc), "0.0.0.0/0", GatewayId=internet_gateway(call, vpc))
    job = create_interface(call.tx, subnet_id=subnet, now=0, attach=("",), requester_managed=True)
    refusal = why(call, job, STS).refusal
    assert refusal is not None
    assert refusal.gate == "gateway"
    assert "A job gets none" in refusal.sentence
    assert refusal.fix == f"aws ec2 modify-vpc-attribute --vpc-id {vpc} --enable-dns-hostnames"


def test_a_peers_name_that_is_not_resolved_and_replies_that_find_no_way(
    call: Call, interface: NetworkInterface
) -> None:
    far = ec2(call, "CreateVpc", CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2(call, "CreateSubnet", VpcId=far, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    peering = ec2(call, "CreateVpcPeeringConnection", VpcId=interface.vpc_id, PeerVpcId=far)
    pcx = peering["VpcPeeringConnection"]["VpcPeeringConnectionId"]
    ec2(call, "AcceptVpcPeeringConnection", VpcPeeringConnectionId=pcx)
    near = own_table(call, interface.subnet_id, interface.vpc_id)
    route(call, near, "10.9.0.0/16", VpcPeeringConnectionId=pcx)
    group = ec2(call, "CreateSecurityGroup", GroupName="db", Description="d", VpcId=far)["GroupId"]
    create_interface(
        call.tx, subnet_id=subnet, group_ids=[group], addresses=["10.9.0.50"], now=0, attach=("",)
    )
    job = create_interface(
        call.tx,
        subnet_id=interface.subnet_id,
        group_ids=interface.group_ids,
        now=0,
        attach=("",),
        requester_managed=True,
    )
    refusal = why(call, job, "https://ip-10-9-0-50.ec2.internal:5432/").refusal
    assert refusal is not None
    assert refusal.fix == (
        f"aws ec2 modify-vpc-attribute --vpc-id {interface.vpc_id} --enable-dns-hostnames && "
        f"aws ec2 modify-vpc-attribute --vpc-id {far} --enable-dns-hostnames && "
        f"aws ec2 modify-vpc-peering-connection-options --vpc-peering-connection-id {pcx} "
        "--accepter-peering-connection-options AllowDnsResolutionFromRemoteVpc=true"
    )
    for vpc in (interface.vpc_id, far):
        ec2(call, "ModifyVpcAttribute", VpcId=vpc, EnableDnsHostnames={"Value": True})
    resolves = {"AllowDnsResolutionFromRemoteVpc": True}
    ec2(
        call,
        "ModifyVpcPeeringConnectionOptions",
        VpcPeeringConnectionId=pcx,
        AccepterPeeringConnectionOptions=resolves,
    )
    steps = why(call, job, "https://ip-10-9-0-50.ec2.internal:5432/").steps
    ingress, replies = [step for step in steps if not step.allowed]
    # the peer's rule can name the group, and the route is for the subnet: jobs get other addresses each time
    assert f"UserIdGroupPairs=[{{GroupId={job.group_ids[0]}}}]" in (ingress.fix or "")
    assert "--destination-cidr-block 10.0.0.0/24" in (replies.fix or "")
