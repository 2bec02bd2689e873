"""A whole Cloister for the end-to-end tests: its own state folder and port, taken down and checked after."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from tests.patience import PATIENCE

from cloister.cli.lifecycle import environment
from cloister.cli.paths import Running, read_running
from cloister.demo import blocks
from cloister.kernel.cgroups import parent_name

#: where most jobs of these tests have their input and their output
IN, OUT = "/opt/ml/processing/in", "/opt/ml/processing/out"


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:8]}"


def refusal(call: Callable[..., Any], **parameters: Any) -> tuple[str, str]:
    """Code and message of the error that this call must end with."""
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        call(**parameters)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(slots=True)
class Cloister:
    """A running Cloister and the clients to drive it."""

    state: Path
    port: int
    lines: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cloister.cli.main", "--state", str(self.state), *arguments],
            capture_output=True,
            text=True,
            timeout=150 * PATIENCE,
            check=False,
            env={**os.environ, **self.environ},
        )
        if check and done.returncode != 0:
            log = self.state / "daemon.log"
            tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            raise AssertionError(
                f"cloister {arguments} exited {done.returncode}:\n{done.stdout}{done.stderr}\n{tail}"
            )
        return done.stdout

    def up(self) -> Running:
        self.command("up", "--port", str(self.port), "--stop-grace", "3")
        return self.running()

    def down(self) -> None:
        self.command("down")

    def running(self) -> Running:
        running = read_running(self.state)
        assert running is not None
        return running

    def stage(self) -> blocks.Stage:
        """A fresh set of clients, whose `undo` the test must play back with `strike`."""
        running = self.running()
        return blocks.stage(running.region, environment(self.state, running), self.lines.append)


def strike(on: blocks.Stage) -> None:
    """Take away what a test made, newest first."""
    for undo in reversed(on.undo):
        undo()


@dataclass(slots=True, kw_only=True)
class Lab:
    """One VPC with a way to S3, a bucket, a role: what most tests start from."""

    on: blocks.Stage
    vpc: str
    subnet: str
    group: str
    endpoint: str
    route_table: str
    bucket: str
    role: str
    count: int = 0

    def run(self, script: str, *, name: str | None = None, **how: Any) -> dict[str, Any]:
        """Run this Python text as a job; the last Describe."""
        self.count += 1
        key = f"script-{self.count}.py"
        self.on.s3.put_object(Bucket=self.bucket, Key=f"code/{key}", Body=script.encode())
        settings: dict[str, Any] = {
            "role": self.role,
            "subnets": [self.subnet],
            "group": self.group,
            "bucket": self.bucket,
        } | how
        return blocks.run_job(self.on, name or f"job-{self.count}-{self.on.mark}", script=key, **settings)

    def request(self, name: str, *command: str, **changes: Any) -> dict[str, Any]:
        """CreateProcessingJob's parameters for this command line, with members added or replaced."""
        return {
            "ProcessingJobName": name,
            "RoleArn": self.role,
            "AppSpecification": {"ImageUri": blocks.IMAGE, "ContainerEntrypoint": list(command)},
            "ProcessingResources": {
                "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
            },
            "NetworkConfig": {"VpcConfig": {"Subnets": [self.subnet], "SecurityGroupIds": [self.group]}},
            "StoppingCondition": {"MaxRuntimeInSeconds": int(60 * PATIENCE)},
        } | changes

    def scripted(self, name: str, script: str, *arguments: str, **changes: Any) -> dict[str, Any]:
        """CreateProcessingJob's parameters for this Python text, given as an input."""
        code = self.input(
            "code", self.put(f"{name}/code/script.py", script.encode()), "/opt/ml/processing/code"
        )
        inputs = [code, *changes.pop("ProcessingInputs", [])]
        command = ["python3", "/opt/ml/processing/code/script.py"]
        request = self.request(name, *command, **changes, ProcessingInputs=inputs)
        if arguments:
            request["AppSpecification"]["ContainerArguments"] = list(arguments)
        return request

    def create(self, request: dict[str, Any]) -> None:
        """Create the job, to be taken away with the rest of the lab."""
        name = request["ProcessingJobName"]
        self.on.sagemaker.create_processing_job(**request)
        self.on.undo.append(lambda: blocks.delete_job(self.on, name))

    def outcome(self, request: dict[str, Any]) -> dict[str, Any]:
        """Create the job and wait for its end; the last Describe."""
        self.create(request)
        return blocks.wait_for(self.on, request["ProcessingJobName"])

    def input(self, name: str, uri: str, path: str, **changes: Any) -> dict[str, Any]:
        s3 = {"S3Uri": uri, "LocalPath": path, "S3DataType": "S3Prefix", "S3InputMode": "File"}
        return {"InputName": name, "S3Input": s3 | changes}

    def output(self, name: str, uri: str, path: str) -> dict[str, Any]:
        return {
            "OutputName": name,
            "S3Output": {"S3Uri": uri, "LocalPath": path, "S3UploadMode": "EndOfJob"},
        }

    def put(self, key: str, body: bytes) -> str:
        self.on.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str) -> bytes:
        body: bytes = self.on.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def log(self, job: dict[str, Any]) -> str:
        try:
            return "\n".join(blocks.job_log(self.on, job["ProcessingJobName"]))
        except self.on.logs.exceptions.ResourceNotFoundException:  # no job has logged anything yet
            return ""


