"""The AWS-managed policies that SageMaker users attach by name, in a reduced wording of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cloister.iam.model import ManagedPolicy
from cloister.world import World

#: AWS's own policies carry AWS's account in their ARN; their ids and dates are those of the real ones,
#: from memory
_ARN = "arn:aws:iam::aws:policy/"


def _policy(name: str, policy_id: str, created: float, description: str, *statements: Any) -> ManagedPolicy:
    return ManagedPolicy(
        arn=_ARN + name,
        name=name,
        policy_id=policy_id,
        description=description,
        versions={"v1": json.dumps({"Version": "2012-10-17", "Statement": list(statements)})},
        version_created={"v1": created},
        created=created,
        updated=created,
        aws_managed=True,
    )


def _full(name: str, policy_id: str, created: float, what: str, *actions: str) -> ManagedPolicy:
    """A policy that allows these actions on everything."""
    return _policy(
        name, policy_id, created, what, {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    )


AWS_MANAGED: Mapping[str, ManagedPolicy] = {
    policy.arn: policy
    for policy in (
        _policy(
            "AdministratorAccess",
            "ANPAIWMBCKSKIEE64ZLYK",
            1423219180.0,
            "Provides full access to AWS services and resources.",
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
        ),
        _policy(
            "AmazonS3FullAccess",
            "ANPAIFIR6V6BVTRAHWINE",
            1423219258.0,
            "Provides full access to all buckets.",
            {"Effect": "Allow", "Action": ["s3:*", "s3-object-lambda:*"], "Resource": "*"},
        ),
        _policy(
            "AmazonS3ReadOnlyAccess",
            "ANPAIZTJ4DXE7G6AGAE6M",
            1423219259.0,
            "Provides read only access to all buckets.",
            {
                "Effect": "Allow",
                "Action": ["s3:Get*", "s3:List*", "s3:Describe*", "s3-object-lambda:Get*"],
                "Resource": "*",
            },
        ),
        _policy(
            "PowerUserAccess",
            "ANPAJYRXTHIB4FOVS3ZXS",
            1423219187.0,
            "Provides full access to AWS services and resources, but not to users and roles.",
            {"Effect": "Allow", "NotAction": ["iam:*", "organizations:*", "account:*"], "Resource": "*"},
            {
                "Effect": "Allow",
                "Action": ["iam:ListRoles", "iam:CreateServiceLinkedRole", "iam:DeleteServiceLinkedRole"],
                "Resource": "*",
            },
        ),
        _full(
            "IAMFullAccess", "ANPAI7XKCFMBPM3QQRRVQ", 1423219178.0, "Provides full access to IAM.", "iam:*"
        ),
        _full(
            "AmazonEC2FullAccess",
            "ANPAI3VAJF5ZCRZ7MCQE6",
            1423219215.0,
            "Provides full access to EC2.",
            "ec2:*",
        ),
        _full(
            "AmazonVPCFullAccess",
            "ANPAJBWPGNOVKZD3JI2P2",
            1423219296.0,
            "Provides full access to VPCs.",
            *("ec2:*Vpc*", "ec2:*Subnet*", "ec2:*SecurityGroup*", "ec2:*Route*", "ec2:*NetworkAcl*"),
            *("ec2:*Gateway*", "ec2:*Address*", "ec2:*DhcpOptions*", "ec2:*FlowLogs", "ec2:*PrefixList*"),
            *("ec2:*NetworkInterface*", "ec2:*Tags", "ec2:DescribeAvailabilityZones"),
        ),
        _full(
            "CloudWatchLogsFullAccess",
            "ANPAJ3ZGNWK2R5HW5BQFO",
            1423219203.0,
            "Provides full access to CloudWatch Logs.",
            *("logs:*", "cloudwatch:GenerateQuery"),
        ),
        _full(
            "CloudWatchLogsReadOnlyAccess",
            "ANPAJ2YIYDYSNNEHK3VKW",
            1423219204.0,
            "Provides read only access to CloudWatch Logs.",
            *("logs:Describe*", "logs:Get*", "logs:List*", "logs:FilterLogEvents", "logs:TestMetricFilter"),
        ),
        _full(
            "AmazonEC2ContainerRegistryReadOnly",
            "ANPAIFYZPA37OOHVIH7KQ",
            1450717185.0,
            "Provides read only access to ECR.",
            *("ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer"),
            *("ecr:BatchGetImage", "ecr:Describe*", "ecr:List*", "ecr:GetRepositoryPolicy"),
            *("ecr:GetLifecyclePolicy", "ecr:GetLifecyclePolicyPreview"),
        ),
        _full(
            "AmazonSageMakerReadOnly",
            "ANPAJTZ2FTFCQ6CFLQA2O",
            1511973060.0,
            "Provides read only access to SageMaker.",
            *("sagemaker:Describe*", "sagemaker:List*", "sagemaker:BatchGetMetrics", "sagemaker:Search"),
        ),
        _policy(
            "AmazonSageMakerFullAccess",
            "ANPAJZ5IWYMXO5QDB4QOG",
            1511972969.0,
            "Provides full access to SageMaker, and what its jobs need of other services.",
            {"Effect": "Allow", "Action": "sagemaker:*", "Resource": "*"},
            {
                "Effect": "Allow",
                "Action": [
                    "cloudwatch:GetMetricData",
                    "cloudwatch:ListMetrics",
                    "cloudwatch:PutMetricData",
                    "ec2:CreateNetworkInterface",
                    "ec2:CreateNetworkInterfacePermission",
                    "ec2:CreateVpcEndpoint",
                    "ec2:DeleteNetworkInterface",
                    "ec2:DeleteNetworkInterfacePermission",
                    "ec2:DescribeDhcpOptions",
                    "ec2:DescribeNetworkInterfaces",
                    "ec2:DescribeRouteTables",
                    "ec2:DescribeSecurityGroups",
                    "ec2:DescribeSubnets",
                    "ec2:DescribeVpcEndpoints",
                    "ec2:DescribeVpcs",
                    "ecr:BatchCheckLayerAvailability",
                    "ecr:BatchGetImage",
                    "ecr:Describe*",
                    "ecr:GetAuthorizationToken",
                    "ecr:GetDownloadUrlForLayer",
                    "iam:ListRoles",
                    "kms:DescribeKey",
                    "kms:ListAliases",
                    "logs:CreateLogGroup",
                    "logs:CreateLogStream",
                    "logs:DescribeLogGroups",
                    "logs:DescribeLogStreams",
                    "logs:GetLogEvents",
                    "logs:PutLogEvents",
                ],
                "Resource": "*",
            },
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                "Resource": [
                    "arn:aws:s3:::*SageMaker*",
                    "arn:aws:s3:::*Sagemaker*",
                    "arn:aws:s3:::*sagemaker*",
                ],
            },
            {
                "Effect": "Allow",
                "Action": "s3:GetObject",
                "Resource": "*",
                "Condition": {"StringEqualsIgnoreCase": {"s3:ExistingObjectTag/SageMaker": "true"}},
            },
            {
                "Effect": "Allow",
                "Action": [
                    "s3:CreateBucket",
                    "s3:GetBucketLocation",
                    "s3:ListBucket",
                    "s3:ListAllMyBuckets",
                    "s3:GetBucketCors",
                    "s3:PutBucketCors",
                ],
                "Resource": "*",
            },
            {
                "Effect": "Allow",
                "Action": "iam:PassRole",
                "Resource": "arn:aws:iam::*:role/*",
                "Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
            },
        ),
    )
}


def managed_policy(world: World, arn: str) -> ManagedPolicy | None:
    """A managed policy by ARN, AWS's or the account's."""
    return AWS_MANAGED.get(arn) or world.get(ManagedPolicy, arn)
