"""What every job reached and was refused, kept for `cloister receipt` and for `cloister why` of an ended job.

Three sources: the connections that the VPC's router tracked (read every few seconds, and once more before the
interfaces go; the kernel tells of those that end in between, with their final counts), the packets that it
refused (`vpc/refusals.py`), and the decisions of policies at the doors. What is whose is told by the
interface that it comes from; at a door of the internet, where that is not to be seen, by the keys that a
request is signed with. Aggregated, so a job's record stays small; beyond `LIMIT` lines of one kind only their
number is kept. Rules are looked up when a line is first seen: later changes do not alter it. Of a killed
daemon's last seconds the kernel still knows most connections and the refusals, not the decisions. Where
connections may be missing, `gaps` says why.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister import refused_packets
from cloister.engine import Engine
from cloister.iam.decide import Decision
from cloister.iam.model import Principal
from cloister.jobs.model import Instance, ProcessingJob, agent_of
from cloister.kernel.conntrack import Connection, Endings
from cloister.kernel.netns import Namespaces
from cloister.services.api import Origin
from cloister.vpc import addresses as ip
from cloister.vpc import changes, middleboxes
from cloister.vpc.dhcp import private_domain
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.model import NetworkInterface, Subnet, Vpc
from cloister.why import permission
from cloister.why.job import objects_like
from cloister.why.receipt import as_refused, network_of, refused, told_of
from cloister.why.request import resolver_step, towards
from cloister.world import Change, World

log = logging.getLogger(__name__)

#: seconds; shorter than the kernel keeps any connection that has ended (10 s)
_EVERY = 4.0
#: seconds until a router that was not there yet is looked for again
_SOON = 0.2
#: lines of one kind in a job's record
LIMIT = 1000
_FULL = "More connections ended at once than could be taken down: some may be missing."
_AWAY = "Cloister was started again meanwhile: connections that began and ended before that may be missing."
_DEAF = "This kernel does not tell when connections end: those of under 4 seconds may be missing."
_UNTOLD = "The end of a connection was not told: its last bytes, and other short ones, may be missing."
_NAMES = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Who:
    """The holder of an address of a job's interface."""

    job_id: str
    name: str  # "algo-1", "algo-1's agent"
    interface: NetworkInterface
    address: str
    port: str  # of the router


@dataclass(slots=True, kw_only=True)
class _Listener:
    """Of one router. `pending` came while the router was being read: what was read comes first."""

    namespace: int | None
    endings: Endings | None  # None: this kernel has none to tell
    pending: list[Connection] = field(default_factory=list)


@dataclass(slots=True)
class _Record:
    """`network` is what it was when the job's interfaces were there first."""

    network: dict[str, Any] = field(default_factory=dict)
    #: "algo-1 tcp 10.0.0.7 443 to" -> line
    flows: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: the kernel's number and a way -> [packets and bytes sent, received] so far
    open: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: int = 0
    #: why connections may be missing
    gaps: list[str] = field(default_factory=list)
    #: access key id of a session of the job's -> whose it is
    keys: dict[str, str] = field(default_factory=dict)
    #: address -> the name that it was told for
    names: dict[str, str] = field(default_factory=dict)
    #: "algo-1 NAME" -> the line of a name that does not exist
    unknown: dict[str, dict[str, Any]] = field(default_factory=dict)


