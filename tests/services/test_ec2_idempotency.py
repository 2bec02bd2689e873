from __future__ import annotations

import pytest
from tests.services.calls import make_call
from tests.services.ec2 import ec2, refusal

from cloister.services.api import Call

S3 = "com.amazonaws.us-east-1.s3"


@pytest.fixture
def call() -> Call:
    return make_call()


def test_a_create_that_is_repeated_with_its_token_makes_nothing_new(call: Call) -> None:
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet_id = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    for operation, params, other in [
        ("CreateRouteTable", {"VpcId": vpc_id}, {"TagSpecifications": []}),
        ("CreateVpcEndpoint", {"VpcId": vpc_id, "ServiceName": S3}, {"PolicyDocument": "{}"}),
        ("CreateNetworkInterface", {"SubnetId": subnet_id}, {"Description": "x"}),
        (
            "CreateManagedPrefixList",
            {"PrefixListName": "a", "AddressFamily": "IPv4", "MaxEntries": 1},
            {"MaxEntries": 2},
        ),
    ]:
        first = ec2(call, operation, **params, ClientToken="t")
        assert ec2(call, operation, **params, ClientToken="t") == first
        assert ec2(call, operation, **params, ClientToken="u") != first
        if operation != "CreateRouteTable":
            error = refusal(call, operation, **params | other, ClientToken="t")
            assert (error.code, "'t'" in error.message) == ("IdempotentParameterMismatch", True)


def test_a_token_is_forgotten_after_a_day_and_when_what_it_made_is_gone(call: Call) -> None:
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]

    def make() -> str:
        made: str = ec2(call, "CreateRouteTable", VpcId=vpc_id, ClientToken="t")["RouteTable"]["RouteTableId"]
        return made

    first = make()
    ec2(call, "DeleteRouteTable", RouteTableId=first)
    second = make()
    assert second != first
    call.now += 86_399
    assert make() == second
    call.now += 2
    assert make() != second


def test_a_token_too_long_is_refused(call: Call) -> None:
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    error = refusal(call, "CreateRouteTable", VpcId=vpc_id, ClientToken="t" * 65)
    assert error.code == "InvalidParameterValue"
