"""What CreateProcessingJob refuses, beyond the shapes, lengths, ranges and enums that the model tells.

Three kinds, each with a sentence that names the value: what AWS refuses; what AWS leaves open and would
end in a mess (paths that overlap); and what AWS accepts and Cloister does not do yet, which is refused by
name, never ignored.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from cloister.authorize import call_keys
from cloister.iam import collect
from cloister.iam.context import global_keys, resource_tags
from cloister.iam.decide import Request, decide
from cloister.iam.model import Role
from cloister.jobs import execution_role
from cloister.jobs.model import PROCESSING_PATH, SUBNET_TAG
from cloister.s3 import sse
from cloister.services.api import Call, Params
from cloister.vpc.model import SecurityGroup, Subnet
from cloister.vpc.service_network import hidden
from cloister.why.request import session_of
from cloister.wire.errors import AwsError


def invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message)


def _not_yet(what: str) -> AwsError:
    return invalid(f"Cloister does not implement {what} yet")


def check(call: Call, params: Params) -> None:
    """Raises AwsError for the first thing found wrong."""
    check_implemented(params)
    check_channels(params)
    vpc_config = (params.get("NetworkConfig") or {}).get("VpcConfig")
    if vpc_config:
        check_network(call, vpc_config)
    check_forced_subnet(params, vpc_config)
    check_role(call, params["RoleArn"])
    check_volume_key(call, params)


def check_implemented(params: Params) -> None:
    """Refuse by name what AWS accepts and Cloister does not do yet."""
    if any((params.get("ExperimentConfig") or {}).values()):
        raise _not_yet("ExperimentConfig")
    cluster = params["ProcessingResources"]["ClusterConfig"]
    if cluster.get("InstancePreferences"):
        raise _not_yet("ClusterConfig.InstancePreferences")
    _check_key(cluster.get("VolumeKmsKeyId"), "ClusterConfig.VolumeKmsKeyId")
    for each in params.get("ProcessingInputs") or ():
        _check_input_implemented(each)
    output_config = params.get("ProcessingOutputConfig") or {}
    _check_key(output_config.get("KmsKeyId"), "ProcessingOutputConfig.KmsKeyId")
    for each in output_config.get("Outputs") or ():
        name = each["OutputName"]
        if each.get("FeatureStoreOutput"):
            raise _not_yet(f"FeatureStoreOutput (output {name})")


def _check_key(key: str | None, member: str) -> None:
    if key and "alias/" in key:
        raise _not_yet(f"an alias as {member} ({key})")


def _check_input_implemented(given: dict[str, Any]) -> None:
    name = given["InputName"]
    if given.get("DatasetDefinition"):
        raise _not_yet(f"DatasetDefinition (input {name})")
    s3 = given.get("S3Input") or {}
    if s3.get("S3InputMode") == "Pipe":
        raise _not_yet(f"S3InputMode Pipe (input {name})")
    if s3.get("S3CompressionType") == "Gzip":
        raise _not_yet(f"S3CompressionType Gzip (input {name})")


def check_channels(params: Params) -> None:
    """Names, S3 URIs and local paths of inputs and outputs; and what only the cluster can tell."""
    cluster = params["ProcessingResources"]["ClusterConfig"]
    if not cluster.get("InstanceType"):
        raise invalid("Either InstanceType or InstancePreferences must be specified in ClusterConfig")
    paths: list[tuple[str, str]] = []
    for kind, channels in (
        ("Input", params.get("ProcessingInputs") or []),
        ("Output", (params.get("ProcessingOutputConfig") or {}).get("Outputs") or []),
    ):
        names: set[str] = set()
        for each in channels:
            name = each[f"{kind}Name"]
            what = f"{kind.lower()} {name}"
            if name in names:
                raise invalid(f"{kind}Name must be unique: {name} is given twice")
            names.add(name)
            s3 = each.get(f"S3{kind}")
            if not s3:
                raise invalid(f"S3{kind} must be specified for {what}")
            check_s3_uri(s3["S3Uri"], what)
            if each.get("AppManaged") and not s3.get("LocalPath"):
                continue
            paths.append((what, local_path(s3.get("LocalPath"), what)))
    _check_overlap(paths)


def check_s3_uri(uri: str, what: str) -> None:
    if uri.startswith("https://"):
        raise _not_yet(f"S3Uri with https:// ({what}: {uri})")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise invalid(f"S3Uri {uri} of {what} names no bucket")
    if any(part in (".", "..") for part in key.split("/")) or "\0" in key:
        raise invalid(f"S3Uri {uri} of {what} has a path segment that is not allowed")


def local_path(path: str | None, what: str) -> str:
    """The canonical local path. AWS: it "begins with /opt/ml/processing/"; required unless AppManaged."""
    if not path:
        raise invalid(f"LocalPath must be specified for {what}")
    parts = path.rstrip("/").split("/")
    if not path.startswith(PROCESSING_PATH + "/") or len(parts) < 5:
        raise invalid(f"LocalPath {path} of {what} must be under {PROCESSING_PATH}/")
    if any(part in ("", ".", "..") for part in parts[1:]) or "\0" in path:
        raise invalid(f"LocalPath {path} of {what} must not contain '.', '..' or empty segments")
    return "/".join(parts)


def _check_overlap(paths: list[tuple[str, str]]) -> None:
    """A channel may lie in an input: the SageMaker SDK puts its code at /opt/ml/processing/input/code, and
    AWS's examples put data at /opt/ml/processing/input. Choice of ours, where AWS does not say what happens:
    two channels cannot have one path, and no channel can lie in an output, which would upload it too."""
    ordered = sorted(paths, key=lambda each: each[1] + "/")
    for (one, path), (other, inner) in itertools.pairwise(ordered):
        within = (inner + "/").startswith(path + "/")
        if inner == path or (within and one.startswith("output ")):
            raise invalid(f"LocalPath {path} of {one} and LocalPath {inner} of {other} overlap")


def check_network(call: Call, vpc_config: dict[str, Any]) -> None:
    """Subnets and groups exist and are of one VPC."""
    vpcs: dict[str, str] = {}
    for subnet_id in vpc_config["Subnets"]:
        subnet = call.tx.get(Subnet, subnet_id)
        if subnet is None or hidden(call.tx, subnet):
            raise invalid(f"The subnet ID '{subnet_id}' does not exist")
        vpcs[subnet_id] = subnet.vpc_id
    first, vpc_id = next(iter(vpcs.items()))
    for subnet_id, other in vpcs.items():
        if other != vpc_id:
            raise invalid(
                f"Subnets {first} and {subnet_id} are in different VPCs ({vpc_id} and {other}): "
                "all subnets of a job must be in the same VPC"
            )
    for group_id in vpc_config["SecurityGroupIds"]:
        group = call.tx.get(SecurityGroup, group_id)
        if group is None or hidden(call.tx, group):
            raise invalid(f"The security group '{group_id}' does not exist")
        if group.vpc_id != vpc_id:
            raise invalid(f"Security group {group_id} and subnet {first} belong to different networks.")


def check_forced_subnet(params: Params, vpc_config: dict[str, Any] | None) -> None:
    """The tag that chooses among the job's subnets names one of them."""
    forced = [tag.get("Value", "") for tag in params.get("Tags") or () if tag["Key"] == SUBNET_TAG]
    named = vpc_config["Subnets"] if vpc_config else []
    if forced and forced[-1] not in named:
        raise invalid(
            f"The tag {SUBNET_TAG} must name one of the job's subnets "
            f"({', '.join(named) or 'it has none'}), not '{forced[-1]}'"
        )


