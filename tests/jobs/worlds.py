"""A World with what a job needs: a VPC, subnets, a group, a role; and a request for a job in it."""

from __future__ import annotations

import json
from typing import Any

from cloister.iam.model import Role
from cloister.jobs.execution_role import VPC_ACTIONS
from cloister.vpc.model import GroupRule, RouteTable, RouteTableAssociation, SecurityGroup, Subnet, Vpc

ROLE_ARN = "arn:aws:iam::123456789012:role/jobs"


def role(*, service: str = "sagemaker.amazonaws.com", actions: tuple[str, ...] = VPC_ACTIONS) -> Role:
    return Role(
        name="jobs",
        role_id="AROAJOBSJOBSJOBSJOBS",
        trust_policy=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
                ],
            }
        ),
        inline_policies={
            "p": json.dumps(
                {
                    "Version": "2012-10-17",
                    "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}],
                }
            )
        },
        created=0.0,
    )


def documents(*, cidr: str = "10.0.1.0/24") -> list[object]:
    """subnet-1 and subnet-2 (a /28) and sg-1, which allows itself, in vpc-1; subnet-9 and sg-9 in vpc-9."""
    itself = [
        GroupRule(rule_id=f"sgr-{egress}", egress=egress, protocol="-1", group_id="sg-1")
        for egress in (True, False)
    ]
    main = RouteTableAssociation(association_id="rtbassoc-1", subnet_id=None, main=True)
    return [
        Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="a"),
        Vpc(vpc_id="vpc-9", cidr="10.0.0.0/16", cidr_association_id="b"),
        Subnet(subnet_id="subnet-1", vpc_id="vpc-1", cidr=cidr, zone="us-east-1a", zone_id="use1-az1"),
        Subnet(subnet_id="subnet-2", vpc_id="vpc-1", cidr="10.0.2.0/28", zone="us-east-1b", zone_id="x"),
        Subnet(subnet_id="subnet-9", vpc_id="vpc-9", cidr="10.0.1.0/24", zone="us-east-1a", zone_id="x"),
        SecurityGroup(group_id="sg-1", vpc_id="vpc-1", name="g", description="d", rules=tuple(itself)),
        RouteTable(route_table_id="rtb-1", vpc_id="vpc-1", number=1000, associations=(main,)),
        SecurityGroup(group_id="sg-9", vpc_id="vpc-9", name="g", description="d"),
    ]


def request(
    name: str = "job", *, instances: int = 1, subnets: tuple[str, ...] = ("subnet-1",)
) -> dict[str, Any]:
    return {
        "ProcessingJobName": name,
        "RoleArn": ROLE_ARN,
        "AppSpecification": {"ImageUri": "cloister/host", "ContainerEntrypoint": ["/bin/true"]},
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": instances,
                "InstanceType": "ml.m5.large",
                "VolumeSizeInGB": 1,
            }
        },
        "NetworkConfig": {
            "EnableNetworkIsolation": False,
            "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": list(subnets)},
        },
    }


def s3_input(name: str = "in", path: str = "/opt/ml/processing/in", **more: Any) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {"S3Uri": "s3://bkt/in/", "LocalPath": path, "S3DataType": "S3Prefix", **more},
    }


def s3_output(name: str = "out", path: str = "/opt/ml/processing/out", **more: Any) -> dict[str, Any]:
    return {
        "OutputName": name,
        "S3Output": {"S3Uri": "s3://bkt/out", "LocalPath": path, "S3UploadMode": "EndOfJob", **more},
    }
