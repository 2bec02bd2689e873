"""May this caller do this? Gathers what AWS would look at and asks `iam.decide`.

The context keys every request has (AWS: "AWS global condition context keys") are made here, once, for the
control plane and for the S3 door; where the request came in is told by its `Origin`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cloister.iam.model import Principal
from cloister.services.api import Origin


def request_context(
    principal: Principal | None, origin: Origin, *, now: float, region: str, user_agent: str = ""
) -> dict[str, Any]:
    """The global condition keys of one request. `aws:SourceIp` is absent through an endpoint, and
    `aws:SourceVpce`, `aws:SourceVpc` and `aws:VpcSourceIp` are absent elsewhere, as in AWS."""
    context: dict[str, Any] = {
        "aws:CurrentTime": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "aws:EpochTime": str(int(now)),
        "aws:SecureTransport": "true" if origin.secure else "false",
        "aws:RequestedRegion": region,
    }
    if user_agent:
        context["aws:UserAgent"] = user_agent
    if origin.endpoint_id is not None:
        context["aws:SourceVpce"] = origin.endpoint_id
        context["aws:SourceVpc"] = origin.vpc_id
        context["aws:VpcSourceIp"] = origin.address
    else:
        context["aws:SourceIp"] = origin.address
    if principal is not None:
        context["aws:PrincipalArn"] = principal_arn(principal)
        context["aws:PrincipalAccount"] = principal.account
        context["aws:PrincipalType"] = "Account" if principal.is_root else "AssumedRole"
        context["aws:userid"] = principal.user_id
        for key, value in principal.session_tags.items():
            context[f"aws:PrincipalTag/{key}"] = value
    return context


def principal_arn(principal: Principal) -> str:
    """`aws:PrincipalArn` is the role's ARN for a session (AWS: global condition keys), not the session's."""
    if principal.role_name is None:
        return principal.arn
    return f"arn:aws:iam::{principal.account}:role/{principal.role_name}"
