"""The gates of IAM as steps: endpoint policy, identity policy, bucket policy, boundary, session."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from cloister.iam.decide import Decision, Gate, Match
from cloister.iam.managed import managed_policy
from cloister.iam.model import Principal, Role
from cloister.s3.model import Bucket
from cloister.vpc.flow import Step
from cloister.vpc.model import VpcEndpoint
from cloister.why import amend
from cloister.world import World

#: where an inline policy of a role hangs, as `iam/collect.py` names it
_INLINE = re.compile(r"role/([^/]+)/policy/(.+)")
#: AWS's quota: versions of a managed policy
_MOST_VERSIONS = 5
_NAMES: dict[Gate, str] = {
    "endpoint": "endpoint policy",
    "trust": "trust policy",
    "resource": "bucket policy",
    "identity": "identity policy",
    "boundary": "permissions boundary",
    "session": "session policy",
}


def steps(
    world: World, decision: Decision, *, endpoint_id: str | None, objects: str | None = None
) -> Iterator[Step]:
    """One step for each gate that had a say, in the order in which they are asked; the last one decided."""
    asked: list[Gate] = ["endpoint", "identity", "resource"] if endpoint_id else ["identity", "resource"]
    for gate in asked:
        if gate != decision.gate:
            yield from _passed(decision, gate)
    if decision.allowed:
        if decision.gate not in asked or not any(m.gate == decision.gate for m in decision.matches):
            yield _step(decision, decision.gate, None, True, decision.sentence())
        else:
            yield from _passed(decision, decision.gate)
        return
    yield refusal(world, decision, endpoint_id=endpoint_id, objects=objects)


def refusal(world: World, decision: Decision, *, endpoint_id: str | None, objects: str | None = None) -> Step:
    """A decision that refuses: AWS's sentence, then the statement, or whose policy has none that allows.
    `objects`: the ARN of all that would be asked for like this, for which a statement is then proposed."""
    match = next((m for m in decision.matches if m.gate == decision.gate and m.effect == "Deny"), None)
    sentence = decision.sentence()
    if match is not None:
        sentence += f": {match.statement} of {match.origin}"
        text = _text_of(world, match)
        condition = amend.condition_of(text, match.index) if text else ""
        if condition:
            sentence += f", whose condition is {condition}"
    elif silent := _silent(world, decision, endpoint_id):
        sentence += f": {silent} has no such statement"
    fix = _fix(world, decision, match, endpoint_id, objects)
    return _step(decision, decision.gate, match, False, sentence, fix)


def _silent(world: World, decision: Decision, endpoint_id: str | None) -> str:
    """Whose policies have no statement that allows."""
    who = decision.request.principal
    match decision.gate:
        case "endpoint":
            return endpoint_id or ""
        case "resource" if decision.request.action.startswith("s3:"):
            return f"bucket {decision.request.resource.removeprefix('arn:aws:s3:::').partition('/')[0]}"
        case "boundary" if isinstance(who, Principal) and (role := world.get(Role, who.role_name or "")):
            return role.boundary_arn or ""
        case "identity" if isinstance(who, Principal) and who.role_name:
            return f"role {who.role_name}"
    return ""


def _passed(decision: Decision, gate: Gate) -> Iterator[Step]:
    match = next((m for m in decision.matches if m.gate == gate and m.effect == "Allow"), None)
    if match is not None:
        what = f"{decision.request.action} on {decision.request.resource}"
        yield _step(decision, gate, match, True, f"{match.statement} of {match.origin} allows {what}.")


def _step(
    decision: Decision, gate: Gate, match: Match | None, allowed: bool, sentence: str, fix: str | None = None
) -> Step:
    origin = f"{match.origin}/{match.statement}" if match is not None else _NAMES[gate]
    return Step(gate=_NAMES[gate], allowed=allowed, origin=origin, sentence=sentence, fix=fix)


# --- the smallest change -----------------------------------------------------------------------------------


def _text_of(world: World, match: Match) -> str:
    """The document that a statement is of; "" when it is kept nowhere."""
    if match.gate == "endpoint":
        endpoint = world.get(VpcEndpoint, match.origin)
        return endpoint.policy if endpoint is not None else ""
    if match.gate == "resource":
        bucket = world.get(Bucket, match.origin.removeprefix("bucket policy of "))
        return (bucket.policy if bucket is not None else None) or ""
    inline = _INLINE.fullmatch(match.origin)
    if inline is not None:
        role = world.get(Role, inline[1])
        return role.inline_policies.get(inline[2], "") if role is not None else ""
    policy = managed_policy(world, match.origin)
    return policy.versions[policy.default_version] if policy is not None else ""


def _fix(
    world: World, decision: Decision, match: Match | None, endpoint_id: str | None, objects: str | None
) -> str | None:
    """The command that writes the deciding policy with one statement added, or with one narrowed."""
    request, caller = decision.request, decision.request.principal
    resource = objects or request.resource
    statement: dict[str, Any] = {"Effect": "Allow", "Action": request.action, "Resource": resource}
    document: dict[str, Any] | None
    if match is not None:
        text = _text_of(world, match)
        document = amend.sparing(text, match.index, decision.gate, request) if text else None
        if document is None:
            return None
        if isinstance(caller, Principal) and match.origin.startswith("arn:") and match.gate == "identity":
            policy = managed_policy(world, match.origin)
            if policy is None or policy.aws_managed or not document["Statement"]:
                return (
                    f"aws iam detach-role-policy --role-name {caller.role_name} --policy-arn {match.origin}"
                )
        return _written(world, match.gate, match.origin, document)
    if decision.gate == "endpoint" and endpoint_id is not None:
        endpoint = world.get(VpcEndpoint, endpoint_id)
        if endpoint is None:
            return None
        document = amend.allowing(endpoint.policy, {**statement, "Principal": "*"})
        return _written(world, "endpoint", endpoint_id, document)
    if not isinstance(caller, Principal):
        return None  # what would let the unsigned in would let in everybody
    if decision.gate == "resource":
        bucket = world.get(Bucket, request.resource.removeprefix("arn:aws:s3:::").partition("/")[0])
        if bucket is None:
            return None
        whom = {"AWS": caller.role_arn or caller.arn}
        document = amend.allowing(bucket.policy or "", {**statement, "Principal": whom})
        return _written(world, "resource", bucket.name, document)
    return of_role(world, caller, decision.gate, statement)


def of_role(world: World, caller: Principal, gate: Gate, statement: dict[str, Any]) -> str | None:
    """The command that adds a statement to a role's own policies, or to its boundary."""
    role = world.get(Role, caller.role_name or "")
    if role is not None and gate == "identity":
        action = statement["Action"]
        name = f"allow-{action.replace(':', '-')}" if isinstance(action, str) else "sagemaker-vpc"
        document = amend.allowing(role.inline_policies.get(name, ""), statement)
        return _written(world, "identity", f"role/{role.name}/policy/{name}", document)
    if role is not None and gate == "boundary" and role.boundary_arn is not None:
        policy = managed_policy(world, role.boundary_arn)
        if policy is not None and not policy.aws_managed:
            document = amend.allowing(policy.versions[policy.default_version], statement)
            return _written(world, "boundary", policy.arn, document)
    return None


