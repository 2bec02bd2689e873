"""How a service is written: one decorated function per operation.

    @operation("ec2", "DeleteVpc", resources=lambda call, p: [call.arn("ec2", f"vpc/{p['VpcId']}")])
    def delete_vpc(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        ...

`params` are the request's members as botocore's model names them, already validated against the model.
The result is the response shape's members. A handler reads and writes only `call.tx` (and the stores on
`call.deps`), raises `AwsError`, and does no I/O of its own. The dispatcher authenticates, authorises
(action and resources declared here), begins the transaction, commits it when the handler returns, and
throws it away when it raises; with EC2's DryRun it raises DryRunOperation after the handler succeeded.
A module under `cloister.services` is found by itself: adding an operation touches one file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloister.iam.decide import Decision
from cloister.iam.model import Principal
from cloister.world import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a request came in, told by the socket it came by, never by a header.

    Through a VPC endpoint `endpoint_id` and `vpc_id` are set and `address` is the private source address;
    else `address` is the public source address (`aws:SourceIp`)."""

    address: str
    endpoint_id: str | None = None
    vpc_id: str | None = None
    secure: bool = False


#: told of each decision of the policies at a door: where from, action, resource
Observe = Callable[[Origin, str, str, Decision], None]


@dataclass(slots=True, kw_only=True)
class Call:
    """One authenticated API call."""

    tx: Transaction
    principal: Principal
    account: str
    region: str
    now: float
    request_id: str
    origin: Origin
    user_agent: str = ""
    #: stores and parts beside the World that some services need: "logs", "credentials", "images" …
    deps: dict[str, Any] = field(default_factory=dict)

    @property
    def partition(self) -> str:
        return "aws"

    def arn(self, service: str, resource: str, *, region: str | None = None) -> str:
        """An ARN of this account; global services (iam, s3) pass region=""."""
        where = self.region if region is None else region
        return f"arn:{self.partition}:{service}:{where}:{self.account}:{resource}"


Params = dict[str, Any]
Handler = Callable[[Call, Params], Params]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    service: str  # botocore's service name: "ec2", "sagemaker", "iam", "sts", "logs"
    name: str
    handler: Handler
    #: IAM action, "ec2:CreateVpc"; None: no permission is needed (sts:GetCallerIdentity)
    action: str | None
    #: resource ARNs the action is checked on, all must be allowed; default ["*"]
    resources: Callable[[Call, Params], list[str]] | None = None
    #: further condition keys: {"sagemaker:VpcSubnets": [...]}
    context: Callable[[Call, Params], dict[str, Any]] | None = None
    #: IAM action that the caller needs as well when the request brings tags: "sagemaker:AddTags"
    tagging: str | None = None


OPERATIONS: dict[tuple[str, str], Operation] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One permission that an API call needs (a request's to S3 is `s3.actions.S3Need`): an action on a
    resource, and the condition keys of this resource, beside those of the whole request."""

    action: str
    resource: str
    context: dict[str, Any] = field(default_factory=dict)


#: how a service tells what a call of its needs, where it is more than one action on some resources
NEEDS: dict[str, Callable[[Call, Operation, Params], list[Need]]] = {}


def needs_of(call: Call, operation: Operation, params: Params) -> list[Need]:
    if operation.service in NEEDS:
        return NEEDS[operation.service](call, operation, params)
    return needs_on_resources(call, operation, params)


def needs_on_resources(
    call: Call,
    operation: Operation,
    params: Params,
    keys: Callable[[Call, str], dict[str, Any]] = lambda call, resource: {},
) -> list[Need]:
    """The operation's action on each of its resources; with tags, the action that tags them too.
    `keys` are the condition keys of one resource."""
    action = operation.action or f"{operation.service}:{operation.name}"
    actions = [action]
    if operation.tagging and (params.get("Tags") or params.get("tags")):
        actions.append(operation.tagging)
    resources = operation.resources(call, params) if operation.resources else ["*"]
    shared = operation.context(call, params) if operation.context else {}
    return [
        Need(action=one, resource=resource, context={**shared, **keys(call, resource)})
        for one in actions
        for resource in resources
    ]


def operation(
    service: str,
    name: str,
    *,
    action: str | None = "",
    resources: Callable[[Call, Params], list[str]] | None = None,
    context: Callable[[Call, Params], dict[str, Any]] | None = None,
    tagging: str | None = None,
) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        OPERATIONS[(service, name)] = Operation(
            service=service,
            name=name,
            handler=handler,
            action=f"{service}:{name}" if action == "" else action,
            resources=resources,
            context=context,
            tagging=tagging,
        )
        return handler

    return register
