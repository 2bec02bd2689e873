"""What the daemon tells the commands, over a socket in the state folder that only its owner can open."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from cloister.attachments import Attachments
from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.jobs.model import LOG_GROUP, ProcessingJob
from cloister.jobs.supervise import Supervisor
from cloister.logs import LogStore, UnknownLog
from cloister.questions import Questions
from cloister.s3.backend import Backend
from cloister.s3.model import Bucket
from cloister.vpc.model import NetworkInterface, RouteTable, SecurityGroup, Subnet, Vpc, VpcEndpoint
from cloister.vpc.service_network import hidden
from cloister.way_out import WayOut
from cloister.world import World

#: with less of its disk left Cloister soon fails on what it is asked
_LITTLE_MIB = 32


class Control:
    """GET /ping, GET /status, GET /under-way (jobs that have not ended), GET /logs?job=NAME&after=N,
    POST /gc[?dry_run=1], and the routes of `questions` and `attachments`; answers are JSON."""

    def __init__(
        self,
        running: dict[str, Any],
        engine: Engine,
        fabric: Fabric,
        supervisor: Supervisor,
        logs: LogStore,
        backend: Backend,
        questions: Questions,
        attachments: Attachments,
        way_out: WayOut,
        state: Path,
        command: str,
    ) -> None:
        self._state = state
        self._command = command
        self._running = running
        self._engine = engine
        self._fabric = fabric
        self._supervisor = supervisor
        self._logs = logs
        self._backend = backend
        self._questions = questions
        self._attachments = attachments
        self._way_out = way_out

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/status", self._status)
        app.router.add_get("/under-way", self._under_way)
        app.router.add_get("/logs", self._log_events)
        app.router.add_post("/gc", self._gc)
        self._questions.add_routes(app)
        self._attachments.add_routes(app)
        return app

    async def _ping(self, _: web.Request) -> web.Response:
        return web.json_response({"pid": self._running["pid"]})

    async def _status(self, _: web.Request) -> web.Response:
        world = self._engine.world
        kinds: dict[str, type] = {
            "VPCs": Vpc,
            "subnets": Subnet,
            "security groups": SecurityGroup,
            "route tables": RouteTable,
            "endpoints": VpcEndpoint,
            "interfaces": NetworkInterface,
            "buckets": Bucket,
            "jobs": ProcessingJob,
        }
        jobs = sorted(world.all(ProcessingJob), key=lambda job: -job.created)[:20]
        return web.json_response(
            self._running
            | {
                "up": True,
                "memory_mb": _memory_mb(),
                "s3": self._backend.place,
                "problem": self._fabric.problem or _full_disk(self._state),
                "way_out": self._way_out.state,
                "resources": {
                    name: sum(not hidden(world, each) for each in _all(world, cls))
                    for name, cls in kinds.items()
                },
                "jobs": [
                    {"name": j.name, "status": j.status, "phase": j.state.value, "subnet": _where(j)}
                    for j in jobs
                ],
            }
        )

    async def _under_way(self, _: web.Request) -> web.Response:
        jobs = self._engine.world.all(ProcessingJob)
        return web.json_response([job.name for job in jobs if not job.terminal])

    async def _log_events(self, request: web.Request) -> web.Response:
        name = request.query.get("job", "")
        job = self._engine.world.get(ProcessingJob, name)
        if job is None:
            return web.json_response(
                {"error": f"No job is named {name!r}. `{self._command} status` lists the latest."}, status=404
            )
        ended = job.terminal  # before reading, so that nothing written after it is missed
        place = self._place(request.query.get("after", ""))
        try:
            streams = self._logs.streams(LOG_GROUP, f"{name}/")
        except UnknownLog:
            streams = []
        found, _ = self._logs.filter(streams, lambda _: True, after=place)
        return web.json_response(
            {
                "events": [
                    {
                        "timestamp": event.time,
                        "instance": "-".join(event.stream.removeprefix(f"{name}/").split("-")[:2]),
                        "message": event.message,
                    }
                    for event in found
                ],
                "next": "{}.{}".format(*(found[-1].place if found else place)),
                "ended": ended,
                "status": job.status,
                "failure_reason": job.failure_reason,
            }
        )

    def _place(self, text: str) -> tuple[int, int]:
        time, _, number = text.partition(".")
        return (int(time or 0), int(number or 0))

    async def _gc(self, request: web.Request) -> web.Response:
        found = await self._supervisor.collect_garbage(dry_run="dry_run" in request.query)
        containers = [f"container {each}" for each in found["containers"]]
        return web.json_response([*containers, *(f"jobs/{each}" for each in found["folders"])])


def _all(world: World, cls: type) -> Iterable[object]:
    return world.all(cls)


def _where(job: ProcessingJob) -> str | None:
    """The subnet that a job is in, as far as it is the customer's."""
    return "the service's network" if job.subnet_id and job.vpc_config is None else job.subnet_id


def _full_disk(state: Path) -> str | None:
    free = shutil.disk_usage(state).free >> 20
    return f"the disk of {state} is full: {free} MiB are left" if free < _LITTLE_MIB else None


def _memory_mb() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
