"""Asking what a decision would be. AWS: IAM API reference, SimulatePrincipalPolicy, SimulateCustomPolicy."""

from __future__ import annotations

from typing import Any

from cloister.iam import collect
from cloister.iam.decide import Decision, Policies, Request, Sourced, decide
from cloister.iam.model import Principal, Role
from cloister.iam.policy import Kind, parse
from cloister.services.api import Call, Params, operation
from cloister.services.iam import common
from cloister.wire.errors import AwsError

#: decisions of one call: everybody waits for them, some 0.05 ms each
MOST_RESULTS = 2_000
_DECISIONS = {"ALLOW": "allowed", "EXPLICIT_DENY": "explicitDeny", "IMPLICIT_DENY": "implicitDeny"}


@operation("iam", "SimulateCustomPolicy")
def simulate_custom_policy(call: Call, params: Params) -> Params:
    if "OrderedOrganizationPolicyInputList" in params:
        raise AwsError("InvalidInput", "Cloister has no organizations: OrderedOrganizationPolicyInputList.")
    return _simulate(call, params, call.principal, ())


@operation("iam", "SimulatePrincipalPolicy", resources=lambda call, p: [p["PolicySourceArn"]])
def simulate_principal_policy(call: Call, params: Params) -> Params:
    """The source is a role: Cloister has no users and groups."""
    if "PolicyExclusionList" in params:
        raise AwsError("InvalidInput", "Cloister does not implement PolicyExclusionList.")
    arn = params["PolicySourceArn"]
    role = call.tx.get(Role, arn.rsplit("/", 1)[-1])
    if role is None or common.role_arn(call, role) != arn:
        raise common.no_such(f"The role {arn} cannot be found.")
    # Not a session: `role_arn` names the caller, and no session policies bound it.
    caller = Principal(
        arn=arn,
        account=call.account,
        user_id=f"{role.role_id}:simulation",
        access_key_id="",
        role_name=role.name,
        role_arn=arn,
    )
    own = collect.role_policies(call.tx, role)
    return _simulate(call, params, caller, own, collect.boundary(call.tx, role))


def _inputs(params: Params, member: str, kind: Kind) -> tuple[Sourced, ...]:
    return tuple(
        (f"{member}.{n}", parse(text, kind, code="InvalidInput"))
        for n, text in enumerate(params.get(member, []), 1)
    )


def _simulate(
    call: Call,
    params: Params,
    caller: Principal,
    identity: tuple[Sourced, ...],
    boundary: tuple[Sourced, ...] = (),
) -> Params:
    if "CallerArn" in params:
        caller = Principal(
            arn=params["CallerArn"], account=call.account, user_id="simulation:", access_key_id=""
        )
    elif caller.is_root:
        # Only the given policies are asked about, not what the root may do anyway.
        caller = Principal(
            arn=f"arn:aws:iam::{call.account}:user/simulated",
            account=call.account,
            user_id="simulated",
            access_key_id="",
        )
    policies = Policies(
        identity=identity + _inputs(params, "PolicyInputList", "identity"),
        boundary=_inputs(params, "PermissionsBoundaryPolicyInputList", "boundary") or boundary,
        resource=(("ResourcePolicy.1", parse(params["ResourcePolicy"], "resource", code="InvalidInput")),)
        if "ResourcePolicy" in params
        else (),
    )
    owner = params.get("ResourceOwner", "").rpartition("::")[2].partition(":")[0] or None
    context = {_key(entry): _value(entry) for entry in params.get("ContextEntries", [])}
    actions, resources = params["ActionNames"], params.get("ResourceArns") or ["*"]
    if len(actions) * len(resources) > MOST_RESULTS:
        raise AwsError(
            "InvalidInput",
            f"{len(actions)} actions on {len(resources)} resources are more than the {MOST_RESULTS} that are "
            "simulated at once.",
        )
    results = [
        _result(
            decide(
                Request(
                    principal=caller,
                    action=action,
                    resource=resource,
                    context=context,
                    resource_account=owner,
                ),
                policies,
            ),
            policies,
        )
        for action in actions
        for resource in resources
    ]
    numbered = list(enumerate(results))
    return common.page(params, numbered, "EvaluationResults", lambda r: f"{r[0]:06}", lambda r: r[1])


def _key(entry: dict[str, Any]) -> str:
    if "ContextKeyName" not in entry:
        raise AwsError("InvalidInput", f"A context entry has no ContextKeyName: {str(entry)[:200]}")
    return str(entry["ContextKeyName"])


def _value(entry: dict[str, Any]) -> Any:
    values = entry.get("ContextKeyValues", [])
    many = entry.get("ContextKeyType", "string").endswith("List")
    return tuple(values) if many or len(values) != 1 else values[0]


def _result(decision: Decision, policies: Policies) -> dict[str, Any]:
    result: dict[str, Any] = {
        "EvalActionName": decision.request.action,
        "EvalResourceName": decision.request.resource,
        "EvalDecision": _DECISIONS[decision.reason],
        "MatchedStatements": [
            {
                "SourcePolicyId": match.origin,
                "SourcePolicyType": "resource" if match.gate == "resource" else "none",
            }
            for match in decision.matches
        ],
        "MissingContextValues": _missing(decision, policies),
    }
    if policies.boundary:
        allowed = {m.effect for m in decision.matches if m.gate == "boundary"} == {"Allow"}
        result["PermissionsBoundaryDecisionDetail"] = {"AllowedByPermissionsBoundary": allowed}
    return result


def _missing(decision: Decision, policies: Policies) -> list[str]:
    """Context keys that the policies' conditions read and the request does not have."""
    given = {key.lower() for key in decision.request.context}
    asked = {
        condition.key
        for gate in (policies.identity, policies.resource, policies.boundary)
        for _, policy in gate
        for statement in policy.statements
        for condition in statement.conditions
    }
    return sorted(asked - given)
