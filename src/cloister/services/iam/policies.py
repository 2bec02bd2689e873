"""Managed policies, their versions and tags. AWS: IAM API reference, the operations of the same names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloister import ids
from cloister.iam.managed import AWS_MANAGED
from cloister.iam.model import ManagedPolicy, Role
from cloister.iam.policy import MANAGED_POLICY_LIMIT, parse, size_of
from cloister.services.api import Call, Params, operation
from cloister.services.iam import common
from cloister.services.iam.common import find_policy, no_such, on_policy, own_policy
from cloister.wire.errors import AwsError

#: AWS: "IAM and AWS STS quotas", versions per managed policy
MAX_VERSIONS = 5


def _users(call: Call, arn: str) -> list[Role]:
    return [role for role in call.tx.all(Role) if arn in role.attached_policies]


def _bounded(call: Call, arn: str) -> list[Role]:
    return [role for role in call.tx.all(Role) if role.boundary_arn == arn]


def _shown(call: Call, policy: ManagedPolicy, *, full: bool = True) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "PolicyName": policy.name,
        "PolicyId": policy.policy_id,
        "Arn": policy.arn,
        "Path": policy.path,
        "DefaultVersionId": policy.default_version,
        "AttachmentCount": len(_users(call, policy.arn)),
        "PermissionsBoundaryUsageCount": len(_bounded(call, policy.arn)),
        "IsAttachable": True,
        "CreateDate": policy.created,
        "UpdateDate": policy.updated,
    }
    if full:
        if policy.description:
            shown["Description"] = policy.description
        shown["Tags"] = common.shown_tags(policy.tags)
    return shown


def _version(policy: ManagedPolicy, version: str, *, document: bool = False) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "VersionId": version,
        "IsDefaultVersion": version == policy.default_version,
        "CreateDate": policy.version_created.get(version, policy.created),
    }
    if document:
        shown["Document"] = common.encoded(policy.versions[version])
    return shown


def _check(document: str) -> str:
    parse(document, "identity")
    if size_of(document) > MANAGED_POLICY_LIMIT:
        raise AwsError("LimitExceeded", f"Cannot exceed quota for PolicySize: {MANAGED_POLICY_LIMIT}", 409)
    return document


def _check_version(policy: ManagedPolicy, version: str) -> None:
    if version not in policy.versions:
        raise no_such(f"Policy {policy.arn} version {version} does not exist or is not attachable.")


@operation(
    "iam",
    "CreatePolicy",
    resources=lambda call, p: [call.arn("iam", f"policy{p.get('Path', '/')}{p['PolicyName']}", region="")],
    context=common.tag_context,
    tagging="iam:TagPolicy",
)
def create_policy(call: Call, params: Params) -> Params:
    name, path = params["PolicyName"], common.check_path(params.get("Path", "/"))
    if any(policy.name.lower() == name.lower() for policy in call.tx.all(ManagedPolicy)):
        raise AwsError(
            "EntityAlreadyExists",
            f"A policy called {name} already exists. Duplicate names are not allowed.",
            409,
        )
    policy = ManagedPolicy(
        arn=call.arn("iam", f"policy{path}{name}", region=""),
        name=name,
        policy_id=ids.unique_id("ANPA"),
        path=path,
        description=params.get("Description", ""),
        versions={"v1": _check(params["PolicyDocument"])},
        version_created={"v1": call.now},
        created=call.now,
        updated=call.now,
        tags=common.tags_of(params.get("Tags", [])),
    )
    call.tx.put(policy)
    return {"Policy": _shown(call, policy)}


@operation("iam", "GetPolicy", resources=on_policy)
def get_policy(call: Call, params: Params) -> Params:
    return {"Policy": _shown(call, find_policy(call, params["PolicyArn"]))}


@operation("iam", "ListPolicies")
def list_policies(call: Call, params: Params) -> Params:
    scope, prefix = params.get("Scope", "All"), params.get("PathPrefix", "/")
    usage = params.get("PolicyUsageFilter")
    policies: list[ManagedPolicy] = []
    if scope in ("All", "Local"):
        policies += call.tx.all(ManagedPolicy)
    if scope in ("All", "AWS"):
        policies += AWS_MANAGED.values()

    def wanted(policy: ManagedPolicy) -> bool:
        attached, bounds = bool(_users(call, policy.arn)), bool(_bounded(call, policy.arn))
        if params.get("OnlyAttached") and not (attached or bounds):
            return False
        if usage == "PermissionsPolicy" and not attached:
            return False
        if usage == "PermissionsBoundary" and not bounds:
            return False
        return policy.path.startswith(prefix)

    return common.page(
        params,
        [policy for policy in policies if wanted(policy)],
        "Policies",
        lambda policy: f"{policy.name} {policy.arn}",
        lambda policy: _shown(call, policy, full=False),
    )


@operation("iam", "DeletePolicy", resources=on_policy)
def delete_policy(call: Call, params: Params) -> Params:
    policy = own_policy(call, params["PolicyArn"])
    users = [*_users(call, policy.arn), *_bounded(call, policy.arn)]
    if users:
        raise AwsError(
            "DeleteConflict",
            "Cannot delete a policy attached to entities: "
            + ", ".join(sorted({f"role {role.name}" for role in users})),
            409,
        )
    if len(policy.versions) > 1:
        raise AwsError(
            "DeleteConflict",
            "This policy has more than one version. Before you delete a policy, you must delete the policy's "
            f"other versions. The default version is deleted with the policy: {', '.join(policy.versions)}",
            409,
        )
    call.tx.delete(ManagedPolicy, policy.arn)
    return {}


@operation("iam", "CreatePolicyVersion", resources=on_policy)
def create_policy_version(call: Call, params: Params) -> Params:
    policy = own_policy(call, params["PolicyArn"])
    document = _check(params["PolicyDocument"])
    if len(policy.versions) >= MAX_VERSIONS:
        raise AwsError(
            "LimitExceeded",
            "A managed policy can have up to 5 versions. Before you create a new version, you must delete an "
            "existing version.",
            409,
        )
    # Version numbers are never used twice, also after the newest was deleted.
    number = max((int(v[1:]) for v in policy.version_created), default=0) + 1
    version = f"v{number}"
    policy = replace(
        policy,
        versions={**policy.versions, version: document},
        version_created={**policy.version_created, version: call.now},
        default_version=version if params.get("SetAsDefault") else policy.default_version,
        updated=call.now,
    )
    call.tx.put(policy)
    return {"PolicyVersion": _version(policy, version)}


@operation("iam", "GetPolicyVersion", resources=on_policy)
def get_policy_version(call: Call, params: Params) -> Params:
    policy = find_policy(call, params["PolicyArn"])
    _check_version(policy, params["VersionId"])
    return {"PolicyVersion": _version(policy, params["VersionId"], document=True)}


@operation("iam", "ListPolicyVersions", resources=on_policy)
def list_policy_versions(call: Call, params: Params) -> Params:
    policy = find_policy(call, params["PolicyArn"])
    # Newest first, as AWS does; the key makes the numbers sort as text.
    return common.page(
        params,
        list(policy.versions),
        "Versions",
        lambda version: f"{10**9 - int(version[1:]):010}",
        lambda version: _version(policy, version),
    )


@operation("iam", "DeletePolicyVersion", resources=on_policy)
def delete_policy_version(call: Call, params: Params) -> Params:
    policy, version = own_policy(call, params["PolicyArn"]), params["VersionId"]
    _check_version(policy, version)
    if version == policy.default_version:
        raise AwsError("DeleteConflict", f"Cannot delete the default version of a policy: {version}", 409)
    # `version_created` keeps the number, so that it is not used again.
    versions = {k: v for k, v in policy.versions.items() if k != version}
    call.tx.put(replace(policy, versions=versions, updated=call.now))
    return {}


@operation("iam", "SetDefaultPolicyVersion", resources=on_policy)
def set_default_policy_version(call: Call, params: Params) -> Params:
    policy = own_policy(call, params["PolicyArn"])
    _check_version(policy, params["VersionId"])
    call.tx.put(replace(policy, default_version=params["VersionId"], updated=call.now))
    return {}


@operation("iam", "TagPolicy", resources=on_policy, context=common.tag_context)
def tag_policy(call: Call, params: Params) -> Params:
    policy = own_policy(call, params["PolicyArn"])
    call.tx.put(replace(policy, tags=common.tags_of(params["Tags"], policy.tags)))
    return {}


@operation("iam", "UntagPolicy", resources=on_policy, context=common.tag_context)
def untag_policy(call: Call, params: Params) -> Params:
    policy = own_policy(call, params["PolicyArn"])
    call.tx.put(replace(policy, tags=common.without_tags(policy.tags, params["TagKeys"])))
    return {}


@operation("iam", "ListPolicyTags", resources=on_policy)
def list_policy_tags(call: Call, params: Params) -> Params:
    return common.page_of_tags(params, find_policy(call, params["PolicyArn"]).tags)


@operation("iam", "ListEntitiesForPolicy", resources=on_policy)
def list_entities_for_policy(call: Call, params: Params) -> Params:
    policy = find_policy(call, params["PolicyArn"])
    prefix, usage = params.get("PathPrefix", "/"), params.get("PolicyUsageFilter")
    kind = params.get("EntityFilter")
    found: dict[str, Role] = {}
    if kind in (None, "Role", "LocalManagedPolicy", "AWSManagedPolicy"):
        if usage != "PermissionsBoundary":
            found |= {role.name: role for role in _users(call, policy.arn)}
        if usage != "PermissionsPolicy":
            found |= {role.name: role for role in _bounded(call, policy.arn)}
    roles = [role for role in found.values() if role.path.startswith(prefix)]
    shown = common.page(
        params,
        roles,
        "PolicyRoles",
        lambda role: role.name,
        lambda role: {"RoleName": role.name, "RoleId": role.role_id},
    )
    return {"PolicyGroups": [], "PolicyUsers": [], **shown}