def make_lab(on: blocks.Stage, cidr: str = "10.40.0.0/16") -> Lab:
    vpc = blocks.make_vpc(on, cidr)
    subnet = blocks.make_subnet(on, vpc, cidr.replace(".0.0/16", ".1.0/24"), f"{on.region}a")
    group = blocks.make_group(on, vpc, f"lab-{on.mark}", allow_itself=True)
    main = on.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]
    endpoint = on.ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName=f"com.amazonaws.{on.region}.s3", RouteTableIds=[main["RouteTableId"]]
    )["VpcEndpoint"]["VpcEndpointId"]
    on.undo.append(lambda: on.ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint]))
    bucket = blocks.make_bucket(on, f"lab-{on.mark}-{os.urandom(3).hex()}")
    role = blocks.make_role(on, f"lab-{on.mark}-{os.urandom(3).hex()}", [bucket])
    return Lab(
        on=on,
        vpc=vpc,
        subnet=subnet,
        group=group,
        endpoint=endpoint,
        route_table=main["RouteTableId"],
        bucket=bucket,
        role=role,
    )


@pytest.fixture(scope="session")
def cloister() -> Iterator[Cloister]:
    folder = Path(tempfile.mkdtemp(prefix="cloister-e2e-", dir="/var/tmp"))
    images = Path(tempfile.mkdtemp(prefix="cloister-e2e-images-", dir="/var/tmp"))
    found = Cloister(folder, free_port(), environ=podman_storage(images))
    try:
        found.up()
        yield found
    finally:
        found.command("down", check=False)
        end_podman(images)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(images, ignore_errors=True)


def podman_storage(folder: Path) -> dict[str, str]:
    """The variables that give podman, and so Cloister, a storage of images of the tests' own."""
    (folder / "run").mkdir(mode=0o700)
    if os.geteuid() != 0:
        places = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_RUNTIME_DIR": "run"}
        return {name: str(folder / place) for name, place in places.items()}
    conf = folder / "storage.conf"
    conf.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    return {"CONTAINERS_STORAGE_CONF": str(conf)}


def end_podman(folder: Path) -> None:
    """Without root podman leaves a process that keeps its user namespace."""
    pause = folder / "run" / "libpod" / "tmp" / "pause.pid"
    if pause.exists():
        os.kill(int(pause.read_text()), signal.SIGTERM)


@pytest.fixture
def lab(cloister: Cloister) -> Iterator[Lab]:
    on = cloister.stage()
    try:
        yield make_lab(on)
    finally:
        strike(on)


@pytest.fixture(scope="module")
def shared(cloister: Cloister) -> Iterator[Lab]:
    """A lab for all of a module's tests that do not change its network."""
    on = cloister.stage()
    try:
        yield make_lab(on, "10.42.0.0/16")
    finally:
        strike(on)


def traces_of(state: Path) -> list[str]:
    """Processes, mounts and cgroups on this host that name the state folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(state) in command:
            found.append(f"process {process.name}: {command}")
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line]
    return found


def cgroups_of(state: Path) -> list[Path]:
    """The cgroups of this Cloister; others may be running on this host."""
    return list(Path("/sys/fs/cgroup").rglob(parent_name(state)))


def wait_until(what: str, true: Any, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout * PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout * PATIENCE} s: {what}"
        time.sleep(0.05)


def daemon_pid(state: Path) -> int:
    """The daemon's pid as this host sees it (it lives in a pid namespace of its own)."""
    wanted = f"cloister.daemon\0{state}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if wanted in command and b"cloister.kernel.holder" not in command:
                return int(process.name)
        except OSError:
            continue
    return 0


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
