"""The gates of IAM as steps: endpoint policy, identity policy, bucket policy, boundary, session."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from cloister.iam.decide import Decision, Gate, Match
from cloister.iam.model import Principal, Role
from cloister.s3.model import Bucket
from cloister.vpc.flow import Step
from cloister.vpc.model import VpcEndpoint
from cloister.world import World

_NAMES: dict[Gate, str] = {
    "endpoint": "endpoint policy",
    "trust": "trust policy",
    "resource": "bucket policy",
    "identity": "identity policy",
    "boundary": "permissions boundary",
    "session": "session policy",
}


def steps(world: World, decision: Decision, *, endpoint_id: str | None) -> Iterator[Step]:
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
    yield refusal(world, decision, endpoint_id=endpoint_id)


def refusal(world: World, decision: Decision, *, endpoint_id: str | None) -> Step:
    """A decision that refuses: AWS's sentence, then the statement, or whose policy has none that allows."""
    match = next((m for m in decision.matches if m.gate == decision.gate and m.effect == "Deny"), None)
    sentence = decision.sentence()
    if match is not None:
        sentence += f": {match.statement} of {match.origin}"
    elif silent := _silent(decision, endpoint_id):
        sentence += f": {silent} has no such statement"
    fix = _fix(world, decision, match, endpoint_id)
    return _step(decision, decision.gate, match, False, sentence, fix)


def _silent(decision: Decision, endpoint_id: str | None) -> str:
    """Whose policies have no statement that allows."""
    who = decision.request.principal
    match decision.gate:
        case "endpoint":
            return endpoint_id or ""
        case "resource" if decision.request.action.startswith("s3:"):
            return f"bucket {decision.request.resource.removeprefix('arn:aws:s3:::').partition('/')[0]}"
        case "identity" | "boundary" if isinstance(who, Principal) and who.role_name:
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


def _fix(world: World, decision: Decision, match: Match | None, endpoint_id: str | None) -> str | None:
    """The command that writes the deciding policy with one statement added, or with one taken out."""
    request = decision.request
    statement: dict[str, Any] = {"Effect": "Allow", "Action": request.action, "Resource": request.resource}
    if decision.gate == "endpoint" and endpoint_id is not None:
        endpoint = world.get(VpcEndpoint, endpoint_id)
        if endpoint is None:
            return None
        document = _changed(endpoint.policy, match, {**statement, "Principal": "*"})
        if not document["Statement"]:
            # a policy cannot be empty: the default one, which allows everything, is what is left
            return f"aws ec2 modify-vpc-endpoint --vpc-endpoint-id {endpoint_id} --reset-policy"
        return _command("aws ec2 modify-vpc-endpoint --vpc-endpoint-id", endpoint_id, document)
    if decision.gate == "resource":
        bucket = world.get(Bucket, request.resource.removeprefix("arn:aws:s3:::").partition("/")[0])
        if bucket is None:
            return None
        principal = request.principal
        who: Any = "*"
        if isinstance(principal, Principal):
            who = {"AWS": principal.role_arn or principal.arn}
        document = _changed(bucket.policy or "", match, {**statement, "Principal": who})
        if not document["Statement"]:
            return f"aws s3api delete-bucket-policy --bucket {bucket.name}"
        text = shlex.quote(json.dumps(document))
        return f"aws s3api put-bucket-policy --bucket {bucket.name} --policy {text}"
    if decision.gate == "identity" and isinstance(request.principal, Principal):
        return _identity_fix(world, request.principal, match, statement)
    return None


def _identity_fix(
    world: World, principal: Principal, match: Match | None, statement: dict[str, Any]
) -> str | None:
    role = world.get(Role, principal.role_name or "")
    if role is None:
        return None
    name = f"allow-{statement['Action'].replace(':', '-')}"
    if match is not None:
        prefix = f"role/{role.name}/policy/"
        if not match.origin.startswith(prefix):
            return f"aws iam detach-role-policy --role-name {role.name} --policy-arn {match.origin}"
        name = match.origin.removeprefix(prefix)
    document = _changed(role.inline_policies.get(name, ""), match, statement)
    if not document["Statement"]:
        return f"aws iam delete-role-policy --role-name {role.name} --policy-name {name}"
    return _command(f"aws iam put-role-policy --role-name {role.name} --policy-name", name, document)


def _changed(text: str, match: Match | None, statement: dict[str, Any]) -> dict[str, Any]:
    """The document without the statement that matched, or with `statement` when none did."""
    document: dict[str, Any] = json.loads(text) if text else {"Version": "2012-10-17", "Statement": []}
    given = document.get("Statement", [])
    found = list(given) if isinstance(given, list) else [given]
    if match is not None:
        del found[match.index]
    else:
        found.append(statement)
    return {**document, "Statement": found}


def _command(start: str, name: str, document: dict[str, Any]) -> str:
    return f"{start} {name} --policy-document {shlex.quote(json.dumps(document))}"
