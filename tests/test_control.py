"""What the control socket answers the commands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cloister.control import Control


class Supervisor:
    async def collect_garbage(self, *, dry_run: bool) -> dict[str, list[str]]:
        return {"containers": ["etl-1-algo-1"], "folders": ["etl-1"] if dry_run else []}


def test_what_garbage_there_is_is_told_one_by_one() -> None:
    nothing = cast(Any, None)
    control = Control({}, nothing, nothing, cast(Any, Supervisor()), *[nothing] * 5, Path("/"), "cloister")

    def answer(**query: str) -> Any:
        response = asyncio.run(control._gc(cast(Any, SimpleNamespace(query=query))))
        return json.loads(cast(bytes, response.body))

    assert answer() == ["container etl-1-algo-1"]
    assert answer(dry_run="1") == ["container etl-1-algo-1", "jobs/etl-1"]
