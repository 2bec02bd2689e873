"""What a VPC endpoint of either kind answers: its own service, to whom came by its own sockets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from aiohttp import web

from cloister.front import Front
from cloister.s3.door import Door
from cloister.s3.doors import HTTP, HTTPS, listen, serve, server
from cloister.servers import Close
from cloister.services.api import Origin
from cloister.vpc.model import VpcEndpoint


async def serve_endpoint(
    front: Front,
    door: Door,
    context: ssl.SSLContext,
    endpoint: VpcEndpoint,
    service: str,
    listeners: Mapping[int, socket.socket],
) -> Close:
    """Answer requests to `service` (botocore's name) on bound sockets, by port, until what is returned is
    awaited."""
    endpoint_id, vpc_id = endpoint.endpoint_id, endpoint.vpc_id
    plain, tls = listeners.get(HTTP), listeners.get(HTTPS)
    if service == "s3":
        return await serve(door, plain, tls, context, endpoint_id, vpc_id)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        origin = Origin(
            address=request.remote or "", endpoint_id=endpoint_id, vpc_id=vpc_id, secure=request.secure
        )
        return await front.at_endpoint(request, origin, service)

    runner = web.ServerRunner(server(handle), shutdown_timeout=1.0)
    await runner.setup()
    await listen(runner, plain, tls, context)
    return runner.cleanup
