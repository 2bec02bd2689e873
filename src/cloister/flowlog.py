"""Flow logs: what the kernel counted becomes records, and records go to CloudWatch Logs and S3.

Every `READ_SECONDS` each logged VPC is read (`flow_readings`); at the end of each log's interval the readings
that ended in it are aggregated and delivered. A reading stays until every log has had it: what could not be
delivered is tried again, and a daemon that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import aiohttp

from cloister import parquet
from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.flow_delivery import ACCESS_ERROR, UNKNOWN_ERROR, may_log, may_put, session
from cloister.flow_readings import Reading, Readings, Traffic, aggregate
from cloister.iam.model import Principal
from cloister.kernel.netns import Namespaces
from cloister.kernel.nft import NftError
from cloister.kernel.reconcile import Reconciler
from cloister.logs import LogExists, LogStore, UnknownLog
from cloister.s3.address import encode_path
from cloister.s3.backend import Backend
from cloister.vpc import addresses as ip
from cloister.vpc import endpoints, gateways, route_tables
from cloister.vpc.flow_logs import POINTS, FlowLog
from cloister.vpc.flow_records import (
    NUMBERS,
    Logged,
    Record,
    Scene,
    bucket_and_prefix,
    empty_record,
    fields_of,
    flow_record,
    line,
    object_key,
    stream_name,
    text_file,
)
from cloister.vpc.model import NetworkInterface, Subnet, Vpc
from cloister.wire.errors import AwsError
from cloister.world import Change, World

log = logging.getLogger(__name__)

READ_SECONDS = 15
#: in which the object store has to take a file: while it is waited for, nothing is read
STORE_SECONDS = 10.0
#: events put into a log stream without letting others run
_BATCH = 1000


class AccessError(Exception):
    """The records may not be written where they shall go."""


class StoreDown(OSError):
    """The object store does not answer."""


class FlowLogs:
    """`backend` holds the objects of S3."""

    def __init__(
        self,
        path: Path | str,
        engine: Engine,
        fabric: Fabric,
        reconciler: Reconciler,
        namespaces: Namespaces,
        logs: LogStore,
        backend: Backend | None,
        *,
        account: str,
        region: str,
    ) -> None:
        self.readings = Readings(path, fabric, reconciler, namespaces)
        self._engine = engine
        self._fabric = fabric
        self._logs = logs
        self._backend = backend
        self._account = account
        self._region = region
        #: interfaces that are gone, whose last packets may not have been read yet; by port
        self._gone: dict[str, tuple[float, Logged]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._engine.subscribe(self._committed)
        self._task = asyncio.create_task(self._run(), name="flow logs")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.readings.close()

    async def _run(self) -> None:
        while True:
            clock = self._engine.clock
            tick = (math.floor(clock() / READ_SECONDS) + 1) * READ_SECONDS
            await asyncio.sleep(tick - clock())
            try:
                await self.collect(tick)
                await self.deliver(tick)
            except Exception:
                log.exception("flow logs failed; tried again in %s seconds", READ_SECONDS)

    # --- reading -----------------------------------------------------------------------------------------

    async def collect(self, now: int) -> None:
        """Read what the kernel counted in every logged VPC."""
        world = self._fabric.applied_world
        ports: dict[str, dict[str, Logged]] = {}
        for vpc_id in sorted({flow_log.vpc_id for flow_log in world.all(FlowLog)}):
            if world.get(Vpc, vpc_id) is None:  # gone, and its logs were left
                continue
            here = ports.setdefault(vpc_id, self._ports(world, vpc_id))
            try:
                await self.readings.read(vpc_id, here.get, now)
            except (LookupError, OSError, NftError):
                log.exception("cannot read the flows of %s", vpc_id)
        kept = now - 4 * READ_SECONDS
        self._gone = {port: each for port, each in self._gone.items() if each[0] > kept}

    def _ports(self, world: World, vpc_id: str) -> dict[str, Logged]:
        found = {port: logged for port, (_, logged) in self._gone.items()}
        for interface in world.where(NetworkInterface, vpc_id=vpc_id):
            found |= _ports_of(world, interface)
        return found

    def _committed(self, before: World, after: World, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change.before, NetworkInterface) and change.after is None:
                for port, logged in _ports_of(before, change.before).items():
                    self._gone[port] = (self._engine.clock(), logged)

    # --- delivery ----------------------------------------------------------------------------------------

    async def deliver(self, now: int) -> None:
        """Deliver every interval that has ended, of every log. What the object store did not take is tried
        again; what may not be written is not kept."""
        down = False
        for flow_log in list(self._engine.world.all(FlowLog)):
            until = now // flow_log.interval * flow_log.interval
            done = self.readings.delivered(flow_log.flow_log_id)
            if done is None:
                done = int(flow_log.created) // flow_log.interval * flow_log.interval
            for end in self._intervals(flow_log, done, until):
                error: str | None = None
                try:
                    if down and flow_log.destination_type == "s3":  # not waited for once more
                        raise StoreDown("the object store does not answer")
                    await self._deliver(flow_log, done, end)
                except (AccessError, UnknownLog):
                    error = ACCESS_ERROR
                except (AwsError, OSError, aiohttp.ClientError) as failure:
                    down = down or isinstance(failure, StoreDown)
                    log.warning("cannot deliver %s, tried again: %r", flow_log.flow_log_id, failure)
                    self._note(flow_log.flow_log_id, UNKNOWN_ERROR)
                    break
                self._note(flow_log.flow_log_id, error)
                self.readings.set_delivered(flow_log.flow_log_id, end)
                done = end
        world = self._engine.world
        for vpc_id in {flow_log.vpc_id for flow_log in world.all(FlowLog)}:
            logs = world.where(FlowLog, vpc_id=vpc_id)
            self.readings.forget(vpc_id, min(self._done(flow_log) for flow_log in logs))

    def _done(self, flow_log: FlowLog) -> int:
        done = self.readings.delivered(flow_log.flow_log_id)
        return int(flow_log.created) // flow_log.interval * flow_log.interval if done is None else done

    def _intervals(self, flow_log: FlowLog, done: int, until: int) -> list[int]:
        """Where the intervals end that are to be delivered: those with readings, and the last one."""
        size = flow_log.interval
        ends = {-(-end // size) * size for end in self.readings.ends(flow_log.vpc_id, done)}
        return sorted(end for end in ends | {until} if done < end <= until)

    def _note(self, flow_log_id: str, error: str | None) -> None:
        current = self._engine.world.get(FlowLog, flow_log_id)
        if current is not None and current.error != error:
            with self._engine.transaction() as tx:
                tx.put(replace(current, error=error))

    async def _deliver(self, flow_log: FlowLog, done: int, end: int) -> None:
        world = self._engine.world
        start = max(done, end - flow_log.interval)
        readings = self.readings.between(flow_log.vpc_id, done, end)
        records = await asyncio.to_thread(self._records, world, flow_log, readings, start, end)
        if flow_log.destination_type == "s3":
            await self._to_s3(world, flow_log, [each for some in records.values() for each in some], end)
        else:
            await self._to_logs(world, flow_log, records, start, end)

    def _records(
        self, world: World, flow_log: FlowLog, readings: list[Reading], start: int, end: int
    ) -> dict[str, list[Record]]:
        """The records of each interface."""
        fields = fields_of(flow_log.log_format)
        verdicts = {"ACCEPT": (True,), "REJECT": (False,)}.get(flow_log.traffic_type, (True, False))

        def covered(logged: Logged) -> bool:
            return flow_log.resource_id in (logged.interface_id, logged.subnet_id, logged.vpc_id)

        traffic = aggregate(readings, covered, [point for point in POINTS if point.accept in verdicts])
        for interface in world.where(NetworkInterface, vpc_id=flow_log.vpc_id):
            logged = _logged(world, interface)
            if covered(logged) and any(held.netns for held in interface.addresses):
                traffic.setdefault(interface.interface_id, Traffic(logged=logged))
        lost = any(reading.lost for reading in readings)
        found: dict[str, list[Record]] = {}
        for interface_id, its in traffic.items():
            scene = self._scene(world, fields, its)
            records = [flow_record(fields, its.logged, key, of, scene) for key, of in its.flows.items()]
            if its.skipped or lost:
                records.append(empty_record(fields, its.logged, start, end, "SKIPDATA", scene))
            elif not records:
                records.append(empty_record(fields, its.logged, start, end, "NODATA", scene))
            found[interface_id] = records
        return found

    def _scene(self, world: World, fields: tuple[str, ...], traffic: Traffic) -> Scene:
        services: dict[str, str] = {}
        paths: dict[str, int] = {}
        if "pkt-src-aws-service" in fields or "pkt-dst-aws-service" in fields:
            for address in {a for key in traffic.flows for a in (key.source, key.destination)}:
                service = endpoints.service_at(address, self._region)
                if service is not None:
                    services[address] = service.label
                elif gateways.is_service(address):
                    services[address] = "AMAZON"
        if "traffic-path" in fields:
            subnet = world.get(Subnet, traffic.logged.subnet_id)
            table = route_tables.of_subnet(world, subnet) if subnet is not None else None
            for address in {key.destination for key in traffic.flows if key.egress}:
                hop = route_tables.lookup(world, table, address) if table is not None else None
                if hop is not None and hop.kind in _PATHS:
                    paths[address] = _PATHS[hop.kind]
        return Scene(account=self._account, region=self._region, services=services, paths=paths)

    async def _to_logs(
        self,
        world: World,
        flow_log: FlowLog,
        records: Mapping[str, list[Record]],
        start: int,
        end: int,
    ) -> None:
        who = session(world, flow_log, self._account, self._region)
        if who is None:
            raise AccessError
        group = flow_log.destination
        for interface_id, its in records.items():
            stream = stream_name(flow_log, interface_id)
            arn = f"arn:aws:logs:{self._region}:{self._account}:log-group:{group}:log-stream:{stream}"
            self._make_stream(world, who, group, stream)
            if not may_log(world, who, "PutLogEvents", arn):
                raise AccessError
            # The position in the stream says how far a delivery came that was broken off.
            mark = f"{flow_log.flow_log_id} {end} "
            position = self._logs.position(group, stream)
            first = int(position.removeprefix(mark)) if position.startswith(mark) else 0
            now = int(self._engine.clock() * 1000)
            for at in range(first, len(its), _BATCH):
                part = [(start * 1000, line(record)) for record in its[at : at + _BATCH]]
                self._logs.put(group, stream, part, now=now, position=f"{mark}{at + len(part)}")
                await asyncio.sleep(0)

    def _make_stream(self, world: World, who: Principal, group: str, stream: str) -> None:
        base = f"arn:aws:logs:{self._region}:{self._account}:log-group:{group}"
        now = int(self._engine.clock() * 1000)
        try:
            self._logs.stream(group, stream)
            return
        except UnknownLog as unknown:
            if unknown.what == "group":
                if not may_log(world, who, "CreateLogGroup", base):
                    raise AccessError from unknown
                self._logs.create_group(group, created=now)
        if not may_log(world, who, "CreateLogStream", f"{base}:log-stream:{stream}"):
            raise AccessError
        try:
            self._logs.create_stream(group, stream, created=now)
        except LogExists:
            return

    async def _to_s3(self, world: World, flow_log: FlowLog, records: list[Record], end: int) -> None:
        if not records:
            return
        bucket, _ = bucket_and_prefix(flow_log.destination)
        key = object_key(flow_log, account=self._account, region=self._region, end=end)
        if not may_put(world, flow_log, key, self._account, self._region):
            raise AccessError
        body = await asyncio.to_thread(file_of, flow_log, records)
        if self._backend is None:
            raise OSError("there is no object store")
        path = encode_path(bucket, self._backend.names.stored(key))
        try:
            async with asyncio.timeout(STORE_SECONDS):
                answer = await self._backend.request(
                    "PUT", path, headers=(("Content-Length", str(len(body))),), body=body
                )
                async with answer:
                    status = answer.status
        except (AwsError, TimeoutError) as error:
            raise StoreDown("the object store does not answer") from error
        if status == 404:
            raise AccessError
        if status != 200:
            raise OSError(f"the object store answered {status}")


#: AWS: "traffic-path": through another resource in the same VPC; peering; a gateway endpoint, an internet
#: gateway (instances on Nitro). A NAT gateway is a resource in the same VPC.
_PATHS = {"local": 1, "nat": 1, "eni": 1, "pcx": 4, "vpce": 7, "igw": 8}


def file_of(flow_log: FlowLog, records: Iterable[Record]) -> bytes:
    """The file for S3 of one interval."""
    fields = fields_of(flow_log.log_format)
    if flow_log.file_format != "parquet":
        return gzip.compress(text_file(fields, records).encode(), 6, mtime=0)
    kinds = {32: parquet.INT32, 64: parquet.INT64}
    columns = [
        parquet.Column(
            name=name.replace("-", "_"),
            type=kinds[NUMBERS[name]] if name in NUMBERS else parquet.BYTE_ARRAY,
        )
        for name in fields
    ]
    return parquet.write(columns, list(records), "cloister")


def _logged(world: World, interface: NetworkInterface) -> Logged:
    subnet = world.get(Subnet, interface.subnet_id)
    ordered = sorted(interface.addresses, key=lambda held: not held.primary)
    return Logged(
        interface_id=interface.interface_id,
        subnet_id=interface.subnet_id,
        vpc_id=interface.vpc_id,
        zone_id=subnet.zone_id if subnet is not None else "",
        addresses=tuple(held.address for held in ordered),
    )


def _ports_of(world: World, interface: NetworkInterface) -> dict[str, Logged]:
    logged = _logged(world, interface)
    return {
        ip.port(interface.interface_id, index): replace(logged, address=held.address)
        for index, held in enumerate(interface.addresses)
        if held.netns is not None
    }
