"""May this caller do this? The whole decision.

AWS: IAM user guide, "Policy evaluation logic". The gates, in the order in which they are asked:

    any explicit Deny, in any gate                      -> EXPLICIT_DENY
    endpoint   the VPC endpoint's policy, if there is one, must allow
    trust      the role's trust policy, if the resource is a role to assume, must allow
    resource   same account: a grant here or in identity is enough; other account: both must grant
    identity   the caller's own policies; the account's root is allowed by default
    boundary   must allow, if there is one        } a resource policy that names the very session
    session    must allow, if there is one        } passes both by (same account)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from cloister.iam.conditions import Context, lookup_in
from cloister.iam.model import Caller, FederatedPrincipal, Principal, ServicePrincipal
from cloister.iam.patterns import Lookup
from cloister.iam.policy import Policy, Statement

Gate = Literal["endpoint", "trust", "resource", "identity", "boundary", "session"]
Reason = Literal["ALLOW", "EXPLICIT_DENY", "IMPLICIT_DENY"]
#: (origin, policy): origin says where the document hangs: an ARN, "role/NAME/inline/P", "vpce-…"
Sourced = tuple[str, Policy]

GATES: tuple[Gate, ...] = ("endpoint", "trust", "resource", "identity", "boundary", "session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`context` maps condition keys, in any case, to values (several: a tuple or list).
    `resource_account` owns the resource; None: the account in the ARN, else the caller's own.
    `untold` are beginnings, in lower case, of keys whose values AWS would know and we do not: a Deny with a
    condition on one applies, an Allow does not."""

    principal: Caller
    action: str
    resource: str
    context: Mapping[str, Any] = field(default_factory=dict)
    resource_account: str | None = None
    untold: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """Every policy that has a say. An empty `endpoint`, `boundary` or `session` is a gate that is not there;
    a gate that is there and allows nothing holds one policy that allows nothing."""

    identity: tuple[Sourced, ...] = ()
    resource: tuple[Sourced, ...] = ()
    session: tuple[Sourced, ...] = ()
    boundary: tuple[Sourced, ...] = ()
    endpoint: tuple[Sourced, ...] = ()
    trust: tuple[Sourced, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One statement that applies to the request."""

    gate: Gate
    origin: str
    statement: str  # its Sid, else "statement N", N from 1
    index: int  # from 0
    effect: Literal["Allow", "Deny"]


class Grip(IntEnum):
    """How closely a Principal element names the caller. The order matters."""

    NONE = 0
    ACCOUNT = 1  # only its account: the account's own policies must then allow too
    PRINCIPAL = 2  # the role, the service, everybody
    SESSION = 3  # this very session (or the root user itself)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`gate` is the one that decided; `matches` are all statements that apply, in the gates' order."""

    allowed: bool
    reason: Reason
    gate: Gate
    matches: tuple[Match, ...]
    request: Request

    def sentence(self) -> str:
        """AWS's words. AWS: IAM user guide, "Troubleshoot access denied error messages"."""
        request = self.request
        resource = f'"{request.resource}"' if request.action.startswith("s3:") else request.resource
        subject = f"User: {name_of(request.principal)} is"
        what = f"authorized to perform: {request.action} on resource: {resource}"
        if self.allowed:
            return f"{subject} {what}"
        kind = _GATE_NAMES[self.gate]
        if self.reason == "EXPLICIT_DENY":
            article = "the" if self.gate == "trust" else "an" if kind[0] in "aeiou" else "a"
            return f"{subject} not {what} with an explicit deny in {article} {kind}"
        return f"{subject} not {what} because no {kind} allows the {request.action} action"


_GATE_NAMES: dict[Gate, str] = {
    "endpoint": "VPC endpoint policy",
    "trust": "role trust policy",
    "resource": "resource-based policy",
    "identity": "identity-based policy",
    "boundary": "permissions boundary",
    "session": "session policy",
}


def name_of(caller: Caller) -> str:
    match caller:
        case Principal():
            return caller.arn
        case ServicePrincipal():
            return caller.service
        case FederatedPrincipal():
            return caller.provider
        case _:
            return "anonymous"


def decide(request: Request, policies: Policies) -> Decision:
    """The decision. INVARIANT: it depends on the set of statements that apply, never on their order."""
    caller = request.principal
    context: Context = {key.lower(): value for key, value in request.context.items()}
    lookup = lookup_in(context)
    matches: list[Match] = []
    #: what the Allow statements of each gate give at most
    granted: dict[Gate, Grip] = dict.fromkeys(GATES, Grip.NONE)
    denied: Gate | None = None
    for gate in GATES:
        for origin, policy in getattr(policies, gate):
            for statement in policy.statements:
                grip = _applies(statement, request, caller, context, lookup)
                if grip is Grip.NONE:
                    continue
                matches.append(
                    Match(
                        gate=gate,
                        origin=origin,
                        statement=statement.name,
                        index=statement.index,
                        effect=statement.effect,
                    )
                )
                if statement.effect == "Deny":
                    denied = denied or gate
                elif grip > granted[gate]:
                    granted[gate] = grip

    def verdict(reason: Reason, gate: Gate) -> Decision:
        return Decision(
            allowed=reason == "ALLOW", reason=reason, gate=gate, matches=tuple(matches), request=request
        )

    # INVARIANT: a Deny that applies refuses, whatever any other statement says.
    if denied:
        return verdict("EXPLICIT_DENY", denied)
    # INVARIANT: from here every return before the last refuses; nothing granted is a refusal (fail closed).
    if policies.endpoint and not granted["endpoint"]:
        return verdict("IMPLICIT_DENY", "endpoint")

    # A trust policy is the role's resource policy, and the one that must always have its say.
    at_resource: Gate = "trust" if policies.trust else "resource"
    grip = granted[at_resource]
    if policies.trust and not grip:
        return verdict("IMPLICIT_DENY", "trust")
    if not isinstance(caller, Principal):
        # Services, federated users and strangers have no policies of their own: only the resource can grant.
        return verdict("ALLOW" if grip else "IMPLICIT_DENY", at_resource)

    own = caller.is_root or bool(granted["identity"])
    owner = request.resource_account or _account_of(request.resource) or caller.account
    if owner != caller.account:
        if not grip:
            return verdict("IMPLICIT_DENY", at_resource)
        if not own:
            return verdict("IMPLICIT_DENY", "identity")
        by: Gate = at_resource
    elif grip is Grip.SESSION:
        # "Resource-based policies that grant permissions to the session's ARN … are not limited by an
        # implicit deny in an identity-based policy, a permissions boundary, or session policy."
        return verdict("ALLOW", at_resource)
    elif grip >= Grip.PRINCIPAL:
        by = at_resource
    elif own:
        # Grip.ACCOUNT lands here: naming the account hands the question to the account's own policies.
        by = "identity"
    else:
        return verdict("IMPLICIT_DENY", "identity")
    if policies.boundary and not granted["boundary"]:
        return verdict("IMPLICIT_DENY", "boundary")
    if policies.session and not granted["session"]:
        return verdict("IMPLICIT_DENY", "session")
    return verdict("ALLOW", by)


def _applies(
    statement: Statement, request: Request, caller: Caller, context: Context, lookup: Lookup
) -> Grip:
    """Grip.NONE when the statement is not about this request; else how it names the caller (a statement
    without Principal is attached to the caller: PRINCIPAL)."""
    if statement.action_patterns.match(request.action, lookup) is statement.not_action:
        return Grip.NONE
    grip = Grip.PRINCIPAL
    if statement.principals is not None:
        grip = _names(statement, caller)
        if grip is Grip.NONE:
            return grip
    patterns = statement.resource_patterns
    if patterns is not None and patterns.match(request.resource, lookup) is statement.not_resource:
        return Grip.NONE
    for condition in statement.conditions:
        if request.untold and condition.key.startswith(request.untold) and condition.key not in context:
            holds = statement.effect == "Deny"
        else:
            holds = condition.holds(context, lookup)
        if not holds:
            return Grip.NONE
    return grip


def _names(statement: Statement, caller: Caller) -> Grip:
    assert statement.principals is not None
    listed = [_grip(kind, value, caller) for kind, value in statement.principals]
    if not statement.not_principal:
        return max(listed, default=Grip.NONE)
    # NotPrincipal. AWS wants account, role and session all listed to except a session from a Deny; so a
    # Deny applies unless every name of the caller is listed, an Allow only if none is: both fail closed.
    if isinstance(caller, Principal) and statement.effect == "Deny":
        needed = (
            {Grip.ACCOUNT, Grip.SESSION} if caller.is_root else {Grip.ACCOUNT, Grip.PRINCIPAL, Grip.SESSION}
        )
        everybody = ("*", "*") in statement.principals
        root = caller.is_root and Grip.SESSION in listed
        excepted = everybody or root or needed <= set(listed)
    else:
        excepted = any(listed)
    return Grip.NONE if excepted else Grip.PRINCIPAL


def _grip(kind: str, value: str, caller: Caller) -> Grip:
    if kind == "*":
        return Grip.PRINCIPAL
    if isinstance(caller, ServicePrincipal):
        return Grip.PRINCIPAL if kind == "Service" and value == caller.service else Grip.NONE
    if isinstance(caller, FederatedPrincipal):
        return Grip.PRINCIPAL if kind == "Federated" and value == caller.provider else Grip.NONE
    if caller is None or kind != "AWS":
        return Grip.NONE
    if value == caller.arn:
        return Grip.SESSION
    if value == caller.account or value.endswith(f"::{caller.account}:root"):
        return Grip.SESSION if caller.is_root else Grip.ACCOUNT
    if caller.role_name is not None and (
        value == caller.role_arn
        or value == caller.user_id.partition(":")[0]
        or (caller.role_arn is None and value.endswith(f"::{caller.account}:role/{caller.role_name}"))
    ):
        return Grip.PRINCIPAL
    return Grip.NONE


def _account_of(arn: str) -> str | None:
    parts = arn.split(":", 5)
    return parts[4] if len(parts) == 6 and parts[4].isdigit() else None