class Witness:
    def __init__(self, path: Path, engine: Engine, namespaces: Namespaces) -> None:
        self._engine = engine
        self._namespaces = namespaces
        self._store = sqlite3.connect(path, isolation_level=None)
        path.chmod(0o600)  # before its log is made, which gets the same mode
        self._store.execute("PRAGMA journal_mode=WAL")
        self._store.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last lines
        self._store.execute("CREATE TABLE IF NOT EXISTS witness (job TEXT PRIMARY KEY, record TEXT NOT NULL)")
        self._records: dict[str, _Record] = {}
        self._whos: dict[tuple[str, str], _Who] = {}  # (VPC, address)
        self._job_of: dict[str, str] = {}  # by access key id
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()  # of two readings, the older must not come in last
        self._listeners: dict[str, _Listener] = {}  # by VPC
        self._wake = asyncio.Event()
        self._missing: set[tuple[str, str]] = set()  # (job, key in `open`): not in the last reading

    async def start(self) -> None:
        known = {job.job_id for job in self._engine.world.all(ProcessingJob)}
        kept = {job_id for (job_id,) in self._store.execute("SELECT job FROM witness")}
        for job_id in kept - known:
            self._forget(job_id)
        for job in self._engine.world.all(ProcessingJob):
            self._meet(self._engine.world, job)
            if job.job_id in kept and not job.terminal and self._load(job.job_id).network:
                self._lacks(job.job_id, _AWAY)
        self._engine.subscribe(self._committed)
        self._task = asyncio.create_task(self._watch(), name="witness")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for vpc_id in list(self._listeners):
            self._hush(vpc_id)
        for job_id in list(self._records):
            self._keep(job_id)
        self._store.close()

    def record(self, job: ProcessingJob) -> dict[str, Any]:
        """{"network", "flows", "refused", "requests": lines, "left_out": a number, "gaps": sentences}."""
        found = self._load(job.job_id)
        flows = [_plain(line) for line in found.flows.values()]
        lost = [line for line in flows if line.get("refusal") and not line["packets_received"]]
        reached = [line for line in flows if line not in lost]
        return {
            "network": found.network,
            "flows": [{name: value for name, value in line.items() if name != "refusal"} for line in reached],
            "refused": [
                *(_plain(line) for line in found.refused.values()),
                *(as_refused(line) for line in lost),
            ],
            "requests": [_plain(line) for line in found.requests.values()],
            "unknown_names": [_plain(line) for line in found.unknown.values()],
            "left_out": found.left_out,
            "gaps": list(found.gaps),
        }

    def decided(self, origin: Origin, action: str, resource: str, decision: Decision) -> None:
        """A door asked the policies about a request that came in at `origin`."""
        who = self._whos.get((origin.vpc_id or "", origin.address))
        job_id, name = (who.job_id, who.name) if who is not None else self._of_keys(decision)
        if job_id is None:
            return
        record = self._load(job_id)
        place = resource.partition("/")[0] if action.startswith("s3:") else resource
        outcome = "allowed" if decision.allowed else "refused"
        key = f"{name} {action} {place} {origin.endpoint_id} {outcome}"
        line = self._line(record, record.requests, key)
        if line is None:
            return
        if not line:
            wanted = "Allow" if decision.allowed else "Deny"
            line |= {
                "who": name,
                "action": action,
                "resource": place,
                "endpoint": origin.endpoint_id,
                "outcome": outcome,
                "by": [f"{m.origin}/{m.statement}" for m in decision.matches if m.effect == wanted],
                "count": 0,
            }
            if not decision.allowed:
                refusal = permission.refusal(
                    self._engine.world,
                    decision,
                    endpoint_id=origin.endpoint_id,
                    objects=self._objects(job_id, name, action, resource),
                )
                line |= {"example": resource, "why": refusal.sentence, "fix": refusal.fix}
        line["count"] += 1

    def told(self, vpc_id: str, source: str, name: str, addresses: tuple[str, ...]) -> None:
        """The VPC's resolver gave these addresses for a name."""
        who = self._whos.get((vpc_id, source))
        if who is None:
            return
        record = self._load(who.job_id)
        for address in addresses[: max(0, LIMIT - len(record.names))]:
            record.names[address] = name
        if not addresses:
            self._unknown(record, who, name)

    def _unknown(self, record: _Record, who: _Who, name: str) -> None:
        """A name that does not exist; with a search list it was asked for with the VPC's domain as well."""
        vpc = self._engine.world.get(Vpc, who.interface.vpc_id)
        subnet = self._engine.world.get(Subnet, who.interface.subnet_id)
        if vpc is None or subnet is None:
            return
        region = changes.region_of(subnet)
        bare = name.removesuffix(f".{private_domain(region)}")
        if bare != name and f"{who.name} {bare}" in record.unknown:
            return
        line = self._line(record, record.unknown, f"{who.name} {name}")
        if line is None:
            return
        if not line:
            step, _ = resolver_step(self._engine.world, vpc, name, region)
            line |= {"who": who.name, "name": name, **told_of(step), "questions": 0}
        line["questions"] += 1

    def _objects(self, job_id: str, who: str, action: str, resource: str) -> str | None:
        """The ARN of all objects like the one that a job's agent asked for."""
        method = {"s3:GetObject": "GET", "s3:PutObject": "PUT"}.get(action)
        found = (one for one in self._engine.world.all(ProcessingJob) if one.job_id == job_id)
        job = next(found, None) if method is not None else None
        if job is None or method is None or who not in {agent_of(each) for each in job.instances}:
            return None
        return objects_like(job.request, method, resource.replace("arn:aws:s3:::", "s3://", 1)) or None

    def issued(self, job: ProcessingJob, who: str, access_key_id: str) -> None:
        """Keys of the job's role were made for `who`."""
        self._load(job.job_id).keys[access_key_id] = who
        self._job_of[access_key_id] = job.job_id
        self._keep(job.job_id)

    def _of_keys(self, decision: Decision) -> tuple[str | None, str]:
        caller = decision.request.principal
        key = caller.access_key_id if isinstance(caller, Principal) else ""
        job_id = self._job_of.get(key)
        return (job_id, self._load(job_id).keys[key]) if job_id is not None else (None, "")

    async def noticed(self, job: ProcessingJob) -> tuple[str, Step] | None:
        """The first thing that was refused to one of the job's containers so far, in words and as a step."""
        await self._look_at(job, clear=False)
        hosts = {each.host for each in job.instances}
        found = (each for each in refused(self.record(job)) if each["who"] in hosts)
        first = next(found, None)
        if first is None:
            return None
        step = Step(
            gate=first["gate"],
            allowed=False,
            origin=first["by"] or "",
            sentence=first["why"],
            fix=first["fix"],
        )
        return first["what"], step

    async def last(self, job: ProcessingJob) -> None:
        """Read once more, before the job's interfaces go, and clear the kernel's notes of them."""
        await self._look_at(job, clear=True)
        self._keep(job.job_id)

    async def _look_at(self, job: ProcessingJob, *, clear: bool) -> None:
        """That it cannot be read keeps no job from ending."""
        whos = [who for who in self._whos.values() if who.job_id == job.job_id]
        for vpc_id in {who.interface.vpc_id for who in whos}:
            ports = {who.port for who in whos if who.interface.vpc_id == vpc_id}
            try:
                await self._read(vpc_id)
                if clear and self._load(job.job_id).refused:
                    await asyncio.to_thread(
                        self._namespaces.call, vpc_id, lambda ports=ports: refused_packets.clear(ports)
                    )
            except Exception:
                log.exception("what job %s reached could not be read", job.name)

    # ---- who is who ------------------------------------------------------------------------------

    def _committed(self, before: World, after: World, changes: list[Change]) -> None:
        for change in changes:
            if change.kind == "processing-job":
                if change.after is None:
                    self._forget(change.before.job_id)
                else:
                    self._meet(after, change.after)

    def _meet(self, world: World, job: ProcessingJob) -> None:
        """Know the job's interfaces while they are there."""
        if job.terminal:
            for key in [key for key, who in self._whos.items() if who.job_id == job.job_id]:
                del self._whos[key]
            for access_key_id in self._load(job.job_id).keys:
                self._job_of.pop(access_key_id, None)
            self._keep(job.job_id)
            self._missing = {each for each in self._missing if each[0] != job.job_id}
            for vpc_id in self._listeners.keys() - self._vpcs():
                self._hush(vpc_id)
            return
        for instance in job.instances:
            interface = world.get(NetworkInterface, instance.interface_id)
            if interface is not None:
                for who in _whos(job, instance, interface):
                    self._whos[interface.vpc_id, who.address] = who
                record = self._load(job.job_id)
                self._job_of.update(dict.fromkeys(record.keys, job.job_id))
                if not record.network:
                    record.network = network_of(world, job)
                if interface.vpc_id not in self._listeners:
                    self._wake.set()

    # ---- reading ---------------------------------------------------------------------------------

    def _vpcs(self) -> set[str]:
        return {vpc_id for vpc_id, _ in self._whos}

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SOON if self._vpcs() - self._listeners.keys() else _EVERY):
                    await self._wake.wait()
            self._wake.clear()
            for vpc_id in self._vpcs():
                try:
                    await self._read(vpc_id)
                except Exception:
                    log.exception("what the jobs in %s reached could not be read", vpc_id)
            for job_id in {who.job_id for who in self._whos.values()}:
                self._keep(job_id)

    async def _read(self, vpc_id: str) -> None:
        async with self._reading:
            try:
                await self._listen(vpc_id)
                self._told(vpc_id)
                found, noted = await asyncio.to_thread(self._namespaces.call, vpc_id, refused_packets.look)
            except LookupError:  # the namespace is not there yet
                return
            # Whatever was told meanwhile is younger than what was read, or as old.
            seen = self._take(vpc_id, found, noted)
            self._told(vpc_id)
            self._miss(vpc_id, seen)

    async def _listen(self, vpc_id: str) -> None:
        """Have the kernel tell of connections that end in this VPC's router."""
        number = self._namespaces.number(vpc_id)
        known = self._listeners.get(vpc_id)
        if known is not None and known.namespace == number:
            return
        self._hush(vpc_id)
        endings: Endings | None = None
        try:
            endings = await asyncio.to_thread(self._namespaces.call, vpc_id, Endings)
        except OSError:
            log.exception("the ends of connections in %s are not told", vpc_id)
            self._gap(vpc_id, _DEAF)
        if vpc_id not in self._vpcs():  # the last job ended meanwhile
            if endings is not None:
                endings.close()
            return
        self._listeners[vpc_id] = _Listener(namespace=number, endings=endings)
        if endings is not None:
            asyncio.get_running_loop().add_reader(endings.fileno(), self._hear, vpc_id)

    def _hush(self, vpc_id: str) -> None:
        listener = self._listeners.pop(vpc_id, None)
        if listener is not None and listener.endings is not None:
            asyncio.get_running_loop().remove_reader(listener.endings.fileno())
            listener.endings.close()

    def _hear(self, vpc_id: str) -> int:
        """Take what the kernel has told so far; how many connections that was."""
        listener = self._listeners.get(vpc_id)
        if listener is None or listener.endings is None:
            return 0
        try:
            found, lost = listener.endings.read()
        except OSError:
            log.exception("the ends of connections in %s are told no longer: asked for anew", vpc_id)
            self._gap(vpc_id, _FULL)
            self._hush(vpc_id)
            return 0
        if lost:
            self._gap(vpc_id, _FULL)
        listener.pending += found
        if not self._reading.locked():
            self._end(vpc_id)
        return len(found)

    def _told(self, vpc_id: str) -> None:
        """Take all that the kernel has told."""
        while self._hear(vpc_id):
            pass
        self._end(vpc_id)

    def _end(self, vpc_id: str) -> None:
        listener = self._listeners.get(vpc_id)
        if listener is not None:
            ended, listener.pending = listener.pending, []
            self._ended(vpc_id, ended)

    def _ended(self, vpc_id: str, ended: list[Connection]) -> None:
        """The final counts of connections; their numbers may be used again."""
        for each in ended:
            for who, way in self._of(vpc_id, each):
                self._connection(who, way, each)
                self._load(who.job_id).open.pop(f"{each.number} {way}", None)

    def _of(self, vpc_id: str, each: Connection) -> Iterator[tuple[_Who, str]]:
        for address, way in ((each.source, "to"), (each.destination, "from")):
            who = self._whos.get((vpc_id, address))
            if who is not None and middleboxes.is_of(self._engine.world, who.interface, each.zone):
                yield who, way

    def _gap(self, vpc_id: str, why: str) -> None:
        """Of all jobs in the VPC."""
        for job_id in {who.job_id for who in self._whos.values() if who.interface.vpc_id == vpc_id}:
            self._lacks(job_id, why)

    def _lacks(self, job_id: str, why: str) -> None:
        gaps = self._load(job_id).gaps
        if why not in gaps:
            gaps.append(why)

    def _miss(self, vpc_id: str, seen: dict[str, set[str]]) -> None:
        """Forget connections that are in no reading any more though their end was not told. Twice missed: a
        walk of the kernel's table may miss one that is there."""
        for job_id in {who.job_id for who in self._whos.values() if who.interface.vpc_id == vpc_id}:
            record = self._load(job_id)
            before = {key for missed, key in self._missing if missed == job_id}
            gone = record.open.keys() - seen.get(job_id, set())
            for key in gone & before:
                del record.open[key]
                self._lacks(job_id, _UNTOLD)
            self._missing -= {(job_id, key) for key in before}
            self._missing |= {(job_id, key) for key in gone - before}

    def _take(
        self, vpc_id: str, found: list[Connection], noted: list[refused_packets.Noted]
    ) -> dict[str, set[str]]:
        """The keys in `open` that are in this reading, by job."""
        seen: dict[str, set[str]] = {}
        for each in found:
            for who, way in self._of(vpc_id, each):
                self._connection(who, way, each)
                seen.setdefault(who.job_id, set()).add(f"{each.number} {way}")
        by_port = {who.port: who for who in self._whos.values() if who.interface.vpc_id == vpc_id}
        for port, address, protocol, number, packets, size in noted:
            if port in by_port:
                self._refusal(by_port[port], address, protocol, number, packets, size)
        return seen

    def _connection(self, who: _Who, way: str, each: Connection) -> None:
        record = self._load(who.job_id)
        other = each.destination if way == "to" else each.source
        protocol = _NAMES.get(each.protocol, str(each.protocol))
        line = self._line(record, record.flows, f"{who.name} {protocol} {other} {each.port} {way}")
        if line is None:
            return
        if not line:
            line |= {"who": who.name, "way": way, "other": other, "protocol": protocol}
            line["name"] = record.names.get(other)
            line["port"] = each.port or None
            line |= dict.fromkeys(("connections", "packets_sent", "bytes_sent"), 0)
            line |= dict.fromkeys(("packets_received", "bytes_received"), 0)
            if way == "to":
                verdict = self._explain(who, other, protocol, each.port)
                line["through"] = [step.origin for step in verdict.steps if step.allowed]
                if verdict.refusal is not None:  # further on than where the router notes it
                    line["refusal"] = told_of(verdict.refusal)
        sent, received = (each.sent, each.received) if way == "to" else (each.received, each.sent)
        counts = [*sent, *received]
        before = record.open.get(f"{each.number} {way}")
        if before is None or any(now < then for now, then in zip(counts, before, strict=True)):
            before = [0, 0, 0, 0]
            line["connections"] += 1
        names = ("packets_sent", "bytes_sent", "packets_received", "bytes_received")
        for name, now, then in zip(names, counts, before, strict=True):
            line[name] += now - then
        record.open[f"{each.number} {way}"] = counts

    def _refusal(self, who: _Who, address: str, protocol: int, port: int, packets: int, size: int) -> None:
        record = self._load(who.job_id)
        name = _NAMES.get(protocol, str(protocol))
        line = self._line(record, record.refused, f"{who.name} {name} {address} {port}")
        if line is None:
            return
        if not line:
            refusal = self._explain(who, address, name, port).refusal
            line |= {"who": who.name, "to": address, "name": record.names.get(address)}
            line |= {"protocol": name, "port": port or None}
            line |= told_of(refusal) | {"packets": 0, "bytes": 0, "_last": [0, 0]}
        last = line["_last"] if packets >= line["_last"][0] else [0, 0]  # less: the set was made anew
        line["packets"] += packets - last[0]
        line["bytes"] += size - last[1]
        line["_last"] = [packets, size]

    def _explain(self, who: _Who, address: str, protocol: str, port: int) -> Verdict:
        flow = Flow(
            source=who.address,
            vpc_id=who.interface.vpc_id,
            destination=address,
            protocol=protocol,
            port=port if protocol in ("tcp", "udp") else None,
        )
        world = self._engine.world
        found = explain(world, flow)
        known, subnet = (
            self._load(who.job_id).names.get(address),
            world.get(Subnet, who.interface.subnet_id),
        )
        steps, refusal = list(found.steps), found.refusal
        if known is None or subnet is None or refusal is None:
            return found
        at = steps.index(refusal)
        if all(step.becomes is None for step in steps[:at]):
            steps[at] = towards(world, who.interface, refusal, known, changes.region_of(subnet))
        return replace(found, steps=tuple(steps))

    @staticmethod
    def _line(record: _Record, lines: dict[str, dict[str, Any]], key: str) -> dict[str, Any] | None:
        if key not in lines and len(lines) >= LIMIT:
            record.left_out += 1
            return None
        return lines.setdefault(key, {})

    # ---- keeping ---------------------------------------------------------------------------------

    def _load(self, job_id: str) -> _Record:
        if job_id not in self._records:
            row = self._store.execute("SELECT record FROM witness WHERE job = ?", (job_id,)).fetchone()
            record = _Record(**json.loads(row[0])) if row else _Record()
            if not any(who.job_id == job_id for who in self._whos.values()) and row:
                return record  # of an ended job: nothing will be added
            self._records[job_id] = record
        return self._records[job_id]

    def _keep(self, job_id: str) -> None:
        record = self._records.get(job_id)
        if record is None:
            return
        text = json.dumps({name: getattr(record, name) for name in _Record.__slots__})
        self._store.execute("INSERT OR REPLACE INTO witness VALUES (?, ?)", (job_id, text))
        if not any(who.job_id == job_id for who in self._whos.values()):
            del self._records[job_id]

    def _forget(self, job_id: str) -> None:
        self._records.pop(job_id, None)
        self._store.execute("DELETE FROM witness WHERE job = ?", (job_id,))


def signing_key(state: Path) -> Ed25519PrivateKey:
    """The installation's key for receipts, made when it is first asked for."""
    path = state / "receipt.key"
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    found = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(found, Ed25519PrivateKey)
    return found


def _whos(job: ProcessingJob, instance: Instance, interface: NetworkInterface) -> Iterator[_Who]:
    names = {instance.address: instance.host, instance.agent_address: agent_of(instance)}
    for index, held in enumerate(interface.addresses):
        if held.address in names:
            yield _Who(
                job_id=job.job_id,
                name=names[held.address],
                interface=interface,
                address=held.address,
                port=ip.port(interface.interface_id, index),
            )


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith("_")}
