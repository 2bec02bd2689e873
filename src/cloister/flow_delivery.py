"""May a flow log's records be written where they shall go? Pure.

AWS: VPC guide, "IAM role for publishing flow logs to CloudWatch Logs" and "Amazon S3 bucket permissions for
flow logs".
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cloister.iam import collect
from cloister.iam import policy as iam_policy
from cloister.iam.decide import Policies, Request, decide
from cloister.iam.model import Principal, Role, ServicePrincipal
from cloister.s3.model import Bucket
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import bucket_and_prefix
from cloister.world import World

SERVICE = "vpc-flow-logs.amazonaws.com"
DELIVERY = "delivery.logs.amazonaws.com"
#: AWS: DescribeFlowLogs, DeliverLogsErrorMessage
ACCESS_ERROR, UNKNOWN_ERROR = "Access error", "Unknown error"


def session(world: World, log: FlowLog, account: str, region: str) -> Principal | None:
    """Whom records are written to CloudWatch Logs as: a session of the delivery role, if the service may
    assume it."""
    arn = log.role_arn or ""
    role = world.get(Role, arn.rsplit("/", 1)[-1])
    if role is None or not arn.endswith(f":role{role.path}{role.name}"):
        return None
    context = {
        "aws:SourceAccount": account,
        "aws:SourceArn": f"arn:aws:ec2:{region}:{account}:vpc-flow-log/{log.flow_log_id}",
    }
    allowed = collect.may_assume(world, role, ServicePrincipal(service=SERVICE), context, account=account)
    if not allowed.allowed:
        return None
    return Principal(
        arn=f"arn:aws:sts::{account}:assumed-role/{role.name}/{log.flow_log_id}",
        account=account,
        user_id=f"{role.role_id}:{log.flow_log_id}",
        access_key_id="",
        role_name=role.name,
        session_name=log.flow_log_id,
        role_arn=collect.role_arn(role, account),
    )


def may_log(world: World, who: Principal, action: str, resource: str) -> bool:
    """`resource` is "log-group:NAME:log-stream:STREAM", an ARN's end; `who` knows the account."""
    return decide(
        Request(principal=who, action=f"logs:{action}", resource=resource),
        collect.identity_policies(world, who),
    ).allowed


def may_put(world: World, log: FlowLog, key: str, account: str, region: str) -> bool:
    """May the log delivery service write this object? Only the bucket's policy can allow it."""
    name, _ = bucket_and_prefix(log.destination)
    bucket = world.get(Bucket, name)
    if bucket is None or bucket.policy is None:
        return False
    policies = replace(
        Policies(), resource=((f"bucket policy of {name}", iam_policy.parse(bucket.policy, "resource")),)
    )
    request = Request(
        principal=ServicePrincipal(service=DELIVERY),
        action="s3:PutObject",
        resource=f"arn:aws:s3:::{name}/{key}",
        resource_account=bucket.owner_account,
        context={
            "s3:x-amz-acl": "bucket-owner-full-control",
            "aws:SourceAccount": account,
            "aws:SourceArn": f"arn:aws:logs:{region}:{account}:{log.flow_log_id}",
            "aws:SecureTransport": "true",
            "aws:PrincipalServiceName": DELIVERY,
            "aws:PrincipalIsAWSService": "true",
        },
    )
    return decide(request, policies).allowed


def with_delivery(policy: str | None, bucket: str, prefix: str, account: str, region: str) -> str:
    """The bucket policy with the two statements that AWS adds for log delivery."""
    document: dict[str, Any] = json.loads(policy) if policy else {"Version": "2012-10-17", "Statement": []}
    statements = document.get("Statement", [])
    known = [statements] if isinstance(statements, dict) else list(statements)
    source = {
        "StringEquals": {"aws:SourceAccount": account},
        "ArnLike": {"aws:SourceArn": f"arn:aws:logs:{region}:{account}:*"},
    }
    owner = {"s3:x-amz-acl": "bucket-owner-full-control", "aws:SourceAccount": account}
    who = {"Service": DELIVERY}
    known += [
        {
            "Sid": f"AWSLogDeliveryWrite{len(known)}",
            "Effect": "Allow",
            "Principal": who,
            "Action": "s3:PutObject",
            "Resource": f"arn:aws:s3:::{bucket}/{prefix}AWSLogs/*",
            "Condition": {**source, "StringEquals": owner},
        },
        {
            "Sid": f"AWSLogDeliveryAclCheck{len(known)}",
            "Effect": "Allow",
            "Principal": who,
            "Action": "s3:GetBucketAcl",
            "Resource": f"arn:aws:s3:::{bucket}",
            "Condition": source,
        },
    ]
    return json.dumps({**document, "Statement": known})
