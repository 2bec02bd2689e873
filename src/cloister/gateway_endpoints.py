"""The doors of gateway endpoints: listening inside each endpoint's namespace, on ports 80 and 443.

Which endpoint and which VPC a request came through is known from the socket it was accepted on.
"""

from __future__ import annotations

import contextlib

from cloister.endpoint_door import serve_endpoint
from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.front import Front
from cloister.kernel.netns import Namespaces
from cloister.s3.certificates import Authority
from cloister.s3.door import Door
from cloister.servers import Close, Servers
from cloister.vpc.endpoints import PORTS, service_of
from cloister.vpc.model import VpcEndpoint
from cloister.world import World


class GatewayDoors:
    """Keeps a door open in the namespace of every gateway endpoint that the kernel holds."""

    def __init__(
        self,
        engine: Engine,
        fabric: Fabric,
        namespaces: Namespaces,
        front: Front,
        door: Door,
        authority: Authority,
    ) -> None:
        self._engine = engine
        self._namespaces = namespaces
        self._front = front
        self._door = door
        self._context = authority.server_context()
        self._servers: Servers[str] = Servers("gateway endpoints", engine, fabric, _wanted, self._open)

    async def start(self) -> None:
        await self._servers.start()

    async def stop(self) -> None:
        await self._servers.stop()

    async def _open(self, endpoint_id: str) -> Close:
        endpoint = self._engine.world.get(VpcEndpoint, endpoint_id)
        service = service_of(endpoint) if endpoint is not None else None
        if endpoint is None or service is None:
            raise LookupError(endpoint_id)
        with contextlib.ExitStack() as stack:
            listeners = {
                port: stack.enter_context(self._namespaces.bound(endpoint_id, port)) for port in PORTS
            }
            close = await serve_endpoint(
                self._front, self._door, self._context, endpoint, service.service, listeners
            )
            stack.pop_all()
        return close


def _wanted(world: World) -> set[str]:
    return {each.endpoint_id for each in world.all(VpcEndpoint) if service_of(each) is not None}
