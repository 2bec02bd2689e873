"""The global condition keys of a request.

AWS: IAM user guide, "AWS global condition context keys". A key that does not apply is absent, which
conditions can tell from any value: through a VPC endpoint there is no aws:SourceIp, outside of one there
is no aws:SourceVpce.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cloister.iam.model import Caller, FederatedPrincipal, Principal, ServicePrincipal


def iso(seconds: float) -> str:
    """2026-01-02T03:04:05Z"""
    return _iso(int(seconds))


@lru_cache(maxsize=64)
def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def global_keys(
    caller: Caller,
    *,
    now: float,
    address: str | None = None,
    endpoint_id: str | None = None,
    vpc_id: str | None = None,
    secure: bool = False,
    user_agent: str = "",
    region: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`address` is the source address, private when `endpoint_id` is set. `tags` are the principal's
    (`collect.principal_tags`). Keys are in lower case."""
    keys: dict[str, Any] = {
        "aws:currenttime": iso(now),
        "aws:epochtime": int(now),
        "aws:securetransport": secure,
        "aws:principalisawsservice": isinstance(caller, ServicePrincipal),
    }
    if user_agent:
        keys["aws:useragent"] = user_agent
    if region:
        keys["aws:requestedregion"] = region
    if endpoint_id:
        keys["aws:sourcevpce"] = endpoint_id
        if vpc_id:
            keys["aws:sourcevpc"] = vpc_id
        if address:
            keys["aws:vpcsourceip"] = address
    elif address:
        keys["aws:sourceip"] = address
    match caller:
        case Principal():
            keys["aws:principalarn"] = caller.role_arn or caller.arn
            keys["aws:principalaccount"] = caller.account
            keys["aws:principaltype"] = "Account" if caller.is_root else "AssumedRole"
            keys["aws:userid"] = caller.user_id
            if caller.expires is not None:
                keys["aws:tokenissuetime"] = iso(caller.issued)
                keys["aws:multifactorauthpresent"] = False
            for name, value in (tags or caller.session_tags).items():
                keys[f"aws:principaltag/{name.lower()}"] = value
        case ServicePrincipal():
            keys["aws:principalservicename"] = caller.service
        case FederatedPrincipal():
            keys["aws:federatedprovider"] = caller.provider
            keys["aws:principaltype"] = "FederatedUser"
        case _:
            keys["aws:principaltype"] = "Anonymous"
            keys["aws:userid"] = "anonymous"
    return keys


def request_tags(tags: Mapping[str, str], removed: Iterable[str] = ()) -> dict[str, Any]:
    """The keys of a request that brings tags, or names the keys of tags that are to go."""
    names = [*tags, *removed]
    keys: dict[str, Any] = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
    return keys | ({"aws:TagKeys": names} if names else {})


def resource_tags(service: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """The keys of the tags that a resource of a service has."""
    return {f"{one}:ResourceTag/{key}": value for key, value in tags.items() for one in ("aws", service)}
