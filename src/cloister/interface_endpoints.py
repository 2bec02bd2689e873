"""The doors of interface endpoints: a server in the namespace of each endpoint's interfaces.

Which endpoint a request came through is known from the socket it was accepted on; only the endpoint's own
service is answered there. An endpoint is "pending" until all its interfaces are served.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

from cloister.endpoint_door import serve_endpoint
from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.front import Front
from cloister.kernel.netns import Namespaces
from cloister.s3.certificates import Authority
from cloister.s3.door import Door
from cloister.servers import Close, Servers
from cloister.vpc.interface_endpoints import service_of
from cloister.vpc.model import NetworkInterface, VpcEndpoint
from cloister.world import World

#: an endpoint and one of its interfaces
Key = tuple[str, str]


class InterfaceDoors:
    """Keeps a door open on every interface of every interface endpoint that the kernel holds."""

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
        self._fabric = fabric
        self._namespaces = namespaces
        self._front = front
        self._door = door
        self._context = authority.server_context()
        self._open_now: set[Key] = set()
        self._servers: Servers[Key] = Servers("interface endpoints", engine, fabric, _wanted, self._open)

    async def start(self) -> None:
        self._fabric.follow(self._applied)
        await self._servers.start()

    async def stop(self) -> None:
        await self._servers.stop()

    async def _open(self, key: Key) -> Close:
        endpoint_id, interface_id = key
        endpoint = self._engine.world.get(VpcEndpoint, endpoint_id)
        service = service_of(endpoint) if endpoint is not None else None
        if endpoint is None or service is None:
            raise LookupError(endpoint_id)
        with contextlib.ExitStack() as stack:
            listeners: dict[int, socket.socket] = {}
            for port in service.ports:
                listeners[port] = stack.enter_context(self._namespaces.bound(interface_id, port))
            close = await serve_endpoint(
                self._front, self._door, self._context, endpoint, service.service, listeners
            )
            stack.pop_all()
        self._open_now.add(key)
        self._applied(self._fabric.applied_world)

        async def close_and_forget() -> None:
            self._open_now.discard(key)
            await close()

        return close_and_forget

    def _applied(self, world: World) -> None:
        """Endpoints of which the kernel holds and we serve everything become available."""
        ready = [
            endpoint.endpoint_id
            for endpoint in self._engine.world.all(VpcEndpoint)
            if endpoint.kind == "Interface"
            and endpoint.state == "pending"
            and world.get(VpcEndpoint, endpoint.endpoint_id) is not None
            and all(
                world.get(NetworkInterface, interface_id) is not None
                and (endpoint.endpoint_id, interface_id) in self._open_now
                for interface_id in endpoint.interface_ids
            )
        ]
        if not ready:
            return
        with self._engine.transaction() as tx:
            for endpoint_id in ready:
                endpoint = tx.get(VpcEndpoint, endpoint_id)
                assert endpoint is not None
                tx.put(replace(endpoint, state="available"))


def _wanted(world: World) -> set[Key]:
    return {
        (endpoint.endpoint_id, interface_id)
        for endpoint in world.all(VpcEndpoint)
        if service_of(endpoint) is not None
        for interface_id in endpoint.interface_ids
        if world.get(NetworkInterface, interface_id) is not None
    }
