"""The doors of AWS services on the internet stay open however often the last gateway goes and comes again."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world
from tests.patience import PATIENCE

from cloister.ids import resource_id
from cloister.internet import InternetDoors
from cloister.s3.certificates import Authority
from cloister.vpc.model import InternetGateway, Route, RouteTable

pytestmark = pytest.mark.fabric


@in_world
async def test_the_doors_follow_the_namespace_that_is_there(lab: Lab) -> None:
    nobody = cast(Any, None)  # no request is sent
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        doors = InternetDoors(lab.engine, lab.fabric, lab.namespaces, nobody, nobody, authority)
        await doors.start()
        vpc, subnet, table_id = await lab.vpc()
        gateway = InternetGateway(internet_gateway_id=resource_id("igw"), vpc_id=vpc)
        table = lab.engine.world.get(RouteTable, table_id)
        assert table is not None
        route = Route(destination="0.0.0.0/0", target=gateway.internet_gateway_id)
        await lab.put(gateway, replace(table, routes=(route,)))
        interface = await lab.interface(subnet, await lab.group(vpc, ANYWHERE))
        held = replace(interface.addresses[0], public_ip="198.51.100.7")
        await lab.put(replace(interface, addresses=(held,)))

        async def is_open() -> bool:
            return await asyncio.to_thread(lab.connects, interface, "203.0.113.9", 443)

        async def opens() -> None:
            async with asyncio.timeout(10 * PATIENCE):
                while not await is_open():
                    await asyncio.sleep(0.05)

        await opens()
        for _ in range(8):
            await lab.put(replace(gateway, vpc_id=None))
            await lab.put(gateway)
            await opens()
        await lab.put(replace(gateway, vpc_id=None))
        assert not await is_open()
        await doors.stop()
