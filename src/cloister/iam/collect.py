"""Which policies have a say over a caller, read from a World."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cloister.iam.decide import Decision, Policies, Request, Sourced, decide
from cloister.iam.managed import managed_policy
from cloister.iam.model import Caller, Principal, Role
from cloister.iam.policy import Kind, Policy, parse
from cloister.world import World

#: what a limiting policy that is gone leaves: it still limits, and allows nothing (fail closed)
_NOTHING = Policy(kind="boundary", version="2012-10-17", statements=())
#: what is left to a session when its role is gone: nothing, whatever a resource's policy names
_NEVER = '{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}'


def role_arn(role: Role, account: str, partition: str = "aws") -> str:
    return f"arn:{partition}:iam::{account}:role{role.path}{role.name}"


def role_of(world: World, principal: Caller) -> Role | None:
    """The role a session acts for. A role made anew under an old name is another role: sessions of the
    deleted one get nothing of it."""
    if not isinstance(principal, Principal) or principal.role_name is None:
        return None
    role = world.get(Role, principal.role_name)
    return role if role is not None and role.role_id == principal.user_id.partition(":")[0] else None


def identity_policies(world: World, principal: Caller) -> Policies:
    """The caller's part of a decision: `identity`, `boundary` and `session`. Combine with the resource's:
    `dataclasses.replace(identity_policies(…), resource=…, endpoint=…)`."""
    if not isinstance(principal, Principal) or principal.role_name is None:
        return Policies(session=_session(world, principal))
    role = role_of(world, principal)
    if role is None:
        gone = f"role/{principal.role_name}, which was deleted"
        return Policies(boundary=((gone, parse(_NEVER, "boundary")),), session=_session(world, principal))
    return Policies(
        identity=role_policies(world, role),
        boundary=boundary(world, role),
        session=_session(world, principal),
    )


def role_policies(world: World, role: Role) -> tuple[Sourced, ...]:
    """Inline and attached policies of a role. An attached policy that is gone grants nothing."""
    found: list[Sourced] = [
        (f"role/{role.name}/policy/{name}", parse(text, "identity"))
        for name, text in role.inline_policies.items()
    ]
    for arn in role.attached_policies:
        policy = _managed(world, arn, "identity")
        if policy is not None:
            found.append((arn, policy))
    return tuple(found)


def boundary(world: World, role: Role) -> tuple[Sourced, ...]:
    """The permissions boundary. One that is gone still bounds: then nothing is allowed (fail closed)."""
    if role.boundary_arn is None:
        return ()
    return ((role.boundary_arn, _managed(world, role.boundary_arn, "boundary") or _NOTHING),)


def principal_tags(world: World, principal: Caller) -> Mapping[str, str]:
    """aws:PrincipalTag/…: the role's tags, and the session's over them."""
    if not isinstance(principal, Principal):
        return {}
    role = role_of(world, principal)
    return {**(role.tags if role else {}), **principal.session_tags}


def may_assume(
    world: World,
    role: Role,
    caller: Caller,
    context: Mapping[str, Any],
    *,
    account: str,
    action: str = "sts:AssumeRole",
) -> Decision:
    """May `caller`, a principal or a service, assume `role` of `account`? The trust policy must allow; if it
    names only the caller's account, the caller's own policies must allow too."""
    own = identity_policies(world, caller)
    arn = role_arn(role, account)
    return decide(
        Request(principal=caller, action=action, resource=arn, context=context, resource_account=account),
        Policies(
            identity=own.identity,
            boundary=own.boundary,
            session=own.session,
            trust=((arn, parse(role.trust_policy, "trust")),),
        ),
    )


def texts(world: World, principal: Caller) -> Iterator[str]:
    """Every document that `identity_policies` reads, as it was written."""
    if not isinstance(principal, Principal):
        return
    role = None if principal.is_root else role_of(world, principal)
    named = [*principal.session_policies]
    if role is not None:
        yield from role.inline_policies.values()
        named += [*role.attached_policies, role.boundary_arn or ""]
    for given in named:
        found = managed_policy(world, given) if given.startswith("arn:") else None
        yield given if found is None else found.versions[found.default_version]


def _managed(world: World, arn: str, kind: Kind) -> Policy | None:
    found = managed_policy(world, arn)
    return None if found is None else parse(found.versions[found.default_version], kind)


def _session(world: World, principal: Caller) -> tuple[Sourced, ...]:
    if not isinstance(principal, Principal):
        return ()
    found: list[Sourced] = []
    for n, given in enumerate(principal.session_policies, 1):
        if given.startswith("arn:"):
            found.append((given, _managed(world, given, "identity") or _NOTHING))
        else:
            found.append((f"session policy {n}", parse(given, "session")))
    return tuple(found)
