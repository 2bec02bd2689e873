"""What every job reached and was refused, kept for `cloister receipt` and for `cloister why` of an ended job.

Three sources: the connections that the VPC's router tracked (read every few seconds, and once more before the
interfaces go; the kernel tells of those that end, with their final counts), the packets that it refused
(`vpc/refusals.py`), and the decisions of policies at the doors. What is whose is told by the interface that
it comes from; at a door of the internet, where that is not to be seen, by the keys that a request is signed
with. Aggregated, so a job's record stays small (`records.py`).

A daemon may be killed at any moment: what the kernel tells waits for the next one on the holder's shelf, with
what was read and not kept yet (`kernel/endings.py`). Of decisions and names the first of each kind is kept at
once; how often it came, with the next reading. Where something may be missing all the same, `gaps` says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cloister import records, refused_packets
from cloister.engine import Engine
from cloister.iam.decide import Decision
from cloister.iam.model import Principal
from cloister.jobs.model import Instance, ProcessingJob, agent_of
from cloister.kernel.conntrack import Connection
from cloister.kernel.endings import Endings
from cloister.kernel.netns import Namespaces
from cloister.kernel.shelf import Shelf
from cloister.records import Record, Who
from cloister.services.api import Origin
from cloister.vpc import addresses as ip
from cloister.vpc import middleboxes, refusals
from cloister.vpc.flow import Step
from cloister.vpc.model import NetworkInterface
from cloister.why.job import objects_like
from cloister.why.receipt import network_of, refused
from cloister.world import Change, World

log = logging.getLogger(__name__)

#: seconds; shorter than the kernel keeps any connection that has ended (10 s)
_EVERY = 4.0
#: seconds in which the kernel tells the ends of connections that it was made to forget
_PATIENCE = 5.0
_AWAY = "Cloister was started again meanwhile: connections that began and ended before that may be missing."
_DEAF = "This kernel does not tell when connections end: those of under 4 seconds may be missing."
_UNTOLD = "The end of a connection was not told: its last bytes, and other short ones, may be missing."
_ANEW = (
    "The router's rules were built anew meanwhile: what they refused in the moments before may be missing."
)
_MANY = f"Over {refusals.SIZE:,} destinations were refused in the VPC: some may be missing."
_SCHEMA = """
CREATE TABLE IF NOT EXISTS witness (job TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS heard (vpc TEXT PRIMARY KEY, epoch INTEGER NOT NULL, told INTEGER NOT NULL);
"""


@dataclass(slots=True, kw_only=True)
class _Listener:
    """Of one router. `late`: since the last reading the kernel had more to tell than there was room for."""

    namespace: int | None
    endings: Endings | None  # None: this kernel has none to tell
    late: bool = False


class Witness:
    """`steer(vpc_id, commands)` runs nft commands in a router. Without a `shelf` nothing waits for the next
    daemon."""

    def __init__(
        self,
        path: Path,
        engine: Engine,
        namespaces: Namespaces,
        steer: Callable[[str, str], Awaitable[None]],
        shelf: Shelf | None = None,
    ) -> None:
        self._engine = engine
        self._namespaces = namespaces
        self._steer = steer
        self._shelf = shelf
        self._store = sqlite3.connect(path, isolation_level=None)
        path.chmod(0o600)  # before its log is made, which gets the same mode
        self._store.execute("PRAGMA journal_mode=WAL")
        self._store.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last lines
        self._store.executescript(_SCHEMA)
        self._live: set[str] = set()  # jobs that have not ended
        self._records: dict[str, Record] = {}
        self._changed: set[str] = set()  # of which jobs there is more than is kept
        self._whos: dict[tuple[str, str], Who] = {}  # (VPC, address)
        self._job_of: dict[str, str] = {}  # by access key id
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()  # of two readings, the older must not come in last
        self._listeners: dict[str, _Listener] = {}  # by VPC
        self._missing: set[tuple[str, str]] = set()  # (job, key in `open`): not in the last reading

    async def start(self) -> None:
        """Before the rules of any router change: the first reading has what they refused so far."""
        known = {job.job_id for job in self._engine.world.all(ProcessingJob)}
        kept = {job_id for (job_id,) in self._store.execute("SELECT job FROM witness")}
        for job_id in kept - known:
            self._forget(job_id)
        for job in self._engine.world.all(ProcessingJob):
            if not job.terminal:
                self._meet(self._engine.world, job)
                if self._load(job.job_id).begun:
                    self._know(job)
        self._take_over()
        await self._read_all()
        self._engine.subscribe(self._committed)
        self._task = asyncio.create_task(self._watch(), name="witness")

    async def stop(self) -> None:
        """What is on the shelf stays there."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._keep()
        for vpc_id in list(self._listeners):
            self._close(vpc_id)
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
            record, world = self._more_of(job_id), self._engine.world
            asked = (name, origin.endpoint_id, action, resource, decision, alike)
            # The kernel does not know of it: it is kept before the answer is given.
            if records.add_request(record, world, *asked):
                self._keep()

    def told(self, vpc_id: str, source: str, name: str, addresses: tuple[str, ...]) -> None:
        """The VPC's resolver gave these addresses for a name."""
        who = self._whos.get((vpc_id, source))
        if who is not None:
            record = self._more_of(who.job_id)
            if records.add_name(record, self._engine.world, who, name, addresses):
                self._keep()

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
        self._more_of(job.job_id).keys[access_key_id] = who
        self._job_of[access_key_id] = job.job_id
        self._keep()

    def _of_keys(self, decision: Decision) -> tuple[str | None, str]:
        caller = decision.request.principal
        key = caller.access_key_id if isinstance(caller, Principal) else ""
        job_id = self._job_of.get(key)
        return (job_id, self._load(job_id).keys[key]) if job_id is not None else (None, "")

    # ---- a job's life, as its supervisor tells -----------------------------------------------------

    async def first(self, job: ProcessingJob) -> None:
        """Its interfaces are there, and nothing uses them yet."""
        interfaces = (self._engine.world.get(NetworkInterface, each.interface_id) for each in job.instances)
        record = self._more_of(job.job_id)
        for vpc_id in {each.vpc_id for each in interfaces if each is not None}:
            try:
                async with self._reading:
                    await self._listen(vpc_id)
                    table = await asyncio.to_thread(self._namespaces.call, vpc_id, refused_packets.table)
                    record.table = record.table or table
                    # Of whoever had the addresses before.
                    self._told(vpc_id)
                    self._know(job)
            except Exception:  # it keeps no job from starting
                log.exception("what job %s reaches is not told yet", job.name)
        self._know(job)
        record.begun = True
        self._keep()

    async def noticed(self, job: ProcessingJob) -> tuple[str, Step] | None:
        """The first thing that was refused to one of the job's containers so far, in words and as a step."""
        await self._look_at(job)
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
        """Nothing uses its interfaces any more, which are still there: what the rules noted of them is read,
        kept and cleared."""
        await self._look_at(job)
        self._keep()
        if not self._load(job.job_id).refused:
            return
        for vpc_id, ports in self._ports(job).items():
            try:
                clear = partial(refused_packets.clearing, ports)
                commands = await asyncio.to_thread(self._namespaces.call, vpc_id, clear)
                if commands:
                    await self._steer(vpc_id, commands)
            except Exception:
                log.exception("what was refused to job %s could not be cleared", job.name)

    async def gone(self, job: ProcessingJob) -> None:
        """Its interfaces are gone, and its connections with them: their last packets are told."""
        record = self._more_of(job.job_id)
        for vpc_id in self._ports(job):
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    while True:
                        async with self._reading:
                            self._told(vpc_id)
                        listener = self._listeners.get(vpc_id)
                        if not record.open or listener is None or not listener.late:
                            break
                        await asyncio.sleep(0.02)
            listener = self._listeners.get(vpc_id)
            if record.open and listener is not None and listener.endings is not None:
                self._lacks(job.job_id, _UNTOLD)
        self._keep()

    async def _look_at(self, job: ProcessingJob) -> None:
        """That it cannot be read keeps no job from ending."""
        for vpc_id in self._ports(job):
            try:
                await self._read(vpc_id)
            except Exception:
                log.exception("what job %s reached could not be read", job.name)

    def _ports(self, job: ProcessingJob) -> dict[str, set[str]]:
        """The router's ends of the job's pairs, by VPC."""
        found: dict[str, set[str]] = {}
        for who in self._whos.values():
            if who.job_id == job.job_id:
                found.setdefault(who.interface.vpc_id, set()).add(who.port)
        return found

    # ---- who is who ------------------------------------------------------------------------------

    def _committed(self, before: World, after: World, changes: list[Change]) -> None:
        for change in changes:
            if change.kind == "processing-job":
                if change.after is None:
                    self._forget(change.before.job_id)
                else:
                    self._meet(after, change.after)

    def _meet(self, world: World, job: ProcessingJob) -> None:
        if job.terminal:
            self._part(job)
            return
        self._live.add(job.job_id)
        record = self._load(job.job_id)
        if not record.network and (network := network_of(world, job)):
            self._more_of(job.job_id).network = network

    def _know(self, job: ProcessingJob) -> None:
        """From now on the job's addresses are its own. They are remembered: of a job that ends, interfaces go
        before their last connections are told."""
        record, world = self._more_of(job.job_id), self._engine.world
        if not record.whos:
            for instance in job.instances:
                interface = world.get(NetworkInterface, instance.interface_id)
                if interface is not None:
                    record.whos += _whos(job, instance, interface)
        for who in record.whos:
            self._whos[who.interface.vpc_id, who.address] = who
        self._job_of.update(dict.fromkeys(record.keys, job.job_id))

    def _part(self, job: ProcessingJob) -> None:
        for key in [key for key, who in self._whos.items() if who.job_id == job.job_id]:
            del self._whos[key]
        for access_key_id in self._load(job.job_id).keys:
            self._job_of.pop(access_key_id, None)
        self._live.discard(job.job_id)
        self._keep()
        self._missing = {each for each in self._missing if each[0] != job.job_id}
        for vpc_id in self._listeners.keys() - self._vpcs():
            self._hush(vpc_id)

    # ---- listening -------------------------------------------------------------------------------

    def _vpcs(self) -> set[str]:
        return {vpc_id for vpc_id, _ in self._whos}

    def _take_over(self) -> None:
        """Go on with what the daemon before listened to."""
        kept: dict[str, list[int]] = {}
        if self._shelf is not None:
            try:
                kept = self._shelf.look()
            except (OSError, ValueError):
                log.exception("what was kept for this daemon cannot be had")
        heard = {vpc: (epoch, told) for vpc, epoch, told in self._store.execute("SELECT * FROM heard")}
        for vpc_id in self._vpcs():
            number = self._namespaces.number(vpc_id)
            files = kept.pop(f"{vpc_id} {number}", None)
            if files is None:
                self._gap(vpc_id, _AWAY)
                continue
            try:
                endings = Endings(files)
            except (OSError, ValueError):
                log.exception("what was kept of %s for this daemon cannot be had", vpc_id)
                self._gap(vpc_id, _AWAY)
                continue
            endings.go_on(heard.get(vpc_id, (0, 0)))
            self._attach(vpc_id, _Listener(namespace=number, endings=endings))
        for fd in (fd for files in kept.values() for fd in files):
            os.close(fd)
        self._shelve()
        for vpc_id in heard.keys() - self._listeners.keys():
            self._store.execute("DELETE FROM heard WHERE vpc = ?", (vpc_id,))

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
        self._attach(vpc_id, _Listener(namespace=number, endings=endings))
        self._shelve()

    def _attach(self, vpc_id: str, listener: _Listener) -> None:
        self._listeners[vpc_id] = listener
        if listener.endings is not None:
            asyncio.get_running_loop().add_reader(listener.endings.fileno(), self._hear, vpc_id)

    def _shelve(self) -> None:
        if self._shelf is None:
            return
        kept = {
            f"{vpc_id} {each.namespace}": each.endings.files
            for vpc_id, each in self._listeners.items()
            if each.endings is not None
        }
        try:
            self._shelf.keep(kept)
        except OSError:
            log.exception("nothing is kept for the next daemon")

    def _hush(self, vpc_id: str) -> None:
        if vpc_id in self._listeners:
            self._close(vpc_id)
            self._shelve()

    def _close(self, vpc_id: str) -> None:
        listener = self._listeners.pop(vpc_id)
        if listener.endings is not None:
            asyncio.get_running_loop().remove_reader(listener.endings.fileno())
            listener.endings.close()

    def _hear(self, vpc_id: str) -> bool:
        """Take what the kernel has told so far; whether there was anything."""
        listener = self._listeners.get(vpc_id)
        if listener is None or listener.endings is None:
            return False
        try:
            some, late = listener.endings.read()
        except OSError:
            log.exception("the ends of connections in %s are told no longer: asked for anew", vpc_id)
            self._gap(vpc_id, _UNTOLD)
            self._hush(vpc_id)
            return False
        listener.late = listener.late or late
        if not self._reading.locked():
            self._end(vpc_id)
        return some

    def _told(self, vpc_id: str) -> None:
        """Take all that the kernel has told."""
        while self._hear(vpc_id):
            self._end(vpc_id)
        self._end(vpc_id)

    def _end(self, vpc_id: str) -> None:
        listener = self._listeners.get(vpc_id)
        if listener is not None and listener.endings is not None:
            self._ended(vpc_id, listener.endings.tell())
            if listener.endings.full:
                self._keep()

    def _ended(self, vpc_id: str, ended: list[Connection]) -> None:
        """The final counts of connections; their numbers may be used again."""
        for each in ended:
            for who, way in self._of(vpc_id, each):
                record = self._more_of(who.job_id)
                records.add_connection(record, self._engine.world, who, way, each)
                record.open.pop(f"{each.number} {way}", None)

    def _of(self, vpc_id: str, each: Connection) -> Iterator[tuple[Who, str]]:
        for address, way in ((each.source, "to"), (each.destination, "from")):
            who = self._whos.get((vpc_id, address))
            if who is not None and middleboxes.is_of(self._engine.world, who.interface, each.zone):
                yield who, way

    # ---- reading ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            await self._read_all()

    async def _read_all(self) -> None:
        for vpc_id in self._vpcs():
            try:
                await self._read(vpc_id)
            except Exception:
                log.exception("what the jobs in %s reached could not be read", vpc_id)
        self._keep()

    async def _read(self, vpc_id: str) -> None:
        async with self._reading:
            try:
                await self._listen(vpc_id)
                if vpc_id not in self._vpcs():  # the last job ended meanwhile
                    self._hush(vpc_id)
                    return
                self._told(vpc_id)
                found, noted, table = await asyncio.to_thread(
                    self._namespaces.call, vpc_id, refused_packets.look
                )
            except LookupError:  # the namespace is not there yet
                return
            # Whatever was told meanwhile is younger than what was read, or as old.
            seen = self._take(vpc_id, found, noted, table)
            self._told(vpc_id)
            listener = self._listeners.get(vpc_id)
            if listener is not None and listener.late:
                listener.late = False  # what is in no reading any more may be told yet
            else:
                self._miss(vpc_id, seen)

    def _gap(self, vpc_id: str, why: str) -> None:
        """Of all jobs in the VPC."""
        for job_id in self._jobs_in(vpc_id):
            self._lacks(job_id, why)

    def _lacks(self, job_id: str, why: str) -> None:
        gaps = self._more_of(job_id).gaps
        if why not in gaps:
            gaps.append(why)

    def _jobs_in(self, vpc_id: str) -> set[str]:
        return {who.job_id for who in self._whos.values() if who.interface.vpc_id == vpc_id}

    def _miss(self, vpc_id: str, seen: dict[str, set[str]]) -> None:
        """Forget connections that are in no reading any more though their end was not told. Twice missed: a
        walk of the kernel's table may miss one that is there."""
        for job_id in self._jobs_in(vpc_id):
            record = self._load(job_id)
            before = {key for missed, key in self._missing if missed == job_id}
            gone = record.open.keys() - seen.get(job_id, set())
            for key in gone & before:
                del record.open[key]
                self._lacks(job_id, _UNTOLD)
            self._missing -= {(job_id, key) for key in before}
            self._missing |= {(job_id, key) for key in gone - before}

    def _take(
        self, vpc_id: str, found: list[Connection], noted: list[refused_packets.Noted], table: int
    ) -> dict[str, set[str]]:
        """The keys in `open` that are in this reading, by job."""
        seen: dict[str, set[str]] = {}
        for each in found:
            for who, way in self._of(vpc_id, each):
                records.add_connection(self._more_of(who.job_id), self._engine.world, who, way, each)
                seen.setdefault(who.job_id, set()).add(f"{each.number} {way}")
        for job_id in self._jobs_in(vpc_id):
            if records.count_from_zero(self._load(job_id), table):
                self._lacks(job_id, _ANEW)
        if refused_packets.overflow(noted):
            self._gap(vpc_id, _MANY)
        by_port = {who.port: who for who in self._whos.values() if who.interface.vpc_id == vpc_id}
        for port, address, protocol, number, packets, size in noted:
            if port in by_port:
                whose = by_port[port]
                record, world = self._more_of(whose.job_id), self._engine.world
                records.add_refusal(record, world, whose, address, protocol, number, packets, size)
        return seen

    # ---- keeping ---------------------------------------------------------------------------------

    def _load(self, job_id: str) -> Record:
        if job_id in self._records:
            return self._records[job_id]
        row = self._store.execute("SELECT record FROM witness WHERE job = ?", (job_id,)).fetchone()
        record = msgspec.json.decode(row[0], type=Record) if row else Record()
        if job_id in self._live:
            self._records[job_id] = record
        return record

    def _more_of(self, job_id: str) -> Record:
        """The record, to add to."""
        self._changed.add(job_id)
        return self._load(job_id)

    def _keep(self) -> None:
        """All that came, and how far the kernel was listened to, in one transaction."""
        changed = {job_id: self._records[job_id] for job_id in self._changed & self._records.keys()}
        listening = {vpc_id: each.endings for vpc_id, each in self._listeners.items() if each.endings}
        try:
            self._store.execute("BEGIN")
            self._store.executemany(
                "INSERT OR REPLACE INTO witness VALUES (?, ?)",
                [(job_id, msgspec.json.encode(record)) for job_id, record in changed.items()],
            )
            self._store.executemany(
                "INSERT OR REPLACE INTO heard VALUES (?, ?, ?)",
                [(vpc_id, *endings.position) for vpc_id, endings in listening.items()],
            )
            self._store.execute("COMMIT")
        except sqlite3.Error:  # a full disk may have room again later
            log.exception("what jobs reached could not be kept")
            if self._store.in_transaction:
                self._store.execute("ROLLBACK")
            return
        for endings in listening.values():
            endings.settle()
        self._changed.clear()
        for job_id in self._records.keys() - self._live:
            del self._records[job_id]

    def _forget(self, job_id: str) -> None:
        self._live.discard(job_id)
        self._records.pop(job_id, None)
        self._changed.discard(job_id)
        self._store.execute("DELETE FROM witness WHERE job = ?", (job_id,))


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
