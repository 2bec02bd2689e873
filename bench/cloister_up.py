"""A Cloister for the benches alone: a state folder under /var/tmp, free ports, taken down at the end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.cli.lifecycle import environment
from cloister.cli.paths import Running, ask, read_running
from cloister.demo import blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A running Cloister. `stage` has boto3 clients for it (over HTTPS)."""

    state: Path
    running: Running
    environment: dict[str, str]
    stage: blocks.Stage

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.state, "GET", "/status")
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cloister(*options: str) -> Iterator[Up]:
    state = Path(tempfile.mkdtemp(prefix="cloister-bench-", dir="/var/tmp"))
    call = "from cloister.cli.main import main; main()"
    command = [sys.executable, "-c", call, "--state", str(state)]
    try:
        subprocess.run(
            [*command, "up", "--port", str(free_port()), "--http-port", str(free_port()), "--json", *options],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=90,
            env={k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
        )
        running = read_running(state)
        assert running is not None
        found = environment(state, running)
        yield Up(
            state=state,
            running=running,
            environment=found,
            stage=blocks.stage(running.region, found, lambda _: None),
        )
    finally:
        subprocess.run([*command, "down"], check=False, stdout=subprocess.DEVNULL, timeout=90)
        shutil.rmtree(state, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    vpc: str
    subnet: str
    group: str
    endpoint: str
    role: str
    bucket: str


def network(up: Up) -> Network:
    """A VPC with one subnet, a group that allows itself, an S3 endpoint, a bucket and a role for it."""
    on = up.stage
    vpc = blocks.make_vpc(on, "10.40.0.0/16")
    subnet = blocks.make_subnet(on, vpc, "10.40.1.0/24", f"{on.region}a")
    group = blocks.make_group(on, vpc, "bench", allow_itself=True)
    main = on.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]
    endpoint = on.ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName=f"com.amazonaws.{on.region}.s3", RouteTableIds=[main["RouteTableId"]]
    )["VpcEndpoint"]["VpcEndpointId"]
    bucket = blocks.make_bucket(on, f"bench-{on.mark}")
    role = blocks.make_role(on, f"bench-{on.mark}", [bucket])
    return Network(vpc=vpc, subnet=subnet, group=group, endpoint=endpoint, role=role, bucket=bucket)


def create_job(
    up: Up,
    net: Network,
    name: str,
    *,
    image: str,
    entrypoint: list[str],
    arguments: list[str] | None = None,
    code: str | None = None,
) -> None:
    """CreateProcessingJob: one instance in the VPC; `code` is the key of an object to have as input."""
    inputs = [
        {
            "InputName": "code",
            "S3Input": {
                "S3Uri": f"s3://{net.bucket}/{code}",
                "LocalPath": "/opt/ml/processing/input/code",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
            },
        }
    ]
    up.stage.sagemaker.create_processing_job(
        ProcessingJobName=name,
        RoleArn=net.role,
        AppSpecification={
            "ImageUri": image,
            "ContainerEntrypoint": entrypoint,
            **({"ContainerArguments": arguments} if arguments else {}),
        },
        **({"ProcessingInputs": inputs} if code else {}),
        ProcessingResources={
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.4xlarge", "VolumeSizeInGB": 8}
        },
        NetworkConfig={"VpcConfig": {"Subnets": [net.subnet], "SecurityGroupIds": [net.group]}},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )


def log_lines(up: Up, name: str) -> list[str]:
    return blocks.job_log(up.stage, name)


def parse_json_line(lines: list[str]) -> Any:
    """The line that a script printed as JSON."""
    return json.loads(next(line for line in lines if line.startswith("{")))
