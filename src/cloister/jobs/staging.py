"""Where a job's things lie on the host, and what of them its containers and agents see.

STATE/jobs/NAME-ID/algo-N/
    input/K   output/K      one folder per input and output channel, mounted at its LocalPath
    config    message       /opt/ml/config and /opt/ml/output
    download.json upload.json   the agent's tasks, with .result, .log and .lock
    log                     what the container wrote, in conmon's format
    container/              `jobs/containers.py`'s own
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloister.credentials import SessionKeys
from cloister.jobs import contract
from cloister.jobs.agent import Channel, Spec
from cloister.jobs.bundle import Limits
from cloister.jobs.containers import ContainerSpec, Mount
from cloister.jobs.images import Image
from cloister.jobs.instance_types import instance_type
from cloister.jobs.model import CONFIG_PATH, OUTPUT_PATH, Instance, ProcessingJob
from cloister.jobs.remove import remove_tree
from cloister.jobs.tree import tree

GIB = 1 << 30
#: processes and threads of a container; AWS tells no limit, one machine has to have one
_PIDS = 32768


def folder(jobs: Path, job: ProcessingJob, instance: Instance) -> Path:
    return jobs / job.folder / instance.host


def container_id(job: ProcessingJob, instance: Instance) -> str:
    return f"{job.folder}-{instance.host}"


def prepare(jobs: Path, job: ProcessingJob, instance: Instance) -> None:
    """Make an instance's folders and configuration. Doing it again changes nothing."""
    own = folder(jobs, job, instance)
    (own / "input").mkdir(parents=True, exist_ok=True)
    for path in (*(_output(own, number) for number, _ in job.moved_outputs), own / "message"):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)  # an image may run as any user
    config = own / "config"
    config.mkdir(exist_ok=True)
    for name, content in contract.config_files(job, instance).items():
        (config / name).write_bytes(content)


def _input(own: Path, number: int) -> Path:
    return own / "input" / str(number)


def _output(own: Path, number: int) -> Path:
    return own / "output" / str(number)


def container_spec(
    jobs: Path,
    job: ProcessingJob,
    instance: Instance,
    image: Image,
    *,
    netns: Path,
    resolv_conf: str,
    region: str,
    ca_bundle: Path,
) -> ContainerSpec:
    own = folder(jobs, job, instance)
    app = job.request["AppSpecification"]
    mounts = [
        Mount(source=str(own / "config"), target=CONFIG_PATH),
        Mount(source=str(own / "message"), target=OUTPUT_PATH),
        Mount(source=str(ca_bundle), target=contract.CA_BUNDLE_PATH, read_only=True),
    ]
    for number, each in job.moved_inputs:
        target = each["S3Input"]["LocalPath"].rstrip("/")
        mounts.append(Mount(source=str(_input(own, number)), target=target))
    for number, each in job.moved_outputs:
        target = each["S3Output"]["LocalPath"].rstrip("/")
        mounts.append(Mount(source=str(_output(own, number)), target=target))
    return ContainerSpec(
        id=container_id(job, instance),
        folder=own,
        image=image,
        netns=str(netns),
        hostname=instance.host,
        log_path=own / "log",
        entrypoint=tuple(app.get("ContainerEntrypoint") or ()),
        arguments=tuple(app.get("ContainerArguments") or ()),
        env=contract.environment(job, region),
        limits=limits(job.request["ProcessingResources"]["ClusterConfig"].get("InstanceType", "")),
        mounts=tuple(mounts),
        hosts={each.host: each.address for each in job.instances if each.address},
        resolv_conf="" if job.isolated else resolv_conf,
    )


def limits(type_name: str) -> Limits:
    """What a container of this instance type may use: what the type has, as far as this host has it."""
    known = instance_type(type_name)
    if known is None:
        return Limits()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Limits(cpus=min(known.vcpus, os.cpu_count() or 1), memory=min(known.memory, memory), pids=_PIDS)


def download_spec(
    jobs: Path,
    job: ProcessingJob,
    instance: Instance,
    keys: SessionKeys,
    *,
    netns: Path,
    resolvers: tuple[str, ...],
    region: str,
    ca_bundle: Path,
) -> Spec | None:
    """The download of an instance's inputs, None when there are none."""
    own = folder(jobs, job, instance)
    channels = tuple(
        Channel(
            name=each["InputName"],
            uri=each["S3Input"]["S3Uri"],
            path=str(_input(own, number)),
            data_type=each["S3Input"]["S3DataType"],
            sharded=each["S3Input"].get("S3DataDistributionType") == "ShardedByS3Key",
        )
        for number, each in job.moved_inputs
    )
    return _spec("download", channels, job, instance, keys, netns, resolvers, region, ca_bundle)


def upload_spec(
    jobs: Path,
    job: ProcessingJob,
    instance: Instance,
    keys: SessionKeys,
    *,
    netns: Path,
    resolvers: tuple[str, ...],
    region: str,
    ca_bundle: Path,
    running: bool = False,
) -> Spec | None:
    """The upload of an instance's outputs, None when no output has a file. `running`: of those that are
    uploaded while the container runs."""
    own = folder(jobs, job, instance)
    channels = tuple(
        Channel(
            name=each["OutputName"],
            uri=each["S3Output"]["S3Uri"],
            path=str(_output(own, number)),
            continuous=_is_continuous(each),
        )
        for number, each in job.moved_outputs
        if next(iter(tree(str(_output(own, number)))), None) is not None
        and (_is_continuous(each) or not running)
    )
    made = _spec("upload", channels, job, instance, keys, netns, resolvers, region, ca_bundle)
    return made and replace(made, running=running, kms_key=job.output_key)


def _is_continuous(output: dict[str, Any]) -> bool:
    return bool(output["S3Output"]["S3UploadMode"] == "Continuous")


def continuous_folders(jobs: Path, job: ProcessingJob, instance: Instance) -> list[str]:
    """Where an instance's outputs lie that are uploaded while its container runs."""
    own = folder(jobs, job, instance)
    return [str(_output(own, number)) for number, each in job.moved_outputs if _is_continuous(each)]


def _spec(
    task: str,
    channels: tuple[Channel, ...],
    job: ProcessingJob,
    instance: Instance,
    keys: SessionKeys,
    netns: Path,
    resolvers: tuple[str, ...],
    region: str,
    ca_bundle: Path,
) -> Spec | None:
    if not channels:
        return None
    return Spec(
        task=task,
        channels=channels,
        region=region,
        access_key_id=keys.access_key_id,
        secret_access_key=keys.secret_access_key,
        token=keys.token,
        role_arn=job.request["RoleArn"],
        instance=instance.index - 1,
        instances=len(job.instances),
        volume_bytes=job.request["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"] * GIB,
        ca_bundle=str(ca_bundle),
        netns=str(netns),
        resolvers=resolvers,
    )


def read_message(jobs: Path, job: ProcessingJob, instance: Instance) -> bytes:
    """/opt/ml/output/message of an instance, as much of it as matters; b"" when there is none. The
    container's root made it: a link, a pipe, a folder or a device is no message."""
    path = folder(jobs, job, instance) / "message" / "message"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, contract.MESSAGE_LIMIT + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def remove(jobs: Path, job_folder: str) -> None:
    """Remove all of a job's files, whatever its containers made of them."""
    remove_tree(jobs / job_folder)
