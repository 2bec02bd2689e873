"""One S3 request, as the door took it apart: what the rest of the way needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cloister.iam.model import Principal
from cloister.s3 import actions
from cloister.services.api import Origin
from cloister.wire import sigv4
from cloister.wire.http import HttpRequest
from cloister.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One authenticated request, taken apart."""

    head: HttpRequest
    headers: dict[str, str]
    query: dict[str, str]
    bucket: str | None
    key: str
    operation: actions.Operation
    principal: Principal | None
    verified: sigv4.Verified | None
    origin: Origin
    context: dict[str, Any]
    world: World
    #: condition keys of the tags of the object that a need is about, where they were looked up
    tags: dict[actions.S3Need, dict[str, Any]] = field(default_factory=dict)
