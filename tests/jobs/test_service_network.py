"""The network of jobs without a VPC: what it is made of, and that nobody but the service sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.jobs.worlds import documents, request, role
from tests.services.calls import make_call
from tests.services.ec2 import ec2, refusal

from cloister.jobs.allocation import allocate, give_back
from cloister.jobs.model import Instance, ProcessingJob
from cloister.services.api import Call
from cloister.vpc.elastic_ips import taken
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.model import (
    InternetGateway,
    NatGateway,
    NetworkInterface,
    RouteTable,
    SecurityGroup,
    Subnet,
    Vpc,
)
from cloister.world import World

HIDDEN = {
    "DescribeVpcs": ("Vpcs", Vpc, "vpc_id"),
    "DescribeSubnets": ("Subnets", Subnet, "subnet_id"),
    "DescribeSecurityGroups": ("SecurityGroups", SecurityGroup, "group_id"),
    "DescribeRouteTables": ("RouteTables", RouteTable, "route_table_id"),
    "DescribeInternetGateways": ("InternetGateways", InternetGateway, "internet_gateway_id"),
    "DescribeNatGateways": ("NatGateways", NatGateway, "nat_gateway_id"),
    "DescribeNetworkInterfaces": ("NetworkInterfaces", NetworkInterface, "interface_id"),
}


def job(name: str, instances: int = 1) -> ProcessingJob:
    wanted = request(name, instances=instances)
    del wanted["NetworkConfig"]
    return ProcessingJob(
        name=name,
        job_id="1",
        arn=name,
        request=wanted,
        instances=tuple(Instance(index=index + 1) for index in range(instances)),
        credentials_path="/",
        created=0,
        modified=0,
    )


@pytest.fixture
def call() -> Call:
    """With two jobs without a VPC, of two instances each."""
    call = make_call(World.of([*documents(), role()]))
    for name in ("one", "two"):
        call.tx.put(allocate(call.tx, job(name, 2), clock=0, region="us-east-1"))
    return call


def ends(call: Call, name: str) -> list[str]:
    found = call.tx.get(ProcessingJob, name)
    assert found is not None
    return [each.interface_id for each in found.instances if each.interface_id]


def allowed(call: Call, source: str, destination: str) -> bool:
    return explain(call.tx, Flow(source=source, destination=destination, port=5000)).allowed


def test_a_jobs_instances_reach_each_other_and_s3_and_no_other_job(call: Call) -> None:
    one, two = ends(call, "one"), ends(call, "two")
    assert allowed(call, one[0], one[1])
    assert not allowed(call, one[0], two[0])
    assert not allowed(call, two[1], one[1])
    interface = call.tx.get(NetworkInterface, one[0])
    assert interface is not None
    assert explain(call.tx, Flow(source=interface.interface_id, destination="3.5.0.1", port=443)).allowed


def test_there_is_one_network_for_all_such_jobs_and_it_stays(call: Call) -> None:
    assert sum(vpc.service_owned for vpc in call.tx.all(Vpc)) == 1
    (address,) = taken(call.tx)
    for name in ("one", "two"):
        found = call.tx.get(ProcessingJob, name)
        assert found is not None
        give_back(call.tx, found)
        give_back(call.tx, found)
    left = [each.interface_type for each in call.tx.all(NetworkInterface)]
    assert left == ["nat_gateway"]
    assert sorted(group.name for group in call.tx.all(SecurityGroup)) == ["default", "g", "g"]
    assert taken(call.tx) == {address}
    # the same address wherever it is made
    again = World().begin()
    allocate(again, job("one"), clock=5, region="us-east-1")
    assert taken(again) == {address}


def hidden_ids(call: Call, kind: type, key: str) -> Iterator[str]:
    (vpc,) = (vpc for vpc in call.tx.all(Vpc) if vpc.service_owned)
    documents: Any = call.tx.all(kind)
    for document in documents:
        if document.vpc_id == vpc.vpc_id:
            yield getattr(document, key)


@pytest.mark.parametrize("operation", HIDDEN)
def test_nobody_sees_it_or_can_name_it(call: Call, operation: str) -> None:
    member, kind, key = HIDDEN[operation]
    ids = list(hidden_ids(call, kind, key))
    assert ids
    listed = ec2(call, operation)[member]
    assert not any(one in str(listed) for one in ids)
    by_id = {"DescribeSecurityGroups": "GroupIds"}.get(operation, f"{member[:-1]}Ids")
    code = refusal(call, operation, **{by_id: ids[:1]}).code
    assert code.endswith("NotFound")
    assert refusal(call, "CreateTags", Resources=ids[:1], Tags=[{"Key": "a", "Value": "b"}]).code == code


def test_nobody_uses_it(call: Call) -> None:
    (subnet, *_), (group, *_) = (
        list(hidden_ids(call, kind, key))
        for kind, key in ((Subnet, "subnet_id"), (SecurityGroup, "group_id"))
    )
    (vpc,) = (vpc.vpc_id for vpc in call.tx.all(Vpc) if vpc.service_owned)
    for operation, params in [
        ("CreateNetworkInterface", {"SubnetId": subnet}),
        ("CreateSubnet", {"VpcId": vpc, "CidrBlock": "100.64.200.0/24"}),
        ("DeleteVpc", {"VpcId": vpc}),
        ("DeleteSecurityGroup", {"GroupId": group}),
        ("CreateSecurityGroup", {"VpcId": vpc, "GroupName": "a", "Description": "a"}),
        ("CreateNatGateway", {"SubnetId": subnet, "ConnectivityType": "private"}),
        (
            "AuthorizeSecurityGroupIngress",
            {"GroupId": group, "IpProtocol": "-1", "CidrIp": "0.0.0.0/0"},
        ),
    ]:
        assert refusal(call, operation, **params).code.endswith("NotFound"), operation
    peering = ec2(call, "CreateVpcPeeringConnection", VpcId="vpc-1", PeerVpcId=vpc)["VpcPeeringConnection"]
    (shown,) = ec2(call, "DescribeVpcPeeringConnections")["VpcPeeringConnections"]
    assert (peering["VpcPeeringConnectionId"], shown["Status"]["Code"]) == (
        shown["VpcPeeringConnectionId"],
        "failed",
    )