def _written(world: World, gate: Gate, origin: str, document: dict[str, Any]) -> str | None:
    """The command that makes a policy be this document; one without a statement is not kept."""
    text = shlex.quote(json.dumps(document))
    empty = not document["Statement"]
    inline = _INLINE.fullmatch(origin)
    if gate == "endpoint":
        # the default policy, which allows everything, is what is left
        what = "--reset-policy" if empty else f"--policy-document {text}"
        return f"aws ec2 modify-vpc-endpoint --vpc-endpoint-id {origin} {what}"
    if gate == "resource":
        name = origin.removeprefix("bucket policy of ")
        if empty:
            return f"aws s3api delete-bucket-policy --bucket {name}"
        return f"aws s3api put-bucket-policy --bucket {name} --policy {text}"
    if inline is not None:
        names = f"--role-name {inline[1]} --policy-name {inline[2]}"
        if empty:
            return f"aws iam delete-role-policy {names}"
        return f"aws iam put-role-policy {names} --policy-document {text}"
    policy = managed_policy(world, origin)
    if policy is not None and not policy.aws_managed and not empty:
        make_room = ""
        if len(policy.versions) >= _MOST_VERSIONS:
            oldest = min(policy.versions.keys() - {policy.default_version}, key=lambda one: int(one[1:]))
            make_room = f"aws iam delete-policy-version --policy-arn {origin} --version-id {oldest} && "
        make = f"aws iam create-policy-version --policy-arn {origin} --policy-document {text}"
        return f"{make_room}{make} --set-as-default"
    return None
