"""What every job reached and was refused, kept for `cloister receipt` and for `cloister why` of an ended job.

Three sources: the connections that the VPC's router tracked (read every few seconds, and once more before the
interfaces go; the kernel tells of those that end in between, with their final counts), the packets that it
refused (`vpc/refusals.py`), and the decisions of policies at the doors. What is whose is told by the
interface that it comes from; at a door of the internet, where that is not to be seen, by the keys that a
request is signed with. Aggregated, so a job's record stays small (`records.py`). Of a killed daemon's last
seconds the kernel still knows most connections and the refusals, not the decisions. Where connections may be
missing, `gaps` says why.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister import records, refused_packets
from cloister.engine import Engine
from cloister.iam.decide import Decision
from cloister.iam.model import Principal
from cloister.jobs.model import Instance, ProcessingJob, agent_of
from cloister.kernel.conntrack import Connection, Endings
from cloister.kernel.netns import Namespaces
from cloister.records import Record, Who
from cloister.services.api import Origin
from cloister.vpc import addresses as ip
from cloister.vpc import middleboxes
from cloister.vpc.flow import Step
from cloister.vpc.model import NetworkInterface
from cloister.why.job import objects_like
from cloister.why.receipt import network_of, refused
from cloister.world import Change, World

log = logging.getLogger(__name__)

#: seconds; shorter than the kernel keeps any connection that has ended (10 s)
_EVERY = 4.0
#: seconds until a router that was not there yet is looked for again
_SOON = 0.2
_FULL = "More connections ended at once than could be taken down: some may be missing."
_AWAY = "Cloister was started again meanwhile: connections that began and ended before that may be missing."
_DEAF = "This kernel does not tell when connections end: those of under 4 seconds may be missing."
_UNTOLD = "The end of a connection was not told: its last bytes, and other short ones, may be missing."


@dataclass(slots=True, kw_only=True)
class _Listener:
    """Of one router. `pending` came while the router was being read: what was read comes first."""

    namespace: int | None
    endings: Endings | None  # None: this kernel has none to tell
    pending: list[Connection] = field(default_factory=list)


class Witness:
    def __init__(self, path: Path, engine: Engine, namespaces: Namespaces) -> None:
        self._engine = engine
        self._namespaces = namespaces
        self._store = sqlite3.connect(path, isolation_level=None)
        path.chmod(0o600)  # before its log is made, which gets the same mode
        self._store.execute("PRAGMA journal_mode=WAL")
        self._store.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last lines
        self._store.execute("CREATE TABLE IF NOT EXISTS witness (job TEXT PRIMARY KEY, record TEXT NOT NULL)")
        self._records: dict[str, Record] = {}
        self._whos: dict[tuple[str, str], Who] = {}  # (VPC, address)
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
        """What `records.told` says of the job."""
        return records.told(self._load(job.job_id))

    def decided(self, origin: Origin, action: str, resource: str, decision: Decision) -> None:
        """A door asked the policies about a request that came in at `origin`."""
        who = self._whos.get((origin.vpc_id or "", origin.address))
        job_id, name = (who.job_id, who.name) if who is not None else self._of_keys(decision)
        if job_id is not None:
            alike = partial(self._objects, job_id, name, action, resource)
            record, world = self._load(job_id), self._engine.world
            records.add_request(record, world, name, origin.endpoint_id, action, resource, decision, alike)

    def told(self, vpc_id: str, source: str, name: str, addresses: tuple[str, ...]) -> None:
        """The VPC's resolver gave these addresses for a name."""
        who = self._whos.get((vpc_id, source))
        if who is not None:
            records.add_name(self._load(who.job_id), self._engine.world, who, name, addresses)

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
                records.add_connection(self._load(who.job_id), self._engine.world, who, way, each)
                self._load(who.job_id).open.pop(f"{each.number} {way}", None)

    def _of(self, vpc_id: str, each: Connection) -> Iterator[tuple[Who, str]]:
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
                records.add_connection(self._load(who.job_id), self._engine.world, who, way, each)
                seen.setdefault(who.job_id, set()).add(f"{each.number} {way}")
        by_port = {who.port: who for who in self._whos.values() if who.interface.vpc_id == vpc_id}
        for port, address, protocol, number, packets, size in noted:
            if port in by_port:
                whose = by_port[port]
                record, world = self._load(whose.job_id), self._engine.world
                records.add_refusal(record, world, whose, address, protocol, number, packets, size)
        return seen

    # ---- keeping ---------------------------------------------------------------------------------

    def _load(self, job_id: str) -> Record:
        if job_id not in self._records:
            row = self._store.execute("SELECT record FROM witness WHERE job = ?", (job_id,)).fetchone()
            record = Record(**json.loads(row[0])) if row else Record()
            if not any(who.job_id == job_id for who in self._whos.values()) and row:
                return record  # of an ended job: nothing will be added
            self._records[job_id] = record
        return self._records[job_id]

    def _keep(self, job_id: str) -> None:
        record = self._records.get(job_id)
        if record is None:
            return
        text = json.dumps({name: getattr(record, name) for name in Record.__slots__})
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


def _whos(job: ProcessingJob, instance: Instance, interface: NetworkInterface) -> Iterator[Who]:
    names = {instance.address: instance.host, instance.agent_address: agent_of(instance)}
    for index, held in enumerate(interface.addresses):
        if held.address in names:
            yield Who(
                job_id=job.job_id,
                name=names[held.address],
                interface=interface,
                address=held.address,
                port=ip.port(interface.interface_id, index),
            )
