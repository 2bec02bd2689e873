"""What a job's role must have first of all: SageMaker's trust, and what a job in a VPC needs. Pure."""

from __future__ import annotations

import json
import shlex
from typing import Any

from cloister.iam import collect
from cloister.iam.decide import Decision, Request, decide
from cloister.iam.model import Role, ServicePrincipal
from cloister.jobs import execution_role
from cloister.vpc.flow import Step
from cloister.why import amend, permission
from cloister.why.request import session_of
from cloister.world import World

_TRUST: dict[str, Any] = {
    "Effect": "Allow",
    "Principal": {"Service": execution_role.SERVICE},
    "Action": "sts:AssumeRole",
}


def untrusted(world: World, arn: str) -> Step | None:
    """Why SageMaker may not assume a role."""
    if execution_role.assume(world, arn) is not None:
        return None
    name = arn.rsplit("/", 1)[-1]
    role, account = world.get(Role, name), arn.split(":")[4]
    if role is None or not arn.endswith(f":role{role.path}{role.name}"):
        path = "/" + arn.split(":role/", 1)[-1].removesuffix(name)
        fix = f"aws iam create-role --role-name {name}{f' --path {path}' if path != '/' else ''} "
        fix += f"--assume-role-policy-document {_quoted(amend.allowing('', _TRUST))}"
        return _refused("trust policy", arn, f"There is no role {arn}.", fix)
    decision = collect.may_assume(
        world,
        role,
        ServicePrincipal(service=execution_role.SERVICE),
        {"aws:SourceAccount": account},
        account=account,
    )
    sentence = f"The trust policy of role {role.name} does not let {execution_role.SERVICE} assume it."
    command = f"aws iam update-assume-role-policy --role-name {role.name} --policy-document "
    document = _trusting(role, decision)
    return _refused(
        "trust policy", role.name, sentence, command + _quoted(document) if document is not None else None
    )


def _trusting(role: Role, decision: Decision) -> dict[str, Any] | None:
    denying = next((match for match in decision.matches if match.effect == "Deny"), None)
    if denying is None:
        return amend.allowing(role.trust_policy, _TRUST)
    document = amend.sparing(role.trust_policy, denying.index, "trust", decision.request)
    return document if document is None or document["Statement"] else amend.allowing("", _TRUST)


def unable(world: World, arn: str) -> Step | None:
    """What a role may not do that a job in a VPC needs. What no policy allows is told at once, with one
    change; of what is denied the first."""
    role = execution_role.assume(world, arn)
    session = session_of(role, arn.split(":")[4]) if role else None
    missing = execution_role.missing_permissions(world, session) if session is not None else []
    if role is None or session is None or not missing:
        return None
    policies = collect.identity_policies(world, session)
    decisions = [
        decide(Request(principal=session, action=action, resource="*"), policies) for action in missing
    ]
    sentence = (
        f"The execution role {arn} is not allowed to perform {', '.join(missing)}, "
        "which a job in a VPC needs. Allow it on resource *."
    )
    first = min(decisions, key=lambda each: each.reason == "EXPLICIT_DENY")
    refusal = permission.refusal(world, first, endpoint_id=None)
    if first.gate != "identity" or first.reason == "EXPLICIT_DENY":
        sentence += f" It is refused {refusal.sentence.partition(' on resource: * ')[2]}."
    fix = refusal.fix
    if first.reason == "IMPLICIT_DENY":
        silent = [
            each.request.action
            for each in decisions
            if (each.reason, each.gate) == (first.reason, first.gate)
        ]
        statement = {"Effect": "Allow", "Action": silent, "Resource": "*"}
        fix = permission.of_role(world, session, first.gate, statement)
    return _refused(refusal.gate, refusal.origin, sentence, fix)


def _refused(gate: str, origin: str, sentence: str, fix: str | None) -> Step:
    return Step(gate=gate, allowed=False, origin=origin, sentence=sentence, fix=fix)


def _quoted(document: dict[str, Any]) -> str:
    return shlex.quote(json.dumps(document))
