"""Drives every job through its life (`jobs/lifecycle.py`): one task per job, one step per state.

A step may be begun any number of times: it looks at what is there and does what is missing. So a daemon that
was killed at any moment is followed by one that goes on where the journal says, and a job whose state
was changed from outside (StopProcessingJob) has its step cancelled and the new state's step begun.

    PENDING    interfaces, all or none, in one subnet          RELEASING*  logs complete; then all
    STAGING    network, credentials, inputs, containers                    is removed; then the end is told
    RUNNING    exits, or time is up                            UPLOADING*  outputs, the exit message
    ENDING     the others are killed                           STOPPING    SIGINT, grace, SIGKILL
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cloister.jobs import agent_process, contract, execution_role, reasons, staging
from cloister.jobs.agent import Result, Spec
from cloister.jobs.allocation import allocate, give_back
from cloister.jobs.attend import Attendants
from cloister.jobs.containers import ContainerError
from cloister.jobs.continuous import TASK, ContinuousUploads
from cloister.jobs.effects import Containers, Credentials, Engine, Fabric, Images, Namespaces, Witness
from cloister.jobs.images import Image, ImageNotFound
from cloister.jobs.lifecycle import InstanceEvent, JobEvent, JobState, after, instance_after
from cloister.jobs.model import Instance, ProcessingJob
from cloister.jobs.sessions import Sessions
from cloister.logs import LogStore
from cloister.options import Options
from cloister.store import is_full
from cloister.vpc import dhcp
from cloister.vpc.flow import Step
from cloister.vpc.model import NetworkInterface, Subnet, Vpc
from cloister.why import role
from cloister.why.job import Place
from cloister.wire.errors import AwsError
from cloister.world import Change, Transaction, World

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class JobFailure(Exception):
    """The job fails; `str()` is its FailureReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step came to. `change` writes what goes with it, in the transaction that moves the state."""

    event: JobEvent
    reason: str | None = None
    change: Callable[[Transaction, ProcessingJob], ProcessingJob] | None = None


class Supervisor:
    """Owns the jobs of one daemon. `command` begins a command line about this Cloister."""

    def __init__(
        self,
        engine: Engine,
        fabric: Fabric,
        containers: Containers,
        images: Images,
        credentials: Credentials,
        logs: LogStore,
        namespaces: Namespaces,
        *,
        state: Path,
        options: Options,
        perform: Callable[[Spec, Path], Awaitable[Result]] = agent_process.perform,
        witness: Witness | None = None,
        command: str = "cloister",
    ) -> None:
        self._command = command
        self._witness = witness
        self._engine = engine
        self._fabric = fabric
        self._containers = containers
        self._images = images
        self._namespaces = namespaces
        self._jobs = state / "jobs"
        self._region = options.region
        self._account = options.account
        self._ca_bundle = state / "bundle.pem"
        self._perform = perform
        self._grace = options.stop_grace
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._sessions = Sessions(engine, credentials, witness.issued if witness else None)
        self._attendants = Attendants(
            engine, containers, logs, namespaces, self._sessions.of_container, self._jobs
        )
        self._continuous = ContinuousUploads(self._jobs, partial(self._transfer_one, task=TASK))
        self._closing = False
        self._steps: dict[JobState, Callable[[ProcessingJob], Coroutine[Any, Any, Outcome]]] = {
            JobState.PENDING: self._allocate,
            JobState.STAGING: self._stage,
            JobState.RUNNING: self._watch,
            JobState.ENDING: self._end,
            JobState.STOPPING: self._interrupt,
            JobState.UPLOADING: self._upload,
            JobState.UPLOADING_FAILED: self._upload,
            JobState.UPLOADING_STOPPED: self._upload,
            JobState.RELEASING: self._release,
            JobState.RELEASING_FAILED: self._release,
            JobState.RELEASING_STOPPED: self._release,
        }

    # ---- the daemon's side -----------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with every job that has not ended; remove what belongs to none."""
        self._jobs.mkdir(parents=True, exist_ok=True)
        self._jobs.chmod(0o700)
        await self.collect_garbage()
        self._engine.subscribe(self._committed)
        for job in list(self._engine.world.all(ProcessingJob)):
            if not job.terminal:
                self._take(job.name)

    async def collect_garbage(self, *, dry_run: bool = False) -> dict[str, list[str]]:
        """Remove containers and folders that belong to no job that runs; says which (would) go."""
        live = [job for job in self._engine.world.all(ProcessingJob) if not job.terminal]
        known = {staging.container_id(job, each) for job in live for each in job.instances}
        folders = {job.folder for job in live}
        found = {
            "containers": [each for each in self._containers.adopt() if each not in known],
            "folders": sorted(path.name for path in self._jobs.iterdir() if path.name not in folders),
        }
        if not dry_run:
            for container in found["containers"]:
                await self._containers.remove(container)
            for name in found["folders"]:
                await asyncio.to_thread(staging.remove, self._jobs, name)
        return found

    async def stop(self) -> None:
        """Stop driving. Containers and agents run on; the next daemon goes on with them."""
        self._closing = True
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, *self._starting.values(), return_exceptions=True)
        await self._continuous.close()
        await self._attendants.close()

    def _committed(self, before: World, world: World, changes: list[Change]) -> None:
        for change in changes:
            if change.kind == "processing-job" and change.after is not None and not change.after.terminal:
                self._take(change.key)

    def _take(self, name: str) -> None:
        if self._closing:
            return
        self._changed.setdefault(name, asyncio.Event()).set()
        if name not in self._runs:
            task = asyncio.create_task(self._drive(name), name=f"job {name}")
            self._runs[name] = task
            task.add_done_callback(lambda done: self._let_go(name, done))

    def _let_go(self, name: str, task: asyncio.Task[None]) -> None:
        del self._runs[name]
        failed = not task.cancelled() and task.exception() is not None
        if failed:
            log.error("the supervision of job %s failed; it begins again", name, exc_info=task.exception())
        job = self._engine.world.get(ProcessingJob, name)
        if job is None or job.terminal:
            self._changed.pop(name, None)
        elif failed:  # the journal could not be written: a full disk may have room again later
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._take, name)
        else:  # a new job of this name came while the old one's task ended
            self._take(name)

    # ---- one job ---------------------------------------------------------------------------------

    async def _drive(self, name: str) -> None:
        while (job := self._engine.world.get(ProcessingJob, name)) is not None and not job.terminal:
            outcome = await self._until_changed(job)
            if outcome is None:
                continue
            try:
                self._advance(job, outcome)
            except AwsError as error:  # what a step's change was refused by, in AWS's words
                reason = reasons.of_allocation(self._engine.world, job, error)
                self._advance(job, Outcome(event=JobEvent.FAILED, reason=reason))
            again = self._engine.world.get(ProcessingJob, name)
            if again is not None and again.state is job.state and outcome.event is JobEvent.FAILED:
                await asyncio.sleep(_RETRY_SECONDS)  # cleaning up did not succeed: it has to, so try again

    async def _until_changed(self, job: ProcessingJob) -> Outcome | None:
        """The outcome of the state's step; None when the state was changed under it."""
        changed = self._changed[job.name]
        step = asyncio.create_task(self._step(job))
        try:
            while not step.done():
                changed.clear()
                if not self._is_current(job):
                    return None
                waiter = asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait({step, waiter}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiter.cancel()
            return step.result()
        finally:
            if not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)

    def _is_current(self, job: ProcessingJob) -> bool:
        now = self._engine.world.get(ProcessingJob, job.name)
        return now is not None and now.job_id == job.job_id and now.state is job.state

    async def _step(self, job: ProcessingJob) -> Outcome:
        try:
            return await self._steps[job.state](job)
        except (JobFailure, ImageNotFound) as failure:
            return Outcome(event=JobEvent.FAILED, reason=str(failure))
        except ContainerError as failure:
            reason = f"AlgorithmError: {str(failure).rstrip('.')}, exit code: {failure.exit_code}"
            return Outcome(event=JobEvent.FAILED, reason=reason)
        except Exception as error:
            log.exception("job %s: the step of state %s failed", job.name, job.state)
            if is_full(error):
                full = f"{reasons.INTERNAL} No space left on the disk of {self._jobs}."
                return Outcome(event=JobEvent.FAILED, reason=full)
            return Outcome(event=JobEvent.FAILED, reason=f"{reasons.INTERNAL} ({error!r})")

    def _advance(self, job: ProcessingJob, outcome: Outcome) -> None:
        with self._engine.transaction() as tx:
            now = tx.get(ProcessingJob, job.name)
            if now is None or now.job_id != job.job_id or now.state is not job.state:
                return
            if outcome.change is not None:
                now = outcome.change(tx, now)
            clock = self._engine.clock()
            state = after(now.state, outcome.event)
            now = replace(now, state=state, modified=clock)
            if outcome.reason is not None and now.failure_reason is None:
                now = replace(now, failure_reason=outcome.reason[: reasons.LIMIT])
            if now.terminal:
                now = replace(now, ended=clock)
            tx.put(now)

    def _journal(self, job: ProcessingJob, change: Callable[[ProcessingJob], ProcessingJob]) -> ProcessingJob:
        """Write what a step found out, without moving the state."""
        with self._engine.transaction() as tx:
            now = tx.get(ProcessingJob, job.name)
            if now is None or now.job_id != job.job_id:
                return job
            changed = change(now)
            tx.put(changed)
        return changed

    # ---- PENDING ---------------------------------------------------------------------------------

    async def _allocate(self, job: ProcessingJob) -> Outcome:
        arn = job.request["RoleArn"]
        if execution_role.assume(self._engine.world, arn) is None:
            raise JobFailure(
                reasons.with_cause(
                    f"ClientError: SageMaker was unable to assume the role '{arn}'",
                    role.untrusted(self._engine.world, arn),
                    self._asking(job),
                )
            )
        unable = role.unable(self._engine.world, arn) if job.vpc_config is not None else None
        if unable is not None:
            raise JobFailure(reasons.with_cause("ClientError", unable, self._asking(job)))
        return Outcome(
            event=JobEvent.ALLOCATED,
            change=lambda tx, now: allocate(tx, now, clock=self._engine.clock(), region=self._region),
        )

    # ---- STAGING ---------------------------------------------------------------------------------

    async def _stage(self, job: ProcessingJob) -> Outcome:
        image, _, _ = await asyncio.gather(
            self._images.resolve(job.request["AppSpecification"]["ImageUri"]),
            asyncio.to_thread(self._prepare, job),
            self._fabric.settled(self._engine.world.revision),
        )
        if self._witness is not None:
            await self._witness.first(job)
        await self._attendants.serve(job)
        await self._attendants.encrypt(job)
        await self._transfer(job, "download")
        starting = self._starting.get(job.folder)
        if starting is None:
            starting = asyncio.create_task(self._start_containers(job, image))
            self._starting[job.folder] = starting
            starting.add_done_callback(lambda done: self._starting.pop(job.folder, None))
        # A cancelled step leaves the start to end by itself: the next step waits for it.
        started = self._engine.clock()
        await asyncio.shield(starting)
        self._attendants.follow(job)

        def change(tx: Transaction, now: ProcessingJob) -> ProcessingJob:
            instances = tuple(
                replace(
                    each,
                    state=instance_after(
                        instance_after(each.state, InstanceEvent.STAGED), InstanceEvent.STARTED
                    ),
                )
                for each in now.instances
            )
            return replace(now, instances=instances, started=now.started or started)

        return Outcome(event=JobEvent.STARTED, change=change)

    def _prepare(self, job: ProcessingJob) -> None:
        for each in job.instances:
            staging.prepare(self._jobs, job, each)

    async def _start_containers(self, job: ProcessingJob, image: Image) -> None:
        world, vpc = self._engine.world, self._vpc(job)
        specs = [
            staging.container_spec(
                self._jobs,
                job,
                each,
                image,
                netns=self._namespaces.path(_netns(each)),
                resolv_conf=dhcp.resolv_conf(world, vpc, self._region),
                region=self._region,
                ca_bundle=self._ca_bundle,
            )
            for each in job.instances
        ]
        results = await asyncio.gather(
            *(self._containers.start(spec) for spec in specs), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _vpc(self, job: ProcessingJob) -> Vpc:
        subnet = self._engine.world.get(Subnet, job.subnet_id)
        vpc = None if subnet is None else self._engine.world.get(Vpc, subnet.vpc_id)
        if vpc is None:
            raise JobFailure(f"ClientError: The subnet ID '{job.subnet_id}' does not exist")
        return vpc

    # ---- data ------------------------------------------------------------------------------------

    async def _transfer(self, job: ProcessingJob, task: str) -> None:
        """Downloads or uploads of all instances at once. Raises JobFailure."""
        if not (job.moved_inputs if task == "download" else job.moved_outputs):
            return
        results = await asyncio.gather(
            *(self._transfer_one(job, each, task) for each in job.instances), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _transfer_one(self, job: ProcessingJob, instance: Instance, task: str) -> None:
        path = self._task_path(job, instance, task)
        keys = self._sessions.of_agent(job, instance)
        if keys is None:
            raise JobFailure(
                f"ClientError: SageMaker was unable to assume the role '{job.request['RoleArn']}'"
            )
        make: Callable[..., Spec | None] = staging.download_spec
        if task != "download":
            make = partial(staging.upload_spec, running=task == TASK)
        spec = await asyncio.to_thread(
            lambda: make(
                self._jobs,
                job,
                instance,
                keys,
                netns=self._namespaces.path(_netns(instance, agent=True)),
                resolvers=dhcp.servers(self._engine.world, self._vpc(job), self._region),
                region=self._region,
                ca_bundle=self._ca_bundle,
            )
        )
        if spec is None:
            return
        result = await self._perform(spec, path)
        if result.ok:
            what = f"{instance.host}/{task}"
            if task != TASK:  # the last upload tells of all
                self._journal(job, lambda now: replace(now, moved={**now.moved, what: result.digests}))
            return
        cause = self._cause(job, instance, result)
        raise JobFailure(reasons.with_cause(result.reason, cause, self._asking(job)))

    def _asking(self, job: ProcessingJob) -> str:
        return f"{self._command} why {job.name}"

    def _cause(self, job: ProcessingJob, instance: Instance, result: Result) -> Step | None:
        """The refusal behind what an agent could not do."""
        if not result.request:
            return None
        place = Place(region=self._region, account=self._account, now=self._engine.clock())
        return reasons.of_request(
            self._engine.world, job, instance, result.request, place, unreachable=result.unreachable
        )

    def _task_path(self, job: ProcessingJob, instance: Instance, task: str) -> Path:
        return staging.folder(self._jobs, job, instance) / f"{task}.json"

    # ---- RUNNING, ENDING, STOPPING ---------------------------------------------------------------

    async def _resume(self, job: ProcessingJob) -> None:
        """What a running container needs of a daemon that has just come."""
        await self._fabric.settled(self._engine.world.revision)
        await self._attendants.serve(job)
        await self._attendants.encrypt(job)
        self._attendants.follow(job)
        self._continuous.begin(job)

    async def _watch(self, job: ProcessingJob) -> Outcome:
        await self._resume(job)
        assert job.started is not None
        exits = {asyncio.create_task(self._exit(job, each)) for each in job.instances}
        try:
            async with asyncio.timeout(max(0.0, job.started + job.max_runtime - self._engine.clock())):
                while exits:
                    done, exits = await asyncio.wait(exits, return_when=asyncio.FIRST_COMPLETED)
                    for each in sorted((task.result() for task in done), key=lambda one: one.index):
                        if each.exit_code != 0:
                            return await self._exit_failure(job, each)
            return Outcome(event=JobEvent.SUCCEEDED)
        except TimeoutError:
            return Outcome(
                event=JobEvent.TIMEOUT,
                reason=await self._while_running(job, reasons.of_time(job)),
            )
        finally:
            for task in exits:
                task.cancel()
            await asyncio.gather(*exits, return_exceptions=True)

    async def _exit(self, job: ProcessingJob, instance: Instance) -> Instance:
        """Wait for an instance's container and journal its end. `exit_code` is None when it was lost."""
        try:
            ended = await self._containers.wait(staging.container_id(job, instance))
            lost, code, out_of_memory = ended.lost, ended.code, ended.oom_killed
        except LookupError:
            lost, code, out_of_memory = True, -1, False
        event = InstanceEvent.LOST if lost else InstanceEvent.EXITED
        found = replace(
            instance,
            state=instance_after(instance.state, event),
            exit_code=None if lost else code,
            out_of_memory=out_of_memory,
        )
        if found != instance:
            self._journal(
                job,
                lambda now: replace(
                    now,
                    instances=tuple(found if each.index == found.index else each for each in now.instances),
                ),
            )
        return found

    async def _exit_failure(self, job: ProcessingJob, instance: Instance) -> Outcome:
        told = any(staging.read_message(self._jobs, job, each) for each in job.instances)
        reason = reasons.of_exit(instance, told=told)
        if instance.exit_code is None:
            return Outcome(event=JobEvent.LOST, reason=reason)
        if not instance.out_of_memory:
            reason = await self._while_running(job, reason)
        return Outcome(event=JobEvent.FAILED, reason=reason)

    async def _while_running(self, job: ProcessingJob, reason: str) -> str:
        noticed = await self._witness.noticed(job) if self._witness is not None else None
        return reasons.while_running(self._engine.world, job, reason, noticed, self._asking(job))

    async def _end(self, job: ProcessingJob) -> Outcome:
        # Choice of ours: the failing instance decided the job's end, the others get no grace.
        return await self._end_containers(job, grace=0.0)

    async def _interrupt(self, job: ProcessingJob) -> Outcome:
        if job.stop_sent is None:
            sent = self._engine.clock()
            job = self._journal(job, lambda now: replace(now, stop_sent=now.stop_sent or sent))
        assert job.stop_sent is not None
        return await self._end_containers(
            job, grace=max(0.0, job.stop_sent + self._grace - self._engine.clock())
        )

    async def _end_containers(self, job: ProcessingJob, *, grace: float) -> Outcome:
        for each in job.instances:
            agent_process.end(self._task_path(job, each, "download"))
        starting = self._starting.get(job.folder)
        if starting is not None:
            await asyncio.gather(asyncio.shield(starting), return_exceptions=True)
        there = set(self._containers.adopt())
        running = [each for each in job.instances if staging.container_id(job, each) in there]
        if running:
            await self._resume(job)
        waiting = asyncio.gather(*(self._exit(job, each) for each in running))
        try:
            if grace:
                await self._signal(job, running, signal.SIGINT)
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await asyncio.shield(waiting)
            if not waiting.done():
                await self._signal(job, running, signal.SIGKILL)
                await asyncio.shield(waiting)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return Outcome(event=JobEvent.ENDED)

    async def _signal(self, job: ProcessingJob, instances: Sequence[Instance], number: int) -> None:
        for each in instances:
            await self._containers.kill(staging.container_id(job, each), number)

    # ---- UPLOADING -------------------------------------------------------------------------------

    async def _upload(self, job: ProcessingJob) -> Outcome:
        """Outputs of every instance, also after a failure: whatever lies in the output folders."""
        messages = [staging.read_message(self._jobs, job, each) for each in job.instances]
        reason: str | None = None
        message: str | None = None
        try:
            message = contract.exit_message(messages)
        except UnicodeDecodeError:
            reason = "ClientError: The exit message in /opt/ml/output/message is not UTF-8."
        await self._continuous.end(job)
        if job.moved_outputs:
            await self._fabric.settled(self._engine.world.revision)
            try:
                await self._transfer(job, "upload")
            except JobFailure as failure:
                reason = reason or str(failure)

        def change(tx: Transaction, now: ProcessingJob) -> ProcessingJob:
            instances = tuple(
                replace(each, state=instance_after(each.state, InstanceEvent.UPLOADED))
                for each in now.instances
            )
            return replace(now, instances=instances, exit_message=message)

        event = JobEvent.UPLOADED if reason is None else JobEvent.FAILED
        return Outcome(event=event, reason=reason, change=change)

    # ---- RELEASING -------------------------------------------------------------------------------

    async def _release(self, job: ProcessingJob) -> Outcome:
        """Logs complete, then nothing of the job left but its document and its logs."""
        for each in job.instances:
            for task in ("download", "upload"):
                agent_process.end(self._task_path(job, each, task))
        self._sessions.forget(job)
        self._attendants.follow(job)  # a daemon that has just come may have lines left to read
        await asyncio.gather(*(self._release_container(job, each) for each in job.instances))
        if self._witness is not None:
            await self._witness.last(job)
        held = [each.interface_id for each in job.instances if each.interface_id is not None]
        if any(self._engine.world.get(NetworkInterface, interface) for interface in held):
            with self._engine.transaction() as tx:
                give_back(tx, job)
        await asyncio.gather(
            self._fabric.settled(self._engine.world.revision),
            asyncio.to_thread(staging.remove, self._jobs, job.folder),
        )
        if self._witness is not None:
            await self._witness.gone(job)

        def change(tx: Transaction, now: ProcessingJob) -> ProcessingJob:
            instances = tuple(
                replace(each, state=instance_after(each.state, InstanceEvent.RELEASED))
                for each in now.instances
            )
            return replace(now, instances=instances)

        return Outcome(event=JobEvent.RELEASED, change=change)

    async def _release_container(self, job: ProcessingJob, instance: Instance) -> None:
        await self._attendants.finish(job, instance)
        await self._containers.remove(staging.container_id(job, instance))


def _netns(instance: Instance, *, agent: bool = False) -> str:
    name = instance.agent_netns if agent else instance.netns
    assert name is not None, "the instance has no interface"
    return name
