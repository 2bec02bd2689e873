"""A processing job as a document: all that a daemon needs to carry on with it after `kill -9`.

`ProcessingJob.request` is CreateProcessingJob's input as the caller gave it. What Cloister decided or
observed since is in the other fields. Times are POSIX seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cloister.jobs.lifecycle import STATUS, InstanceState, JobState
from cloister.world import document

#: where the platform puts its own files in a container
CONFIG_PATH = "/opt/ml/config"
PROCESSING_PATH = "/opt/ml/processing"
OUTPUT_PATH = "/opt/ml/output"
#: a tag by which a test has its job run in this one of the subnets that it names
SUBNET_TAG = "cloister:subnet"
#: AWS: /aws/sagemaker/ProcessingJobs, streams JOBNAME/algo-N-EPOCH
LOG_GROUP = "/aws/sagemaker/ProcessingJobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance of a job's cluster. `index` counts from 1; its host name is `algo-<index>`.

    `address` is the container's, `agent_address` the platform agent's; both are on `interface_id`."""

    index: int
    state: InstanceState = InstanceState.WAITING
    interface_id: str | None = None
    address: str | None = None
    agent_address: str | None = None
    netns: str | None = None
    agent_netns: str | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
    log_stream: str | None = None

    @property
    def host(self) -> str:
        return f"algo-{self.index}"


def agent_of(instance: Instance) -> str:
    """What the platform's agent at an instance is called."""
    return f"{instance.host}'s agent"


@document("processing-job", key="name", index=("arn",))
@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingJob:
    """`job_id` tells this job from earlier ones of the same name (a deleted job's name is reusable)."""

    name: str
    job_id: str
    arn: str
    request: dict[str, Any]
    state: JobState = JobState.PENDING
    instances: tuple[Instance, ...]
    #: random, so that a container cannot guess another job's credentials path
    credentials_path: str
    created: float
    modified: float
    started: float | None = None
    ended: float | None = None
    #: hex, shared by the tunnels of a job that encrypts; no container ever sees it
    traffic_key: str = ""
    #: when the containers were told to stop, for the grace before SIGKILL
    stop_sent: float | None = None
    failure_reason: str | None = None
    #: "algo-1/download" or "…/upload" -> the digests of what the agent moved (`agent.Result`)
    moved: dict[str, dict[str, Any]] = field(default_factory=dict)
    exit_message: str | None = None
    subnet_id: str | None = None
    zone: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """InProgress | Completed | Failed | Stopping | Stopped."""
        return STATUS[self.state]

    @property
    def terminal(self) -> bool:
        return self.state in (JobState.COMPLETED, JobState.FAILED, JobState.STOPPED)

    @property
    def folder(self) -> str:
        """Name of this job's folder under `STATE/jobs`."""
        return f"{self.name}-{self.job_id}"

    @property
    def vpc_config(self) -> dict[str, Any] | None:
        """None: the job runs in the service's own network."""
        return (self.request.get("NetworkConfig") or {}).get("VpcConfig")

    @property
    def isolated(self) -> bool:
        """EnableNetworkIsolation."""
        return bool((self.request.get("NetworkConfig") or {}).get("EnableNetworkIsolation"))

    @property
    def encrypts(self) -> bool:
        """EnableInterContainerTrafficEncryption, where there is traffic between containers."""
        asked = (self.request.get("NetworkConfig") or {}).get("EnableInterContainerTrafficEncryption")
        return bool(asked) and len(self.instances) > 1

    @property
    def security_group_ids(self) -> tuple[str, ...]:
        return tuple((self.vpc_config or {}).get("SecurityGroupIds", ()))

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Where it may run."""
        named = tuple((self.vpc_config or {}).get("Subnets", ()))
        forced = self.tags.get(SUBNET_TAG)
        return (forced,) if forced in named else named

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return self.request.get("ProcessingInputs") or []

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return (self.request.get("ProcessingOutputConfig") or {}).get("Outputs") or []

    @property
    def moved_inputs(self) -> list[tuple[int, dict[str, Any]]]:
        """Those that the platform downloads, with their place among all: not what the application manages."""
        return [(number, each) for number, each in enumerate(self.inputs) if not each.get("AppManaged")]

    @property
    def moved_outputs(self) -> list[tuple[int, dict[str, Any]]]:
        return [(number, each) for number, each in enumerate(self.outputs) if not each.get("AppManaged")]

    @property
    def output_key(self) -> str:
        """ProcessingOutputConfig.KmsKeyId, "" for none."""
        return (self.request.get("ProcessingOutputConfig") or {}).get("KmsKeyId") or ""

    @property
    def max_runtime(self) -> int:
        """Seconds. AWS: the default maximum runtime of a processing job is one day."""
        condition = self.request.get("StoppingCondition") or {}
        return int(condition.get("MaxRuntimeInSeconds", 86400))
