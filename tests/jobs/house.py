"""A supervisor with a real engine, store and logs, and fakes of what happens outside of the process."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.jobs.agent import Result, Spec
from cloister.jobs.containers import ContainerError, ContainerSpec, Exit
from cloister.jobs.images import Image, ImageConfig, ImageNotFound
from cloister.jobs.logfile import LogLine, LogPosition
from cloister.jobs.model import Instance, ProcessingJob
from cloister.jobs.supervise import Supervisor
from cloister.logs import LogStore
from cloister.options import Options
from cloister.services.sagemaker.processing_jobs import effective
from cloister.store import Store
from cloister.vpc.model import NetworkInterface


class FakeFabric:
    async def settled(self, revision: int) -> None:
        await asyncio.sleep(0)


class LoopbackSocket(socket.socket):
    """Where there is no namespace: the address that a container would reach does not exist."""

    def bind(self, address: Any) -> None:
        super().bind(("127.0.0.1", 0))


class FakeNamespaces:
    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}

    def path(self, name: str) -> Path:
        return Path("/run/netns") / name

    def socket(self, name: str, family: int, kind: int) -> socket.socket:
        self.sockets[name] = LoopbackSocket(family, kind)
        return self.sockets[name]


class FakeImages:
    async def resolve(self, uri: str) -> Image:
        if uri == "missing":
            raise ImageNotFound(uri, "Nobody has it.")
        return Image(name=uri, digest="sha256:0", layers=(), config=ImageConfig())


START = LogPosition()
Behaviour = Callable[[ContainerSpec, "FakeContainers"], None]


class FakeContainers:
    """Containers that outlive a supervisor, as the real ones do. `behave` is what a container does."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.specs: dict[str, ContainerSpec] = {}
        self.exits: dict[str, asyncio.Event] = {}
        self.codes: dict[str, Exit] = {}
        self.lines: dict[str, list[LogLine]] = {}
        self.signals: list[tuple[str, int]] = []
        self.starts = 0

    async def start(self, spec: ContainerSpec) -> None:
        if spec.id in self.specs:
            return
        if spec.entrypoint == ("nothing",):
            raise ContainerError("The container could not be started: no such file", 127)
        self.starts += 1
        self.specs[spec.id], self.exits[spec.id] = spec, asyncio.Event()
        self.lines[spec.id] = []
        self.behave(spec, self)

    def exit(self, container: str, code: int = 0, **more: Any) -> None:
        if container not in self.codes:
            self.codes[container] = Exit(code=code, signal=None, oom_killed=False, started=0, ended=0)
            self.codes[container] = replace(self.codes[container], **more)
            self.exits[container].set()

    async def wait(self, container: str) -> Exit:
        if container not in self.exits:
            raise LookupError(container)
        await self.exits[container].wait()
        return self.codes[container]

    async def kill(self, container: str, signal: int) -> None:
        self.signals.append((container, signal))
        if signal == 9 and container in self.exits:
            self.exit(container, 137)

    async def remove(self, container: str) -> None:
        for kept in (self.specs, self.exits, self.codes, self.lines):
            kept.pop(container, None)  # type: ignore[attr-defined]

    def adopt(self) -> tuple[str, ...]:
        return tuple(self.specs)

    async def follow_log(
        self, container: str, position: LogPosition = START
    ) -> AsyncIterator[tuple[list[LogLine], LogPosition]]:
        await self.exits[container].wait()
        lines = self.lines[container][position.offset :]
        if lines:
            yield lines, LogPosition(offset=len(self.lines[container]))


class House:
    """One state folder; supervisors come and go in it."""

    def __init__(self, folder: Path, behave: Behaviour, *, grace: float = 0.05) -> None:
        self.folder = folder
        self.store = Store(folder / "world.sqlite")
        self.engine = Engine(self.store)
        self.containers = FakeContainers(behave)
        self.logs = LogStore(":memory:")
        self.namespaces = FakeNamespaces()
        self.credentials = Credentials(folder)
        self.tasks: list[Spec] = []
        self.result = Result(ok=True)
        self.options = Options(stop_grace=grace)
        self.supervisor = self.new_supervisor()

    def new_supervisor(self) -> Supervisor:
        return Supervisor(
            self.engine,
            FakeFabric(),
            self.containers,
            FakeImages(),
            self.credentials,
            self.logs,
            self.namespaces,
            state=self.folder,
            options=self.options,
            perform=self.perform,
        )

    def close(self) -> None:
        self.store.close()
        self.logs.close()

    async def perform(self, spec: Spec, path: Path) -> Result:
        self.tasks.append(spec)
        return self.result

    def put(self, *docs: object) -> None:
        with self.engine.transaction() as tx:
            for doc in docs:
                tx.put(doc)

    def submit(self, given: dict[str, Any], **more: Any) -> None:
        count = given["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
        job = ProcessingJob(
            name=given["ProcessingJobName"],
            job_id="1",
            arn="arn:aws:sagemaker:us-east-1:123456789012:processing-job/job",
            request=effective(given),
            instances=tuple(Instance(index=i + 1) for i in range(count)),
            credentials_path="/v2/credentials/x",
            created=time.time(),
            modified=time.time(),
        )
        self.put(replace(job, **more))

    @property
    def job(self) -> ProcessingJob:
        job = self.engine.world.get(ProcessingJob, "job")
        assert job is not None
        return job

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)

    async def ended(self) -> ProcessingJob:
        await self.until(lambda: self.job.terminal)
        return self.job

    def nothing_is_left(self) -> bool:
        return (
            self.engine.world.count(NetworkInterface) == 0
            and not self.containers.specs
            and not list((self.folder / "jobs").iterdir())
        )


def exits(code: int, **more: Any) -> Behaviour:
    return lambda spec, containers: containers.exit(spec.id, code, **more)


completes = exits(0)


def runs_on(spec: ContainerSpec, containers: FakeContainers) -> None:
    """A container that runs until it is killed."""
