"""Roles, their trust policies and tags. AWS: IAM API reference, the operations of the same names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloister import ids
from cloister.iam.model import Role
from cloister.iam.policy import parse
from cloister.services.api import Call, Params, operation
from cloister.services.iam import common
from cloister.services.iam.common import find_role, on_role, role_arn
from cloister.wire.errors import AwsError


def _shown(call: Call, role: Role, *, full: bool = True) -> dict[str, Any]:
    """`full` is GetRole's answer; lists leave tags, boundary and last use out, as AWS does."""
    shown: dict[str, Any] = {
        "Path": role.path,
        "RoleName": role.name,
        "RoleId": role.role_id,
        "Arn": role_arn(call, role),
        "CreateDate": role.created,
        "AssumeRolePolicyDocument": common.encoded(role.trust_policy),
        "MaxSessionDuration": role.max_session_seconds,
    }
    if role.description:
        shown["Description"] = role.description
    if not full:
        return shown
    if role.tags:
        shown["Tags"] = common.shown_tags(role.tags)
    if role.boundary_arn:
        shown["PermissionsBoundary"] = {
            "PermissionsBoundaryType": "PermissionsBoundaryPolicy",
            "PermissionsBoundaryArn": role.boundary_arn,
        }
    shown["RoleLastUsed"] = (
        {} if role.last_used is None else {"LastUsedDate": role.last_used, "Region": call.region}
    )
    return shown


def _boundary_context(call: Call, params: Params) -> dict[str, Any]:
    arn = params.get("PermissionsBoundary")
    keys = {"iam:PermissionsBoundary": arn} if arn else {}
    return keys | common.tag_context(call, params)


@operation("iam", "CreateRole", resources=on_role, context=_boundary_context, tagging="iam:TagRole")
def create_role(call: Call, params: Params) -> Params:
    name, path = params["RoleName"], common.check_path(params.get("Path", "/"))
    if any(role.name.lower() == name.lower() for role in call.tx.all(Role)):
        raise AwsError("EntityAlreadyExists", f"Role with name {name} already exists.", 409)
    parse(params["AssumeRolePolicyDocument"], "trust")
    boundary = params.get("PermissionsBoundary")
    if boundary is not None:
        common.find_policy(call, boundary)
    role = Role(
        name=name,
        role_id=ids.unique_id("AROA"),
        path=path,
        trust_policy=params["AssumeRolePolicyDocument"],
        description=params.get("Description", ""),
        max_session_seconds=params.get("MaxSessionDuration", 3600),
        boundary_arn=boundary,
        created=call.now,
        tags=common.tags_of(params.get("Tags", [])),
    )
    call.tx.put(role)
    shown = _shown(call, role)
    del shown["RoleLastUsed"]  # AWS shows it in GetRole only
    return {"Role": shown}


@operation("iam", "GetRole", resources=on_role)
def get_role(call: Call, params: Params) -> Params:
    return {"Role": _shown(call, find_role(call, params["RoleName"]))}


@operation(
    "iam",
    "ListRoles",
    resources=lambda call, p: [call.arn("iam", f"role{p.get('PathPrefix', '/')}", region="")],
)
def list_roles(call: Call, params: Params) -> Params:
    prefix = params.get("PathPrefix", "/")
    roles = [role for role in call.tx.all(Role) if role.path.startswith(prefix)]
    return common.page(params, roles, "Roles", lambda r: r.name, lambda r: _shown(call, r, full=False))


@operation("iam", "DeleteRole", resources=on_role)
def delete_role(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    if role.attached_policies:
        raise AwsError(
            "DeleteConflict",
            f"Cannot delete entity, must detach all policies first: {', '.join(role.attached_policies)}",
            409,
        )
    if role.inline_policies:
        raise AwsError(
            "DeleteConflict",
            f"Cannot delete entity, must delete policies first: {', '.join(role.inline_policies)}",
            409,
        )
    call.tx.delete(Role, role.name)
    return {}


# Who deletes a role looks here first, and so does Terraform.
@operation("iam", "ListInstanceProfilesForRole", resources=on_role)
def list_instance_profiles_for_role(call: Call, params: Params) -> Params:
    """There are no instances, and so no profiles."""
    find_role(call, params["RoleName"])
    return {"InstanceProfiles": [], "IsTruncated": False}


@operation("iam", "UpdateRole", resources=on_role)
def update_role(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    call.tx.put(
        replace(
            role,
            description=params.get("Description", role.description),
            max_session_seconds=params.get("MaxSessionDuration", role.max_session_seconds),
        )
    )
    return {}


@operation("iam", "UpdateRoleDescription", resources=on_role)
def update_role_description(call: Call, params: Params) -> Params:
    role = replace(find_role(call, params["RoleName"]), description=params["Description"])
    call.tx.put(role)
    return {"Role": _shown(call, role)}


@operation("iam", "UpdateAssumeRolePolicy", resources=on_role)
def update_assume_role_policy(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    parse(params["PolicyDocument"], "trust")
    call.tx.put(replace(role, trust_policy=params["PolicyDocument"]))
    return {}


@operation("iam", "TagRole", resources=on_role, context=common.tag_context)
def tag_role(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    call.tx.put(replace(role, tags=common.tags_of(params["Tags"], role.tags)))
    return {}


@operation("iam", "UntagRole", resources=on_role, context=common.tag_context)
def untag_role(call: Call, params: Params) -> Params:
    role = find_role(call, params["RoleName"])
    call.tx.put(replace(role, tags=common.without_tags(role.tags, params["TagKeys"])))
    return {}


@operation("iam", "ListRoleTags", resources=on_role)
def list_role_tags(call: Call, params: Params) -> Params:
    return common.page_of_tags(params, find_role(call, params["RoleName"]).tags)
