"""What attends a running container: its credentials endpoint, the follower of its log, and its tunnel.

The first two live in the daemon and end with it; the next daemon begins them again. A tunnel
(`jobs/tunnel.py`) is a process that goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cloister.credentials import SessionKeys
from cloister.jobs import agent_process, contract, staging, tunnel
from cloister.jobs.credentials_endpoint import CredentialsEndpoint
from cloister.jobs.effects import Containers, Engine, Namespaces
from cloister.jobs.logfile import LogPosition
from cloister.jobs.model import LOG_GROUP, Instance, ProcessingJob
from cloister.jobs.staging import container_id
from cloister.kernel import xfrm
from cloister.logs import LogStore
from cloister.vpc.isolation import tunnel_netns

log = logging.getLogger(__name__)

#: seconds until a tunnel that was started has to take packets, and between two starts
_TUNNEL_SECONDS, _AGAIN_SECONDS = 60.0, 1.0
#: how often lines of a log are tried to be stored, once a second
_TRIES = 60


class Attendants:
    """`keys(job, instance)` are keys of the job's role for a container, None when SageMaker may not assume it
    any more."""

    def __init__(
        self,
        engine: Engine,
        containers: Containers,
        logs: LogStore,
        namespaces: Namespaces,
        keys: Callable[[ProcessingJob, Instance], SessionKeys | None],
        jobs: Path,
    ) -> None:
        self._engine = engine
        self._containers = containers
        self._logs = logs
        self._namespaces = namespaces
        self._keys = keys
        self._jobs = jobs
        self._endpoints: dict[str, CredentialsEndpoint] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._tunnels: dict[str, asyncio.Task[None]] = {}
        #: whether the kernel has ESP, once that is known
        self._in_kernel: bool | None = None

    async def close(self) -> None:
        tasks = [*self._followers.values(), *self._tunnels.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def serve(self, job: ProcessingJob) -> None:
        """The credentials endpoint of every container, once; with network isolation, none."""
        if job.isolated:
            return
        for each in job.instances:
            key = container_id(job, each)
            if key in self._endpoints or each.netns is None:
                continue
            endpoint = CredentialsEndpoint(
                job.credentials_path, job.request["RoleArn"], partial(self._keys, job, each)
            )
            listener = await asyncio.to_thread(self._listen, each.netns)
            self._endpoints[key] = endpoint
            await endpoint.start(listener)

    async def encrypt(self, job: ProcessingJob) -> None:
        """The tunnel of every container of a job that encrypts, once; they take packets when this returns."""
        if not job.encrypts:
            return
        ready = []
        if self._in_kernel is None:
            self._in_kernel = not await asyncio.to_thread(xfrm.trouble)
        for each in job.instances:
            key = container_id(job, each)
            if key not in self._tunnels and each.netns is not None and each.address is not None:
                path = self._tunnel_path(job, each)
                spec = tunnel.Spec(
                    address=each.address,
                    peers=tuple(one.address for one in job.instances if one.address and one is not each),
                    netns=str(self._namespaces.path(each.netns)),
                    tunnel_netns=str(self._namespaces.path(tunnel_netns(each.netns))),
                    secret=job.traffic_key,
                    in_kernel=self._in_kernel,
                )
                self._tunnels[key] = asyncio.create_task(self._keep_tunnel(path, spec), name=f"tunnel {key}")
                ready.append(tunnel.ready_path(path))
        try:
            async with asyncio.timeout(_TUNNEL_SECONDS):
                while not all(path.exists() for path in ready):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            missing = ", ".join(str(path) for path in ready if not path.exists())
            raise RuntimeError(
                f"the encryption between instances did not start within {_TUNNEL_SECONDS:.0f} seconds: "
                f"no {missing}"
            ) from None

    async def _keep_tunnel(self, path: Path, spec: tunnel.Spec) -> None:
        """Have a tunnel until it is told to end: `finish` leaves a result."""
        if not path.exists():
            agent_process.write_private(path, spec.to_json())
        while agent_process.read_result(path) is None:
            await agent_process.run(path, "cloister.jobs.tunnel")
            await asyncio.sleep(_AGAIN_SECONDS)

    def _tunnel_path(self, job: ProcessingJob, instance: Instance) -> Path:
        return staging.folder(self._jobs, job, instance) / "tunnel.json"

    def _listen(self, netns: str) -> socket.socket:
        listener = self._namespaces.socket(netns, socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((contract.CREDENTIALS_ADDRESS, 80))
        listener.listen(64)
        listener.setblocking(False)
        return listener

    def follow(self, job: ProcessingJob) -> None:
        """Have every container's log followed into its stream, once."""
        there = set(self._containers.adopt())
        for each in job.instances:
            key = container_id(job, each)
            if key not in self._followers and key in there and each.log_stream is not None:
                self._followers[key] = asyncio.create_task(self._follow_one(key, each.log_stream))

    async def _follow_one(self, container: str, stream: str) -> None:
        text = self._logs.position(LOG_GROUP, stream)
        position = LogPosition()
        if text:
            offset, seen = text.split(":")
            position = LogPosition(offset=int(offset), seen=int(seen))
        async for lines, reached in self._containers.follow_log(container, position):
            # CloudWatch Logs has no empty events
            events = [(line.time // 1_000_000, line.text) for line in lines if line.text]
            if events:
                await self._append(stream, events, f"{reached.offset}:{reached.seen}")

    async def _append(self, stream: str, events: list[tuple[int, str]], position: str) -> None:
        """A disk that a job has filled may have space again when the job has ended."""
        for tries_left in reversed(range(_TRIES)):
            try:
                now = int(self._engine.clock() * 1000)
                self._logs.append(LOG_GROUP, stream, events, now=now, position=position)
                return
            except sqlite3.OperationalError as error:
                if not tries_left:
                    raise
                log.warning("the log stream %s could not be written, tried again: %s", stream, error)
                await asyncio.sleep(1)

    async def finish(self, job: ProcessingJob, instance: Instance) -> None:
        """The container has ended: its log is complete in its stream, the others are gone."""
        key = container_id(job, instance)
        agent_process.end(self._tunnel_path(job, instance))
        keeper = self._tunnels.pop(key, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        follower = self._followers.get(key)
        if follower is not None:
            await asyncio.gather(asyncio.shield(follower), return_exceptions=True)
            self._followers.pop(key, None)
            if not follower.cancelled() and follower.exception() is not None:
                log.error("the log of %s is not complete", key, exc_info=follower.exception())
        endpoint = self._endpoints.pop(key, None)
        if endpoint is not None:
            await endpoint.close()
