"""ClientToken: a create that is repeated makes nothing new.

AWS ("Ensuring idempotency in Amazon EC2 API requests"): the same token with the same parameters answers as
the first time, with other parameters it is an IdempotentParameterMismatch. Clients retry with the token of
the first try when an answer was lost; boto3 makes one by itself. Choice of ours: tokens are kept for a day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cloister.services.api import Call, Params
from cloister.services.ec2.describe import Resource
from cloister.wire.errors import AwsError
from cloister.world import document

D = TypeVar("D")
KEPT_SECONDS = 86_400
LONGEST_TOKEN = 64


@document("client-token", key="key")
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientToken:
    key: str  # OPERATION/TOKEN
    request: str  # digest of the parameters
    resource_id: str
    expires: float


def once(
    call: Call,
    operation: str,
    params: Params,
    resource: Resource[D],
    make: Callable[[], D],
    longest: int = LONGEST_TOKEN,
) -> D:
    """What `make` makes, or what an earlier call with this token made if it is still there. `longest`: AWS
    allows prefix lists longer tokens than others, of any characters.
    Raises IdempotentParameterMismatch, InvalidParameterValue."""
    token = params.get("ClientToken")
    if not token:
        return make()
    if len(token) > longest or not (token.isascii() or longest > LONGEST_TOKEN):
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({token}) for parameter clientToken is invalid. "
            f"Up to {longest} {'ASCII' if longest == LONGEST_TOKEN else 'UTF-8'} characters are allowed.",
        )
    key = f"{operation}/{token}"
    request = _digest(params)
    known = call.tx.get(ClientToken, key)
    if known is not None and known.expires > call.now:
        if known.request != request:
            raise AwsError(
                "IdempotentParameterMismatch",
                f"The client token '{token}' was used before, with other parameters.",
            )
        earlier = resource.get(call.tx, known.resource_id) if resource.get else None
        if earlier is not None:
            return earlier
    made = make()
    for old in list(call.tx.all(ClientToken)):
        if old.expires <= call.now:
            call.tx.delete(ClientToken, old.key)
    call.tx.put(
        ClientToken(key=key, request=request, resource_id=resource.key(made), expires=call.now + KEPT_SECONDS)
    )
    return made


def echo(params: Params) -> Params:
    """The response's ClientToken, when the request had one."""
    return {"ClientToken": params["ClientToken"]} if params.get("ClientToken") else {}


def _digest(params: Params) -> str:
    rest = {name: value for name, value in params.items() if name not in ("ClientToken", "DryRun")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()
