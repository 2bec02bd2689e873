"""Whatever fits the model is answered, or refused with an AwsError; nothing else ever comes out."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.services.calls import ACCOUNT, make_call
from tests.services.ec2 import ec2, model

from cloister.services.api import OPERATIONS
from cloister.services.ec2.default_vpc import seed
from cloister.wire.errors import AwsError
from cloister.world import KINDS, World

NAMES = sorted(name for service, name in OPERATIONS if service == "ec2")
TEXTS = ["", "x", "é\u2028", "-1", "tcp", "10.0.0.0/24", "10.0.0.9", "0.0.0.0/0", "::/0", "*", "default"]


def _world() -> tuple[World, list[str]]:
    call = make_call()
    seed(call.tx, "us-east-1", ACCOUNT)
    vpc_id = ec2(call, "CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet_id = ec2(call, "CreateSubnet", VpcId=vpc_id, CidrBlock="10.0.0.0/25")["Subnet"]["SubnetId"]
    table_id = ec2(call, "CreateRouteTable", VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    ec2(call, "AssociateRouteTable", RouteTableId=table_id, SubnetId=subnet_id)
    ec2(call, "CreateNetworkInterface", SubnetId=subnet_id)
    ec2(call, "CreateVpcEndpoint", VpcId=vpc_id, ServiceName="com.amazonaws.us-east-1.s3")
    group_id = ec2(call, "CreateSecurityGroup", VpcId=vpc_id, GroupName="a", Description="a")["GroupId"]
    rules = ec2(call, "DescribeSecurityGroupRules")["SecurityGroupRules"]
    tables = ec2(call, "DescribeRouteTables")["RouteTables"]
    known = [getattr(doc, kind.key) for kind in KINDS.values() for doc in call.tx.all(kind.cls)]
    known += [rule["SecurityGroupRuleId"] for rule in rules]
    known += [one["RouteTableAssociationId"] for table in tables for one in table["Associations"]]
    return call.tx.commit(), [*known, group_id]


WORLD, KNOWN = _world()


def _value(shape: Any, random: Random, name: str, depth: int = 0) -> Any:
    if shape.type_name == "structure":
        return {
            member: _value(inner, random, member, depth + 1)
            for member, inner in shape.members.items()
            if member in shape.required_members or random.random() < (0.25 if depth else 0.3)
        }
    if shape.type_name == "list":
        return [_value(shape.member, random, name, depth + 1) for _ in range(random.randint(1, 2))]
    if shape.type_name == "boolean":
        return random.random() < 0.2
    if shape.type_name in ("integer", "long"):
        return random.choice([-1, 0, 1, 5, 22, 80, 255, 65535, 65536, 10**6])
    if shape.type_name == "timestamp":
        return random.choice([0, 10**9, 2 * 10**9])
    if shape.enum:
        return random.choice(shape.enum)
    # Mostly an id of the kind the parameter asks for, so that calls get beyond the first look-up.
    kin = [one for one in KNOWN if name.lower().startswith(one.partition("-")[0][:3])]
    return random.choice(random.choice([kin or KNOWN, KNOWN, TEXTS]))


@pytest.mark.parametrize("operation", NAMES)
@settings(max_examples=settings.default.max_examples // 5, suppress_health_check=[HealthCheck.too_slow])
@given(random=st.randoms(use_true_random=False))
def test_only_aws_errors_come_out(operation: str, random: Random) -> None:
    call = make_call(WORLD)
    shape = model().operation_model(operation).input_shape
    params = _value(shape, random, "")
    with suppress(AwsError):
        resources = OPERATIONS[("ec2", operation)].resources
        if resources is not None:
            assert all(isinstance(arn, str) for arn in resources(call, params))
        ec2(call, operation, **params)
