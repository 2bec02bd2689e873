"""Sessions of jobs' execution roles: the keys that agents and containers sign with."""

from __future__ import annotations

from collections.abc import Callable

from cloister.credentials import SessionKeys
from cloister.jobs import execution_role
from cloister.jobs.effects import Credentials, Engine
from cloister.jobs.model import Instance, ProcessingJob, agent_of

#: a container's; it gets others when half of this is over
SECONDS = 6 * 3600.0
#: an agent's, made for one transfer, which they must outlive
AGENT_SECONDS = 12 * 3600.0


class Sessions:
    """`issued(job, who, access_key_id)` is told of every session: "algo-1" or "algo-1's agent" has it."""

    def __init__(
        self,
        engine: Engine,
        credentials: Credentials,
        issued: Callable[[ProcessingJob, str, str], None] | None = None,
    ) -> None:
        self._engine = engine
        self._credentials = credentials
        self._issued = issued
        self._containers: dict[tuple[str, str], SessionKeys] = {}  # by job id and host

    def of_agent(self, job: ProcessingJob, instance: Instance) -> SessionKeys | None:
        """New keys for one transfer; None when SageMaker may not assume the role any more."""
        return self._new(job, agent_of(instance), AGENT_SECONDS)

    def of_container(self, job: ProcessingJob, instance: Instance) -> SessionKeys | None:
        """A container's keys: the same until half of their time is over, however often it asks. None as
        above."""
        kept = self._containers.get((job.job_id, instance.host))
        role = execution_role.assume(self._engine.world, job.request["RoleArn"])
        if (
            kept is not None
            and role is not None
            and kept.expiration > self._engine.clock() + SECONDS / 2
            and kept.principal.user_id.startswith(f"{role.role_id}:")
        ):
            return kept
        keys = self._new(job, instance.host, SECONDS)
        if keys is not None:
            self._containers[job.job_id, instance.host] = keys
        return keys

    def forget(self, job: ProcessingJob) -> None:
        for key in [key for key in self._containers if key[0] == job.job_id]:
            del self._containers[key]

    def _new(self, job: ProcessingJob, who: str, seconds: float) -> SessionKeys | None:
        role = execution_role.assume(self._engine.world, job.request["RoleArn"])
        if role is None:
            return None
        now = self._engine.clock()
        keys = self._credentials.issue(role, execution_role.SESSION_NAME, seconds, now=now)
        if self._issued is not None:
            self._issued(job, who, keys.access_key_id)
        return keys
