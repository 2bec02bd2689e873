"""`cloister attach`: interfaces for programs of one's own, kept for as long as somebody holds on to them.

POST /attach on the control socket makes an interface, says which in one line of JSON, and keeps the answer
open: whoever asked holds the interface until he closes the connection, or ends, or `cloister down` ends
everything. When the daemon was killed, he asks the next one again for the interface he has; those that nobody
asked for again are released.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.kernel.netns import Namespaces
from cloister.vpc import dhcp, interfaces
from cloister.vpc.model import NetworkInterface, Vpc
from cloister.wire.errors import AwsError
from cloister.world import document

#: how often a holder is looked after; an interface is released that long after its holder ended
_BEAT = 0.5
#: how long an interface may take to be made
_SETTLE = 30.0
#: how long a holder has to come back after a restart of the daemon
_RETURN = 20.0


@document("attachment", key="interface_id")
@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """An interface that belongs to a program started by `cloister attach`."""

    interface_id: str
    command: str


class Attachments:
    def __init__(self, engine: Engine, fabric: Fabric, namespaces: Namespaces, *, region: str) -> None:
        self._engine = engine
        self._fabric = fabric
        self._namespaces = namespaces
        self._region = region
        self._held: set[str] = set()
        self._sweep: asyncio.Task[None] | None = None

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/attach", self._attach)

    async def start(self) -> None:
        self._sweep = asyncio.create_task(self._release_the_abandoned())

    async def stop(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweep

    async def _release_the_abandoned(self) -> None:
        await asyncio.sleep(_RETURN)
        for attachment in list(self._engine.world.all(Attachment)):
            if attachment.interface_id not in self._held:
                self._release(attachment.interface_id)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        question = await request.json()
        try:
            interface = self._make(question)
        except AwsError as error:
            return web.json_response({"error": f"{error.code}: {error.message}"}, status=400)
        interface_id = interface.interface_id
        self._held.add(interface_id)
        try:
            async with asyncio.timeout(_SETTLE):
                await self._fabric.settled(self._engine.world.revision)
            answer = web.StreamResponse()
            await answer.prepare(request)
            await answer.write(json.dumps(self._describe(interface)).encode() + b"\n")
            while True:
                await asyncio.sleep(_BEAT)
                await answer.write(b"\n")
        except TimeoutError:
            problem = self._fabric.problem or "the network is busy"
            sentence = f"The interface was not made within {_SETTLE:.0f} s: {problem}"
            return web.json_response({"error": sentence}, status=503)
        finally:
            self._held.discard(interface_id)
            self._release(interface_id)

    def _make(self, question: dict[str, Any]) -> NetworkInterface:
        known = self._engine.world.get(NetworkInterface, question.get("interface_id"))
        if known is not None:
            return known
        command = str(question.get("command", ""))[:200]
        with self._engine.transaction() as tx:
            interface = interfaces.create_interface(
                tx,
                subnet_id=str(question.get("subnet", "")),
                group_ids=[str(each) for each in question.get("groups") or ()],
                addresses=[str(question["address"])] if question.get("address") else (),
                now=self._engine.clock(),
                attach=(interfaces.CONTAINER,),
                description=f"cloister attach: {command}",
            )
            tx.put(Attachment(interface_id=interface.interface_id, command=command))
        return interface

    def _describe(self, interface: NetworkInterface) -> dict[str, Any]:
        vpc = self._engine.world.get(Vpc, interface.vpc_id)
        netns = interface.addresses[0].netns
        assert netns is not None
        resolv_conf = "" if vpc is None else dhcp.resolv_conf(self._engine.world, vpc, self._region)
        return {
            "interface_id": interface.interface_id,
            "address": interface.addresses[0].address,
            "netns": str(self._namespaces.path(netns)),
            "resolv_conf": resolv_conf,
        }

    def _release(self, interface_id: str) -> None:
        with self._engine.transaction() as tx:
            interfaces.release(tx, interface_id)
            tx.delete(Attachment, interface_id)
