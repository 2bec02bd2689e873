"""The life of a job and of an instance: two tables, (state, event) -> state. Pure.

Everything that affects the state machines is in this file. Every state has a row for every event; an
event that changes nothing there leads back to the same state. The diagrams of the documentation are made
from these tables by `render_mermaid`.

Choices of ours where AWS is silent:
- MaxRuntimeInSeconds counts from the start of processing; a job that exceeds it ends Stopped (as
  training jobs do), with a FailureReason that says so.
- Outputs are uploaded also after a failure or a stop: whatever lies in the output folders.
- Stopping a job whose containers have already succeeded lets its upload finish, and ends Stopped.
- A stop that comes when a job is already failing, or is only being cleaned up, does not change its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class JobState(StrEnum):
    PENDING = "Pending"  # journalled; interfaces are being allocated
    STAGING = "Staging"  # interfaces are held; inputs are downloaded, images mounted, containers started
    RUNNING = "Running"  # every container was started
    ENDING = "Ending"  # an instance failed; the others are being ended
    STOPPING = "StoppingContainers"  # asked to stop, or out of time: SIGINT, then SIGKILL
    UPLOADING = "Uploading"
    UPLOADING_FAILED = "UploadingAfterFailure"
    UPLOADING_STOPPED = "UploadingAfterStop"
    RELEASING = "Releasing"  # what the job holds is given back; its end is known
    RELEASING_FAILED = "ReleasingAfterFailure"
    RELEASING_STOPPED = "ReleasingAfterStop"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"


class JobEvent(StrEnum):
    ALLOCATED = "allocated"  # every instance has its interface
    STARTED = "started"  # every container was started
    SUCCEEDED = "succeeded"  # every container exited with 0
    FAILED = "failed"  # the work of this state failed, for a reason known
    LOST = "lost"  # a container is gone and nobody knows its exit code
    STOP = "stop"  # StopProcessingJob
    TIMEOUT = "timeout"  # MaxRuntimeInSeconds has passed
    ENDED = "ended"  # no container runs any more
    UPLOADED = "uploaded"
    RELEASED = "released"


class InstanceState(StrEnum):
    WAITING = "Waiting"  # nothing is held
    ALLOCATED = "Allocated"  # its interface exists
    STAGED = "Staged"  # its inputs are in place
    RUNNING = "Running"
    EXITED = "Exited"
    LOST = "Lost"
    UPLOADED = "Uploaded"
    RELEASED = "Released"  # nothing is held any more


class InstanceEvent(StrEnum):
    ALLOCATED = "allocated"
    STAGED = "staged"
    STARTED = "started"
    EXITED = "exited"
    LOST = "lost"
    UPLOADED = "uploaded"
    RELEASED = "released"


J, E = JobState, JobEvent
I, F = InstanceState, InstanceEvent  # noqa: E741

#: rows that lead elsewhere; `_complete` adds "stays" for every other pair
_JOB_MOVES: dict[JobState, dict[JobEvent, JobState]] = {
    J.PENDING: {
        E.ALLOCATED: J.STAGING,
        E.FAILED: J.RELEASING_FAILED,
        E.STOP: J.RELEASING_STOPPED,
    },
    J.STAGING: {
        E.STARTED: J.RUNNING,
        E.FAILED: J.ENDING,
        E.LOST: J.ENDING,
        E.STOP: J.STOPPING,
    },
    J.RUNNING: {
        E.SUCCEEDED: J.UPLOADING,
        E.FAILED: J.ENDING,
        E.LOST: J.ENDING,
        E.STOP: J.STOPPING,
        E.TIMEOUT: J.STOPPING,
    },
    J.ENDING: {E.ENDED: J.UPLOADING_FAILED},
    J.STOPPING: {E.ENDED: J.UPLOADING_STOPPED},
    J.UPLOADING: {E.UPLOADED: J.RELEASING, E.FAILED: J.RELEASING_FAILED, E.STOP: J.UPLOADING_STOPPED},
    J.UPLOADING_FAILED: {E.UPLOADED: J.RELEASING_FAILED, E.FAILED: J.RELEASING_FAILED},
    J.UPLOADING_STOPPED: {E.UPLOADED: J.RELEASING_STOPPED, E.FAILED: J.RELEASING_FAILED},
    J.RELEASING: {E.RELEASED: J.COMPLETED},
    J.RELEASING_FAILED: {E.RELEASED: J.FAILED},
    J.RELEASING_STOPPED: {E.RELEASED: J.STOPPED},
    J.COMPLETED: {},
    J.FAILED: {},
    J.STOPPED: {},
}

_INSTANCE_MOVES: dict[InstanceState, dict[InstanceEvent, InstanceState]] = {
    I.WAITING: {F.ALLOCATED: I.ALLOCATED, F.RELEASED: I.RELEASED},
    I.ALLOCATED: {F.STAGED: I.STAGED, F.RELEASED: I.RELEASED},
    I.STAGED: {F.STARTED: I.RUNNING, F.LOST: I.LOST, F.RELEASED: I.RELEASED},
    I.RUNNING: {F.EXITED: I.EXITED, F.LOST: I.LOST, F.RELEASED: I.RELEASED},
    I.EXITED: {F.UPLOADED: I.UPLOADED, F.RELEASED: I.RELEASED},
    I.LOST: {F.UPLOADED: I.UPLOADED, F.RELEASED: I.RELEASED},
    I.UPLOADED: {F.RELEASED: I.RELEASED},
    I.RELEASED: {},
}

JOB: Mapping[tuple[JobState, JobEvent], JobState] = {
    (state, event): _JOB_MOVES[state].get(event, state) for state in JobState for event in JobEvent
}
INSTANCE: Mapping[tuple[InstanceState, InstanceEvent], InstanceState] = {
    (state, event): _INSTANCE_MOVES[state].get(event, state)
    for state in InstanceState
    for event in InstanceEvent
}

#: what DescribeProcessingJob shows
STATUS: Mapping[JobState, str] = {
    J.PENDING: "InProgress",
    J.STAGING: "InProgress",
    J.RUNNING: "InProgress",
    J.ENDING: "InProgress",
    J.STOPPING: "Stopping",
    J.UPLOADING: "InProgress",
    J.UPLOADING_FAILED: "InProgress",
    J.UPLOADING_STOPPED: "Stopping",
    J.RELEASING: "InProgress",
    J.RELEASING_FAILED: "InProgress",
    J.RELEASING_STOPPED: "Stopping",
    J.COMPLETED: "Completed",
    J.FAILED: "Failed",
    J.STOPPED: "Stopped",
}


def after(state: JobState, event: JobEvent) -> JobState:
    return JOB[state, event]


def instance_after(state: InstanceState, event: InstanceEvent) -> InstanceState:
    return INSTANCE[state, event]


def render_mermaid() -> str:
    """Both tables as Mermaid state diagrams, for the documentation."""
    parts: list[str] = []
    for title, start, moves in (("job", J.PENDING, _JOB_MOVES), ("instance", I.WAITING, _INSTANCE_MOVES)):
        lines = ["```mermaid", f"%% {title}", "stateDiagram-v2", f"    [*] --> {start.value}"]
        for state, row in moves.items():
            by_target: dict[str, list[str]] = {}
            for event, target in row.items():
                by_target.setdefault(target.value, []).append(event.value)
            lines += [f"    {state.value} --> {to}: {', '.join(events)}" for to, events in by_target.items()]
            if not row:
                lines.append(f"    {state.value} --> [*]")
        lines.append("```")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
