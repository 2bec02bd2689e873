"""What the story is told with: clients, and what is made by them and taken away again.

Benches and tests use it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3

IMAGE = "cloister/host"
Say = Callable[[str], None]

#: the seed's example policy (process-vpc.md, "Restrict Package Installation on the Processing Container")
DENY_REPOSITORY = {
    "Sid": "AmazonLinux2AMIRepositoryAccess",
    "Principal": "*",
    "Action": ["s3:GetObject"],
    "Effect": "Deny",
    "Resource": ["arn:aws:s3:::amazonlinux.*.amazonaws.com/*"],
}


class StoryError(Exception):
    """A step did not come out as stated; the text says which and how."""


@dataclass(slots=True, kw_only=True)
class Stage:
    """The clients, and what has been made so far (to be taken away in reverse)."""

    region: str
    account: str
    say: Say
    ec2: Any
    s3: Any
    iam: Any
    sts: Any
    sagemaker: Any
    logs: Any
    mark: str
    undo: list[Callable[[], Any]] = field(default_factory=list)


def stage(region: str, environment: dict[str, str], say: Say) -> Stage:
    """Clients from the variables `cloister env` prints."""
    session = boto3.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
    )

    def client(name: str) -> Any:
        return session.client(
            name, endpoint_url=environment["AWS_ENDPOINT_URL"], verify=environment["AWS_CA_BUNDLE"]
        )

    sts = client("sts")
    return Stage(
        region=region,
        account=sts.get_caller_identity()["Account"],
        say=say,
        ec2=client("ec2"),
        s3=client("s3"),
        iam=client("iam"),
        sts=sts,
        sagemaker=client("sagemaker"),
        logs=client("logs"),
        mark=f"{int(time.time()):x}",
    )


def make_role(on: Stage, name: str, buckets: list[str]) -> str:
    """An execution role that SageMaker and the account may assume, for these buckets."""
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
            },
            {
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{on.account}:root"},
                "Action": "sts:AssumeRole",
            },
        ],
    }
    rights = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload"],
                "Resource": [arn for b in buckets for arn in (f"arn:aws:s3:::{b}", f"arn:aws:s3:::{b}/*")],
            },
            {
                "Effect": "Allow",
                "Action": [
                    "ec2:CreateNetworkInterface",
                    "ec2:CreateNetworkInterfacePermission",
                    "ec2:DeleteNetworkInterface",
                    "ec2:DeleteNetworkInterfacePermission",
                    "ec2:DescribeNetworkInterfaces",
                    "ec2:DescribeVpcs",
                    "ec2:DescribeDhcpOptions",
                    "ec2:DescribeSubnets",
                    "ec2:DescribeSecurityGroups",
                    "logs:CreateLogGroup",
                    "logs:CreateLogStream",
                    "logs:PutLogEvents",
                    "logs:DescribeLogStreams",
                ],
                "Resource": "*",
            },
        ],
    }
    arn: str = on.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    on.undo.append(lambda: on.iam.delete_role(RoleName=name))
    on.iam.put_role_policy(RoleName=name, PolicyName="job", PolicyDocument=json.dumps(rights))
    on.undo.append(lambda: on.iam.delete_role_policy(RoleName=name, PolicyName="job"))
    return arn


def endpoint_policy(network_bucket: str, *, deny_repository: bool) -> str:
    """The custom endpoint policy: this bucket and the package repository, less the seed's Deny."""
    statements: list[dict[str, Any]] = [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [
                f"arn:aws:s3:::{network_bucket}",
                f"arn:aws:s3:::{network_bucket}/*",
                "arn:aws:s3:::amazonlinux.*.amazonaws.com/*",
            ],
        }
    ]
    if deny_repository:
        statements.append(DENY_REPOSITORY)
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def make_vpc(on: Stage, cidr: str) -> str:
    vpc: str = on.ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
    on.undo.append(lambda: on.ec2.delete_vpc(VpcId=vpc))
    return vpc


def make_subnet(on: Stage, vpc: str, cidr: str, zone: str) -> str:
    subnet: str = on.ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)["Subnet"]["SubnetId"]
    on.undo.append(lambda: on.ec2.delete_subnet(SubnetId=subnet))
    return subnet


