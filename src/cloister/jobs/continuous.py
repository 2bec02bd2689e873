"""S3UploadMode Continuous: while a container runs, its outputs go to S3 again and again.

AWS says that files are uploaded as they come. Choice of ours: a pass is made when a file has changed, every
two seconds at most. A pass that fails is told by the daemon's log, and made again; what the last upload comes
to, after the container's end, decides about the job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cloister.jobs import agent_process, staging, uploaded
from cloister.jobs.model import Instance, ProcessingJob
from cloister.jobs.tree import tree

log = logging.getLogger(__name__)

_EVERY_SECONDS = 2.0
#: what the agent's task of a pass is called
TASK = "continuous"


class ContinuousUploads:
    """`upload(job, instance)` makes one pass. They end with the daemon; the next one begins them again."""

    def __init__(self, jobs: Path, upload: Callable[[ProcessingJob, Instance], Awaitable[None]]) -> None:
        self._jobs = jobs
        self._upload = upload
        self._keepers: dict[str, asyncio.Task[None]] = {}

    def begin(self, job: ProcessingJob) -> None:
        """For every instance, once."""
        if not staging.continuous_folders(self._jobs, job, job.instances[0]):
            return
        for each in job.instances:
            key = staging.container_id(job, each)
            if key not in self._keepers:
                self._keepers[key] = asyncio.create_task(self._keep(job, each), name=f"uploads of {key}")

    async def end(self, job: ProcessingJob) -> None:
        """No pass is under way after this, also none that an earlier daemon began."""
        keepers = [self._keepers.pop(staging.container_id(job, each), None) for each in job.instances]
        for keeper in filter(None, keepers):
            keeper.cancel()
        await asyncio.gather(*filter(None, keepers), return_exceptions=True)
        for each in job.instances:
            agent_process.end(staging.folder(self._jobs, job, each) / f"{TASK}.json")

    async def close(self) -> None:
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    async def _keep(self, job: ProcessingJob, instance: Instance) -> None:
        own = staging.folder(self._jobs, job, instance)
        folders = staging.continuous_folders(self._jobs, job, instance)
        done: set[tuple[str, int, float]] = set()
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                found = await asyncio.to_thread(_look, folders)
                if found <= done:
                    continue
                await self._upload(job, instance)
                done = found
            except Exception as error:
                log.warning("job %s: a continuous upload of %s failed: %s", job.name, instance.host, error)
            for left in own.glob(f"{TASK}.*"):
                left.unlink()


def _look(folders: list[str]) -> set[tuple[str, int, float]]:
    """What a pass would take of the outputs: paths, sizes and times."""
    found = set()
    for folder in folders:
        for parts, size in tree(folder):
            if not uploaded.can_be_read(folder, parts, size, time.time()):
                continue
            path = os.path.join(folder, *parts)
            try:
                found.add((path, size, os.stat(path, follow_symlinks=False).st_mtime))
            except OSError:  # gone again
                continue
    return found
