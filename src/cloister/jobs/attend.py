"""What attends a running container: its credentials endpoint and the follower of its log.

Both live in the daemon and end with it; the next daemon begins them again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from cloister.credentials import SessionKeys
from cloister.jobs import contract
from cloister.jobs.credentials_endpoint import CredentialsEndpoint
from cloister.jobs.effects import Containers, Engine, Namespaces
from cloister.jobs.logfile import LogPosition
from cloister.jobs.model import LOG_GROUP, Instance, ProcessingJob
from cloister.jobs.staging import container_id
from cloister.logs import LogStore

log = logging.getLogger(__name__)


class Attendants:
    """`keys(job)` makes new keys of the job's role, None when SageMaker may not assume it any more."""

    def __init__(
        self,
        engine: Engine,
        containers: Containers,
        logs: LogStore,
        namespaces: Namespaces,
        keys: Callable[[ProcessingJob], SessionKeys | None],
    ) -> None:
        self._engine = engine
        self._containers = containers
        self._logs = logs
        self._namespaces = namespaces
        self._keys = keys
        self._endpoints: dict[str, CredentialsEndpoint] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        followers = list(self._followers.values())
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
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
                job.credentials_path, job.request["RoleArn"], lambda: self._keys(job)
            )
            listener = await asyncio.to_thread(self._listen, each.netns)
            self._endpoints[key] = endpoint
            await endpoint.start(listener)

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
                now = int(self._engine.clock() * 1000)
                self._logs.append(
                    LOG_GROUP, stream, events, now=now, position=f"{reached.offset}:{reached.seen}"
                )

    async def finish(self, job: ProcessingJob, instance: Instance) -> None:
        """The container has ended: its log is complete in its stream, its endpoint is closed."""
        key = container_id(job, instance)
        follower = self._followers.get(key)
        if follower is not None:
            await asyncio.gather(asyncio.shield(follower), return_exceptions=True)
            self._followers.pop(key, None)
            if not follower.cancelled() and follower.exception() is not None:
                log.error("the log of %s is not complete", key, exc_info=follower.exception())
        endpoint = self._endpoints.pop(key, None)
        if endpoint is not None:
            await endpoint.close()
