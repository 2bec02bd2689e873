"""Identifiers in AWS's formats. Random, so they never repeat, also after a restore."""

from __future__ import annotations

import secrets
import uuid

_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def resource_id(prefix: str) -> str:
    """An EC2-style id: `vpc-` and 17 hexadecimal digits."""
    return f"{prefix}-0{secrets.token_hex(8)}"


def request_id() -> str:
    return str(uuid.uuid4())


def unique_id(prefix: str) -> str:
    """An IAM-style unique id: `AROA` (role), `ASIA` (session key) … and 16 base-32 characters."""
    return prefix + "".join(secrets.choice(_BASE32) for _ in range(16))
