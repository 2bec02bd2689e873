"""What supervision needs of the rest of the daemon, and no more: tests give fakes of these."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from cloister.credentials import SessionKeys
from cloister.iam.model import Role
from cloister.jobs.containers import ContainerSpec, Exit
from cloister.jobs.images import Image
from cloister.jobs.logfile import LogLine, LogPosition
from cloister.jobs.model import ProcessingJob
from cloister.vpc.flow import Step
from cloister.world import Change, Transaction, World


class Engine(Protocol):
    world: World
    clock: Callable[[], float]

    def transaction(self) -> AbstractContextManager[Transaction]: ...
    def subscribe(self, subscriber: Callable[[World, World, list[Change]], None]) -> None: ...


class Fabric(Protocol):
    async def settled(self, revision: int) -> None: ...


class Containers(Protocol):
    async def start(self, spec: ContainerSpec) -> None: ...
    async def wait(self, container: str) -> Exit: ...
    async def kill(self, container: str, signal: int) -> None: ...
    async def remove(self, container: str) -> None: ...
    def adopt(self) -> tuple[str, ...]: ...
    def follow_log(
        self, container: str, position: LogPosition = ...
    ) -> AsyncIterator[tuple[list[LogLine], LogPosition]]: ...


class Images(Protocol):
    async def resolve(self, uri: str) -> Image: ...


class Credentials(Protocol):
    def issue(
        self,
        role: Role,
        session_name: str,
        seconds: float,
        session_policies: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> SessionKeys: ...


class Namespaces(Protocol):
    def path(self, name: str) -> Path: ...
    def socket(self, name: str, family: int, kind: int) -> socket.socket: ...


class Witness(Protocol):
    """`first` comes before anything uses a job's interfaces, `last` when nothing does any more, `gone` when
    they are gone. `noticed` tells what was refused to one of its containers so far, in words and as a step.
    `issued`: keys of the job's role were made for "algo-1" or "algo-1's agent"."""

    async def first(self, job: ProcessingJob) -> None: ...
    async def noticed(self, job: ProcessingJob) -> tuple[str, Step] | None: ...
    async def last(self, job: ProcessingJob) -> None: ...
    async def gone(self, job: ProcessingJob) -> None: ...
    def issued(self, job: ProcessingJob, who: str, access_key_id: str) -> None: ...
