"""What is outside of every VPC: the doors of AWS services on their public addresses.

They listen in the namespace `INTERNET`, for whoever comes by an internet gateway: S3 and DynamoDB on blocks
of their own by HTTP and HTTPS, all other services on the stand-in block by HTTPS. A caller is known by its
public address alone, as on the internet: `aws:SourceIp` is the Elastic IP, and no key of a VPC is there.
"""

from __future__ import annotations

import contextlib

from aiohttp import web

from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.front import Front
from cloister.kernel.netns import Namespaces
from cloister.s3.certificates import Authority
from cloister.s3.door import Door
from cloister.s3.doors import HTTP, HTTPS, listen, server
from cloister.servers import Close, Servers
from cloister.services.api import Origin
from cloister.vpc.endpoints import service_in_any_region
from cloister.vpc.gateways import INTERNET
from cloister.vpc.model import InternetGateway
from cloister.world import World


class InternetDoors:
    """Keeps the doors open while any VPC has an internet gateway."""

    def __init__(
        self,
        engine: Engine,
        fabric: Fabric,
        namespaces: Namespaces,
        front: Front,
        door: Door,
        authority: Authority,
    ) -> None:
        self._namespaces = namespaces
        self._front = front
        self._door = door
        self._context = authority.server_context()
        self._servers: Servers[int] = Servers("internet doors", engine, fabric, self._wanted, self._open)

    async def start(self) -> None:
        await self._servers.start()

    async def stop(self) -> None:
        await self._servers.stop()

    def _wanted(self, world: World) -> set[int]:
        """The namespace `INTERNET` that is there, by its number: it goes with the last gateway and comes with
        the next one, and sockets stay in the one they were made in. 0: it is still to come."""
        if not any(gateway.vpc_id for gateway in world.all(InternetGateway)):
            return set()
        return {self._namespaces.number(INTERNET) or 0}

    async def _open(self, number: int) -> Close:
        if number == 0 or self._namespaces.number(INTERNET) != number:
            raise LookupError(INTERNET)
        with contextlib.ExitStack() as stack:
            plain, tls = (
                stack.enter_context(self._namespaces.bound(INTERNET, port)) for port in (HTTP, HTTPS)
            )
            runner = web.ServerRunner(server(self._handle), shutdown_timeout=1.0)
            await runner.setup()
            await listen(runner, plain, tls, self._context)
            stack.pop_all()
        return runner.cleanup

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Which service is asked is told by the address that was called."""
        transport = request.transport
        called = transport.get_extra_info("sockname") if transport is not None else None
        origin = Origin(address=request.remote or "", secure=request.secure)
        service = service_in_any_region(called[0]) if called is not None else None
        if service is not None and service.service == "s3":
            return await self._door.handle(request, origin)
        if service is not None:
            return await self._front.at_endpoint(request, origin, service.service)
        if not request.secure:
            return web.Response(status=403, text="This service is spoken to by HTTPS only.\n")
        return await self._front.handle(request)
