"""Calling handlers as the dispatcher does, without a wire: one Transaction, one principal."""

from __future__ import annotations

from typing import Any

from cloister.iam.model import Principal
from cloister.services.api import OPERATIONS, Call, Origin
from cloister.world import World

ACCOUNT = "123456789012"
ROOT = Principal(
    arn=f"arn:aws:iam::{ACCOUNT}:root", account=ACCOUNT, user_id=ACCOUNT, access_key_id="AKIAROOTROOTROOTROOT"
)


def make_call(
    world: World | None = None,
    *,
    principal: Principal = ROOT,
    region: str = "us-east-1",
    now: float = 1_700_000_000.0,
    origin: Origin | None = None,
    **deps: Any,
) -> Call:
    """A Call on a fresh Transaction of `world`; several handlers may run on the same Call."""
    return Call(
        tx=(world if world is not None else World()).begin(),
        principal=principal,
        account=ACCOUNT,
        region=region,
        now=now,
        request_id="00000000-0000-4000-8000-000000000000",
        origin=origin or Origin(address="203.0.113.9"),
        deps=deps,
    )


def invoke(call: Call, service: str, name: str, /, **params: Any) -> dict[str, Any]:
    """Run the operation's handler: `invoke(call, "iam", "GetRole", RoleName="r")`.
    The module that registers it must have been imported."""
    return OPERATIONS[(service, name)].handler(call, params)