def follow_table(on: Stage, subnet: str, table: str) -> None:
    association = on.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
    on.undo.append(lambda: on.ec2.disassociate_route_table(AssociationId=association))


def make_group(on: Stage, vpc: str, name: str, *, allow_itself: bool) -> str:
    group: str = on.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
    on.undo.append(lambda: on.ec2.delete_security_group(GroupId=group))
    if allow_itself:
        permission = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        on.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
        # A group that refers to itself is in use by itself only; it can be deleted with its rules.
    return group


def make_bucket(on: Stage, name: str) -> str:
    where = (
        {} if on.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": on.region}}
    )
    on.s3.create_bucket(Bucket=name, **where)
    on.undo.append(lambda: _empty_and_delete(on, name))
    return name


def _empty_and_delete(on: Stage, bucket: str) -> None:
    for page in on.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            on.s3.delete_object(Bucket=bucket, Key=item["Key"])
    on.s3.delete_bucket(Bucket=bucket)


def run_job(
    on: Stage,
    name: str,
    *,
    role: str,
    subnets: list[str],
    group: str,
    script: str,
    bucket: str,
    arguments: list[str] | None = None,
    instances: int = 1,
    with_data: bool = False,
    output: str | None = None,
    wait: bool = True,
) -> dict[str, Any]:
    """Create one Processing job and, unless told otherwise, wait for its end. The last Describe."""
    inputs = [
        {
            "InputName": "code",
            "S3Input": {
                "S3Uri": f"s3://{bucket}/code/{script}",
                "LocalPath": "/opt/ml/processing/input/code",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
            },
        }
    ]
    if with_data:
        inputs.append(
            {
                "InputName": "flights",
                "S3Input": {
                    "S3Uri": f"s3://{bucket}/input/",
                    "LocalPath": "/opt/ml/processing/input/flights",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                    "S3DataDistributionType": "ShardedByS3Key",
                },
            }
        )
    outputs = [
        {
            "OutputName": "result",
            "S3Output": {
                "S3Uri": output,
                "LocalPath": "/opt/ml/processing/output",
                "S3UploadMode": "EndOfJob",
            },
        }
    ]
    on.sagemaker.create_processing_job(
        ProcessingJobName=name,
        RoleArn=role,
        AppSpecification={
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["python3", f"/opt/ml/processing/input/code/{script}"],
            **({"ContainerArguments": arguments} if arguments else {}),
        },
        ProcessingInputs=inputs,
        ProcessingOutputConfig={"Outputs": outputs if output else []},
        ProcessingResources={
            "ClusterConfig": {"InstanceCount": instances, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        },
        NetworkConfig={"VpcConfig": {"Subnets": subnets, "SecurityGroupIds": [group]}},
        StoppingCondition={"MaxRuntimeInSeconds": 120},
    )
    on.undo.append(lambda: delete_job(on, name))
    return wait_for(on, name) if wait else {}


def delete_job(on: Stage, name: str) -> None:
    if on.sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"] in (
        "InProgress",
        "Stopping",
    ):
        on.sagemaker.stop_processing_job(ProcessingJobName=name)
        wait_for(on, name)
    on.sagemaker.delete_processing_job(ProcessingJobName=name)


def wait_for(on: Stage, name: str, timeout: float = 300) -> dict[str, Any]:
    """Poll Describe until the job is terminal."""
    deadline = time.monotonic() + timeout
    while True:
        job: dict[str, Any] = on.sagemaker.describe_processing_job(ProcessingJobName=name)
        if job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped"):
            return job
        if time.monotonic() > deadline:
            raise StoryError(f"{name} is still {job['ProcessingJobStatus']} after {timeout:.0f} s")
        time.sleep(0.1)


def job_log(on: Stage, name: str) -> list[str]:
    group = "/aws/sagemaker/ProcessingJobs"
    found = on.logs.filter_log_events(logGroupName=group, logStreamNamePrefix=f"{name}/")
    return [event["message"] for event in found["events"]]
