"""Flow logs in a bucket of the object store, when it or the store is not there: no packet is there twice."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import signal
import socket
import time
from dataclasses import replace
from unittest.mock import patch

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule
from tests.fabric.test_flow_log_packets import MAY_LOG, TRUST
from tests.patience import PATIENCE

from cloister import flowlog
from cloister.flow_delivery import ACCESS_ERROR, UNKNOWN_ERROR, with_delivery
from cloister.flowlog import FlowLogs
from cloister.iam.model import Role
from cloister.ids import resource_id
from cloister.logs import LogStore
from cloister.s3.backend import SeaweedFS
from cloister.s3.model import Bucket
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.model import NetworkInterface

pytestmark = pytest.mark.fabric

ACCOUNT, REGION = "123456789012", "us-east-1"


class Logged:
    """A VPC with a log of its packets in S3 and one in CloudWatch Logs, and a real object store."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.store = SeaweedFS(lab.folder, lab.namespaces)
        self.logs = LogStore(":memory:")
        self.flow_logs = self._service()
        self.sent = 0

    def _service(self) -> FlowLogs:
        return FlowLogs(
            self.lab.folder / "flows.sqlite", self.lab.engine, self.lab.fabric, self.lab.reconciler,
            self.lab.namespaces, self.logs, self.store, account=ACCOUNT, region=REGION,
        )  # fmt: skip

    def restart(self) -> None:
        """Another daemon."""
        self.flow_logs.readings.close()
        self.flow_logs = self._service()

    async def start(self) -> None:
        await self.store.start()
        vpc, subnet, _ = await self.lab.vpc()
        group = await self.lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
        self.one: NetworkInterface = await self.lab.interface(subnet, group)
        self.two = await self.lab.interface(subnet, group)
        policy = with_delivery(None, "flows", "", ACCOUNT, REGION)
        self.bucket = Bucket(name="flows", owner_account=ACCOUNT, region=REGION, created=0, policy=policy)
        role = Role(name="flow", role_id="A", trust_policy=TRUST, created=0, inline_policies={"p": MAY_LOG})
        given = {"resource_id": self.one.interface_id, "vpc_id": vpc, "created": 0.0, "interval": 60}
        given["log_format"] = "${srcport} ${packets} ${log-status}"
        self.in_s3 = FlowLog(
            flow_log_id=resource_id("fl"), destination_type="s3", destination="arn:aws:s3:::flows",
            **given,  # type: ignore[arg-type]
        )  # fmt: skip
        self.in_logs = FlowLog(
            flow_log_id=resource_id("fl"), destination="flows", role_arn=f"arn:aws:iam::{ACCOUNT}:role/flow",
            **given,  # type: ignore[arg-type]
        )  # fmt: skip
        await self.lab.put(self.bucket, role, self.in_s3, self.in_logs)
        assert await self.ask("PUT", "/flows") == (200, b"")
        await self.flow_logs.collect(0)

    async def minute(self, now: int) -> str | None:
        """A packet more than the minute before, a minute that ends at `now`, and the log's error then."""
        self.sent += 1
        made = self.lab.namespaces.socket(self.one.interface_id, socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", 5000 + now // 60))
        for _ in range(self.sent):
            made.sendto(b"x", (self.two.addresses[0].address, 53))
        made.close()
        await self.flow_logs.collect(now)
        return await self.deliver(now)

    async def deliver(self, now: int) -> str | None:
        await self.flow_logs.deliver(now)
        found = self.lab.engine.world.get(FlowLog, self.in_s3.flow_log_id)
        assert found is not None
        return found.error

    async def ask(self, method: str, path: str, query: str = "") -> tuple[int, bytes]:
        answer = await self.store.request(method, path, query)
        async with answer:
            return answer.status, await answer.read()

    async def told(self) -> dict[int, int]:
        """Packets by minute, of all objects; each minute is in one object only."""
        found: dict[int, int] = {}
        listed = (await self.ask("GET", "/flows", "list-type=2"))[1].decode()
        for key in re.findall("<Key>([^<]*)</Key>", listed):
            body = gzip.decompress((await self.ask("GET", f"/flows/{key}"))[1]).decode()
            for minute, packets in _minutes(body.splitlines()[1:]):
                assert minute not in found
                found[minute] = packets
        return found

    def in_cloudwatch(self) -> list[int]:
        events = self.logs.get("flows", f"{self.one.interface_id}-all")
        return [minute for minute, _ in _minutes([event.message for event in events])]


def _minutes(rows: list[str]) -> list[tuple[int, int]]:
    """Which minute and how many packets, of the rows that tell of what was sent."""
    found = [(port, packets) for port, packets, status in map(str.split, rows) if status == "OK"]
    return [(int(port) - 5000, int(packets)) for port, packets in found if int(port) > 5000]


@in_world
async def test_while_the_store_is_down_nothing_is_lost_and_then_nothing_is_there_twice(
    lab: Lab,
) -> None:
    with patch.object(flowlog, "STORE_SECONDS", 0.7):
        here = Logged(lab)
        await here.start()
        assert await here.minute(60) is None
        pid = here.store.pid
        assert pid is not None
        # it hangs: the log says so, others go on, and so does reading
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await here.minute(120) == UNKNOWN_ERROR
            assert time.monotonic() - began < 5
            assert await here.deliver(120) == UNKNOWN_ERROR
            here.restart()
            assert await here.minute(180) == UNKNOWN_ERROR
            assert here.in_cloudwatch() == [1, 2, 3]
        finally:
            os.kill(pid, signal.SIGCONT)
        # it is there again, and has perhaps taken what was given up
        assert await here.minute(240) is None
        assert await here.told() == {1: 1, 2: 2, 3: 3, 4: 4}
        # it is killed: nobody listens, until it was started again
        os.kill(pid, signal.SIGKILL)
        assert await here.minute(300) == UNKNOWN_ERROR
        async with asyncio.timeout(60 * PATIENCE):
            while await here.deliver(360) is not None:
                await asyncio.sleep(0.3)
        assert await here.told() == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
        assert here.in_cloudwatch() == [1, 2, 3, 4, 5]
        here.flow_logs.readings.close()
        await here.store.stop()


@in_world
async def test_what_may_not_be_written_is_dropped_and_said_and_goes_on_when_it_may_again(lab: Lab) -> None:
    here = Logged(lab)
    await here.start()
    assert await here.minute(60) is None
    # the policy no longer lets the service write
    await lab.put(replace(here.bucket, policy=None))
    assert await here.minute(120) == ACCESS_ERROR
    await lab.put(here.bucket)
    assert await here.minute(180) is None
    # the bucket is deleted, with all that is in it
    before = await here.told()
    assert before == {1: 1, 3: 3}
    with lab.engine.transaction() as tx:
        tx.delete(Bucket, "flows")
    await lab.settle()
    assert await here.minute(240) == ACCESS_ERROR
    # it is there by name, and not in the store
    await lab.put(here.bucket)
    listed = (await here.ask("GET", "/flows", "list-type=2"))[1].decode()
    for key in re.findall("<Key>([^<]*)</Key>", listed):
        await here.ask("DELETE", f"/flows/{key}")
    assert (await here.ask("DELETE", "/flows"))[0] == 204
    assert await here.minute(300) == ACCESS_ERROR
    # it is made again
    assert (await here.ask("PUT", "/flows"))[0] == 200
    assert await here.minute(360) is None
    assert await here.told() == {6: 6}
    # elsewhere everything came
    assert here.in_cloudwatch() == [1, 2, 3, 4, 5, 6]
    here.flow_logs.readings.close()
    await here.store.stop()
