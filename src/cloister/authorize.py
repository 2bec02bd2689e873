"""May this caller make this API call? Over the caller's own policies and, through a VPC endpoint, its policy.

S3 has its own, with bucket policies (s3/authorize.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloister.iam import collect
from cloister.iam.context import global_keys
from cloister.iam.decide import Decision, Policies, Request, Sourced, decide
from cloister.iam.policy import Policy, parse
from cloister.services.api import Call
from cloister.vpc.model import VpcEndpoint
from cloister.wire.errors import AwsError
from cloister.world import World

_NO_PERMISSION_NEEDED: Sourced = (
    "no permission is needed",
    parse(
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}',
        "identity",
    ),
)


def call_keys(call: Call) -> dict[str, Any]:
    """The global condition keys of an API call, in lower case."""
    return global_keys(
        call.principal,
        now=call.now,
        address=call.origin.address,
        endpoint_id=call.origin.endpoint_id,
        vpc_id=call.origin.vpc_id,
        secure=call.origin.secure,
        user_agent=call.user_agent,
        region=call.region,
        tags=collect.principal_tags(call.tx, call.principal),
    )


def decide_call(
    world: World, request: Request, *, endpoint_id: str | None, needs_permission: bool = True
) -> Decision:
    """The decision over one action on one resource. A call that needs no permission of its caller still needs
    the endpoint's policy to let it pass."""
    if needs_permission:
        policies = collect.identity_policies(world, request.principal)
    else:
        policies = Policies(identity=(_NO_PERMISSION_NEEDED,))
    if endpoint_id is not None:
        policies = replace(policies, endpoint=((endpoint_id, _endpoint_policy(world, endpoint_id)),))
    return decide(request, policies)


def _endpoint_policy(world: World, endpoint_id: str) -> Policy:
    endpoint = world.get(VpcEndpoint, endpoint_id)
    if endpoint is None:  # deleted while its door still held a connection: nothing passes
        return Policy(kind="endpoint", version="2012-10-17", statements=())
    return parse(endpoint.policy, "endpoint")


def denied(service: str, sentence: str) -> AwsError:
    """A refusal in the service's own words."""
    if service == "ec2":
        return AwsError(
            "UnauthorizedOperation", f"You are not authorized to perform this operation. {sentence}", 403
        )
    if service == "sns":
        return AwsError("AuthorizationError", sentence, 403)
    code = "AccessDenied" if service in ("iam", "sts") else "AccessDeniedException"
    return AwsError(code, sentence, 400 if code.endswith("Exception") else 403)
