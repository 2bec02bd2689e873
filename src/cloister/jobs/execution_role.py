"""The role a job runs as: may SageMaker assume it, and may it do what a job in a VPC needs. Pure."""

from __future__ import annotations

from cloister.iam import collect
from cloister.iam.decide import Request, decide
from cloister.iam.model import Principal, Role, ServicePrincipal
from cloister.world import World

SERVICE = "sagemaker.amazonaws.com"
#: how the role's sessions are called: arn:aws:sts::ACCOUNT:assumed-role/ROLE/SageMaker
SESSION_NAME = "SageMaker"

#: AWS: "SageMaker roles", CreateProcessingJob API: execution role permissions with a VpcConfig
VPC_ACTIONS = (
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeVpcs",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeSubnets",
    "ec2:DescribeSecurityGroups",
)


def assume(world: World, arn: str) -> Role | None:
    """The role with exactly this ARN, if it exists and its trust policy lets SageMaker assume it."""
    role = world.get(Role, arn.rsplit("/", 1)[-1])
    if role is None or not arn.endswith(f":role{role.path}{role.name}"):
        return None
    account = arn.split(":")[4]
    # AWS: services give aws:SourceAccount when they assume a role (the confused deputy problem)
    decision = collect.may_assume(
        world,
        role,
        ServicePrincipal(service=SERVICE),
        {"aws:SourceAccount": account},
        account=account,
    )
    return role if decision.allowed else None


def missing_permissions(world: World, session: Principal) -> list[str]:
    """The actions of `VPC_ACTIONS` that a session of the role may not do, on "*" as the role needs them."""
    policies = collect.identity_policies(world, session)
    return [
        action
        for action in VPC_ACTIONS
        if not decide(Request(principal=session, action=action, resource="*"), policies).allowed
    ]
