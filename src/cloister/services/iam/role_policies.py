"""What hangs on a role: inline policies, attached managed policies, the permissions boundary.
AWS: IAM API reference, the operations of the same names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloister.iam.managed import managed_policy
from cloister.iam.model import Role
from cloister.iam.policy import LIMITS, parse, size_of
from cloister.services.api import Call, Params, operation
from cloister.services.iam import common
from cloister.services.iam.common import find_role, no_such, on_role
from cloister.wire.errors import AwsError

#: AWS: "IAM and AWS STS quotas", managed policies attached to a role
MAX_ATTACHED = 10


def _policy_context(call: Call, params: Params) -> dict[str, Any]:
    keys = {"iam:PolicyARN": params["PolicyArn"]} if "PolicyArn" in params else {}
    role = call.tx.get(Role, params["RoleName"])
    boundary = params.get("PermissionsBoundary") or (role.boundary_arn if role else None)
    return keys | ({"iam:PermissionsBoundary": boundary} if boundary else {})


def _no_inline(role: Role, name: str) -> AwsError:
    return no_such(f"The role policy with name {name} cannot be found on the role {role.name}.")


@operation("iam", "PutRolePolicy", resources=on_role, context=_policy_context)
def put_role_policy(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    parse(params["PolicyDocument"], "identity")
    policies = {**role.inline_policies, params["PolicyName"]: params["PolicyDocument"]}
    if sum(size_of(text) for text in policies.values()) > LIMITS["identity"]:
        raise AwsError(
            "LimitExceeded",
            f"Maximum policy size of {LIMITS['identity']} bytes exceeded for role {role.name}",
            409,
        )
    call.tx.put(replace(role, inline_policies=policies))
    return {}


@operation("iam", "GetRolePolicy", resources=on_role)
def get_role_policy(call: Call, params: Params) -> Params:
    role, name = find_role(call, params["RoleName"]), params["PolicyName"]
    if name not in role.inline_policies:
        raise _no_inline(role, name)
    return {
        "RoleName": role.name,
        "PolicyName": name,
        "PolicyDocument": common.encoded(role.inline_policies[name]),
    }


@operation("iam", "ListRolePolicies", resources=on_role)
def list_role_policies(call: Call, params: Params) -> Params:
    names = list(find_role(call, params["RoleName"]).inline_policies)
    return common.page(params, names, "PolicyNames", str, str)


@operation("iam", "DeleteRolePolicy", resources=on_role, context=_policy_context)
def delete_role_policy(call: Call, params: Params) -> Params:
    role, name = find_role(call, params["RoleName"]), params["PolicyName"]
    if name not in role.inline_policies:
        raise _no_inline(role, name)
    call.tx.put(replace(role, inline_policies={k: v for k, v in role.inline_policies.items() if k != name}))
    return {}


@operation("iam", "AttachRolePolicy", resources=on_role, context=_policy_context)
def attach_role_policy(call: Call, params: Params) -> Params:
    role, policy = find_role(call, params["RoleName"]), common.find_policy(call, params["PolicyArn"])
    if policy.arn in role.attached_policies:
        return {}
    if len(role.attached_policies) >= MAX_ATTACHED:
        raise AwsError("LimitExceeded", f"Cannot exceed quota for PoliciesPerRole: {MAX_ATTACHED}", 409)
    call.tx.put(replace(role, attached_policies=(*role.attached_policies, policy.arn)))
    return {}


@operation("iam", "DetachRolePolicy", resources=on_role, context=_policy_context)
def detach_role_policy(call: Call, params: Params) -> Params:
    role, arn = find_role(call, params["RoleName"]), params["PolicyArn"]
    if arn not in role.attached_policies:
        raise no_such(f"Policy {arn} was not found.")
    call.tx.put(replace(role, attached_policies=tuple(a for a in role.attached_policies if a != arn)))
    return {}


@operation("iam", "ListAttachedRolePolicies", resources=on_role)
def list_attached_role_policies(call: Call, params: Params) -> Params:
    prefix = params.get("PathPrefix", "/")
    attached = [managed_policy(call.tx, arn) for arn in find_role(call, params["RoleName"]).attached_policies]
    return common.page(
        params,
        [policy for policy in attached if policy is not None and policy.path.startswith(prefix)],
        "AttachedPolicies",
        lambda policy: f"{policy.name} {policy.arn}",
        lambda policy: {"PolicyName": policy.name, "PolicyArn": policy.arn},
    )


@operation("iam", "PutRolePermissionsBoundary", resources=on_role, context=_policy_context)
def put_role_permissions_boundary(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    policy = common.find_policy(call, params["PermissionsBoundary"])
    call.tx.put(replace(role, boundary_arn=policy.arn))
    return {}


@operation("iam", "DeleteRolePermissionsBoundary", resources=on_role, context=_policy_context)
def delete_role_permissions_boundary(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    if role.boundary_arn is None:
        raise no_such(f"The role with name {role.name} has no permissions boundary.")
    call.tx.put(replace(role, boundary_arn=None))
    return {}