def _passing(call: Call, arn: str) -> dict[str, Any]:
    """The condition keys of iam:PassRole."""
    role = call.tx.get(Role, arn.rpartition("/")[2])
    tags = resource_tags("iam", role.tags) if role is not None else {}
    return {**call_keys(call), "iam:PassedToService": execution_role.SERVICE, **tags}


def check_volume_key(call: Call, params: Params) -> None:
    """AWS (SageMaker API permissions): VolumeKmsKeyId needs kms:CreateGrant of the caller, or of the role."""
    key = params["ProcessingResources"]["ClusterConfig"].get("VolumeKmsKeyId")
    if not key:
        return
    resource = sse.key_arn(key, call.region, call.account)
    asked = Request(
        principal=call.principal, action="kms:CreateGrant", resource=resource, context=call_keys(call)
    )
    decision = decide(asked, collect.identity_policies(call.tx, call.principal))
    assumed = execution_role.assume(call.tx, params["RoleArn"])
    if decision.allowed or assumed is None:
        return
    session = session_of(assumed, call.account)
    keys = global_keys(session, now=call.now, region=call.region)
    by_role = replace(asked, principal=session, context=keys)
    if not decide(by_role, collect.identity_policies(call.tx, session)).allowed:
        raise AwsError("AccessDeniedException", decision.sentence())


def check_role(call: Call, arn: str) -> None:
    """The role is this account's, the caller may pass it, and SageMaker may assume it."""
    cannot = invalid(
        f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
        f"'{execution_role.SERVICE}' to assume the role."
    )
    if arn.split(":")[4] != call.account:
        raise cannot
    decision = decide(
        Request(
            principal=call.principal,
            action="iam:PassRole",
            resource=arn,
            context=_passing(call, arn),
        ),
        collect.identity_policies(call.tx, call.principal),
    )
    if not decision.allowed:
        raise AwsError("AccessDeniedException", decision.sentence())
    if execution_role.assume(call.tx, arn) is None:
        raise cannot
