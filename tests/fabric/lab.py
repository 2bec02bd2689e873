"""A VPC on real packets for tests: an engine, a fabric, and ways to make resources and send packets.

A test is `@in_world async def test_…(lab)`: it runs in a throw-away world of its own, as
`holder --exec python -m tests.fabric.lab MODULE TEST`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.ids import resource_id
from cloister.kernel.netns import Namespaces
from cloister.kernel.reconcile import Reconciler
from cloister.store import Store
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import (
    GroupRule,
    NetworkInterface,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
)

ANYWHERE = GroupRule(rule_id="sgr-all", egress=True, protocol="-1", cidr="0.0.0.0/0")
QUIET = 0.4 * PATIENCE  # seconds without an answer that mean: dropped


class Lab:
    """An engine, a fabric, and ways to make VPCs and send packets in them."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine(Store(folder / "world.sqlite"))
        self.namespaces = Namespaces(folder / "netns")
        self.reconciler = Reconciler(self.namespaces)
        self.fabric = Fabric(self.engine, self.namespaces, self.reconciler)
        self.folder = folder
        self.open: list[socket.socket] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    async def vpc(self, cidr: str = "10.0.0.0/16", **more: Any) -> tuple[str, str, str]:
        """A VPC with one subnet and a main route table: their ids."""
        vpc_id, subnet_id, table_id = (resource_id(p) for p in ("vpc", "subnet", "rtb"))
        await self.put(
            Vpc(vpc_id=vpc_id, cidr=cidr, cidr_association_id=resource_id("vpc-cidr-assoc"), **more),
            Subnet(
                subnet_id=subnet_id,
                vpc_id=vpc_id,
                cidr=cidr.replace("/16", "/24"),
                zone="us-east-1a",
                zone_id="use1-az1",
            ),
            RouteTable(
                route_table_id=table_id,
                vpc_id=vpc_id,
                number=1000,
                associations=(RouteTableAssociation(association_id="m", subnet_id=None, main=True),),
            ),
        )
        return vpc_id, subnet_id, table_id

    async def group(self, vpc_id: str, *rules: GroupRule) -> SecurityGroup:
        group = SecurityGroup(
            group_id=resource_id("sg"), vpc_id=vpc_id, name="g", description="", rules=rules
        )
        await self.put(group)
        return group

    async def interface(self, subnet_id: str, *groups: SecurityGroup, **more: Any) -> NetworkInterface:
        with self.engine.transaction() as tx:
            made = create_interface(
                tx, subnet_id=subnet_id, group_ids=[g.group_id for g in groups], now=0, attach=("",), **more
            )
        await self.settle()
        return made

    async def endpoint(self, vpc_id: str, *tables: str) -> VpcEndpoint:
        made = VpcEndpoint(
            endpoint_id=resource_id("vpce"),
            vpc_id=vpc_id,
            service_name="com.amazonaws.us-east-1.s3",
            policy="",
            route_table_ids=tables,
            created=0,
        )
        await self.put(made)
        return made

    async def put(self, *docs: object) -> None:
        with self.engine.transaction() as tx:
            for doc in docs:
                tx.put(doc)
        await self.settle()

    async def settle(self) -> None:
        async with asyncio.timeout(20 * PATIENCE):
            await self.fabric.settled()

    # ---- packets

    def socket(self, netns: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = self.namespaces.socket(netns, socket.AF_INET, kind)
        made.settimeout(QUIET)
        self.open.append(made)
        return made

    def listen(self, netns: str, address: str, port: int) -> socket.socket:
        listener = self.socket(netns)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        return listener

    def connects(self, source: NetworkInterface, address: str, port: int) -> bool:
        client = self.socket(source.interface_id)
        try:
            client.connect((address, port))
        except OSError:
            return False
        finally:
            client.close()
        return True

    def reaches(self, source: NetworkInterface, target: NetworkInterface, port: int) -> bool:
        """Whether a connection is made, checked to be what `explain` says."""
        address = target.addresses[0].address
        listener = self.listen(target.interface_id, address, port)
        connected = self.connects(source, address, port)
        listener.close()
        flow = Flow(source=source.interface_id, destination=target.interface_id, protocol="tcp", port=port)
        if source.vpc_id == target.vpc_id:
            verdict = explain(self.engine.world, flow)
            assert verdict.allowed is connected, verdict
        return connected


def in_world(test: Callable[[Lab], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def outside() -> None:
        command = [sys.executable, "-m", "cloister.kernel.holder", "--exec", sys.executable, "-m", __name__]
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(
            [*command, test.__module__, test.__name__],
            capture_output=True,
            text=True,
            timeout=3600 if os.environ.get("CLOISTER_FUZZ") else 100 * PATIENCE,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    outside.scenario = test  # type: ignore[attr-defined]
    del outside.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for a fixture named `lab`
    return outside


def rule(
    egress: bool = False, protocol: str = "-1", ports: tuple[int, int] | None = None, **peer: str
) -> GroupRule:
    low, high = ports or (None, None)
    return GroupRule(
        rule_id=resource_id("sgr"), egress=egress, protocol=protocol, from_port=low, to_port=high, **peer
    )


@contextlib.contextmanager
def _closing(lab: Lab) -> Iterator[None]:
    try:
        yield
    finally:
        for process in lab.processes:
            process.kill()
            process.wait()
        for one in lab.open:
            one.close()
        for netns in lab.namespaces.list():
            lab.namespaces.delete(netns)
        lab.namespaces.close()


async def _main(module: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        with _closing(lab):
            await lab.fabric.start()
            await getattr(importlib.import_module(module), name).scenario(lab)
            assert lab.fabric.problem is None
            await lab.fabric.stop()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2]))
