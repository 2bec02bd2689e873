"""Whole jobs on the real fabric and in real containers, in a throw-away private world: `holder --exec` runs
this file again with a scenario's name."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.worlds import documents, request, role, s3_input
from tests.patience import PATIENCE

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.jobs.containers import Containers
from cloister.jobs.images import Images
from cloister.jobs.lifecycle import JobEvent, after
from cloister.jobs.model import LOG_GROUP, Instance, ProcessingJob
from cloister.jobs.rootfs import in_user_namespace
from cloister.jobs.supervise import Supervisor
from cloister.kernel import syscalls
from cloister.kernel.netns import Namespaces
from cloister.kernel.reconcile import Reconciler
from cloister.logs import LogStore
from cloister.options import Options
from cloister.services.sagemaker.processing_jobs import effective
from cloister.store import Store
from cloister.vpc.model import GroupRule, NetworkInterface, RouteTable, RouteTableAssociation, SecurityGroup
from cloister.vpc.model import Route as VpcRoute

pytestmark = pytest.mark.fabric


class House:
    """The daemon's parts that jobs need, over one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        (state / "bundle.pem").write_bytes(Path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
        self.store = Store(state / "world.sqlite")
        self.engine = Engine(self.store)
        self.logs = LogStore(state / "logs.sqlite")
        self.namespaces = Namespaces(state / "run" / "netns")
        self.fabric = Fabric(self.engine, self.namespaces, Reconciler(self.namespaces))
        self.containers = Containers(state)
        self.supervisor = Supervisor(
            self.engine,
            self.fabric,
            self.containers,
            Images(state / "images", rootless=in_user_namespace()),
            Credentials(state),
            self.logs,
            self.namespaces,
            state=state,
            options=Options(stop_grace=1.0),
        )

    async def start(self) -> None:
        await self.fabric.start()
        await self.supervisor.start()

    async def stop(self) -> None:
        await self.supervisor.stop()
        await self.fabric.stop()
        self.namespaces.close()
        self.logs.close()
        self.store.close()

    def seed(self) -> None:
        group = SecurityGroup(
            group_id="sg-1",
            vpc_id="vpc-1",
            name="g",
            description="d",
            rules=(
                GroupRule(rule_id="sgr-1", egress=True, protocol="-1", cidr="0.0.0.0/0"),
                GroupRule(rule_id="sgr-2", egress=False, protocol="-1", group_id="sg-1"),
            ),
        )
        table = RouteTable(
            route_table_id="rtb-1",
            vpc_id="vpc-1",
            number=1000,
            routes=(VpcRoute(destination="10.0.0.0/16", target="local", origin="CreateRouteTable"),),
            associations=(RouteTableAssociation(association_id="a", subnet_id=None, main=True),),
        )
        with self.engine.transaction() as tx:
            for doc in (role(), *documents(), group, table):
                tx.put(doc)

    def submit(self, script: str, *, instances: int = 1, name: str = "job", **more: Any) -> None:
        given = {**request(name, instances=instances), **more}
        given["AppSpecification"] = {
            "ImageUri": "cloister/host",
            "ContainerEntrypoint": ["bash", "-c", script],
        }
        with self.engine.transaction() as tx:
            tx.put(
                ProcessingJob(
                    name=name,
                    job_id="1",
                    arn=f"arn:aws:sagemaker:us-east-1:123456789012:processing-job/{name}",
                    request=effective(given),
                    instances=tuple(Instance(index=i + 1) for i in range(instances)),
                    credentials_path="/v2/credentials/secret-path",
                    created=time.time(),
                    modified=time.time(),
                )
            )

    def job(self, name: str = "job") -> ProcessingJob:
        job = self.engine.world.get(ProcessingJob, name)
        assert job is not None
        return job

    async def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            jobs = [(job.name, job.state, job.failure_reason) for job in self.engine.world.all(ProcessingJob)]
            assert time.monotonic() < deadline, (jobs, self.fabric.problem, self.output())
            await asyncio.sleep(0.002)

    async def ended(self, name: str = "job") -> ProcessingJob:
        await self.until(lambda: self.job(name).terminal)
        return self.job(name)

    def output(self) -> str:
        try:
            streams = self.logs.streams(LOG_GROUP)
        except LookupError:
            return ""
        return "\n".join(e.message for s in streams for e in self.logs.get(LOG_GROUP, s.name))

    def nothing_is_left(self) -> bool:
        return (
            self.engine.world.count(NetworkInterface) == 0
            and not self.containers.adopt()
            and not list((self.state / "jobs").iterdir())
            and not [name for name in self.namespaces.list() if name.startswith("eni-")]
        )


Scenario = Callable[[House], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def inside(scenario: Scenario) -> Callable[[], None]:
    """A test that runs its coroutine in a new private world."""
    SCENARIOS[scenario.__name__] = scenario

    @functools.wraps(scenario)
    def test() -> None:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "cloister.kernel.holder", "--exec"),
                *(sys.executable, __file__, scenario.__name__),
            ],
            capture_output=True,
            text=True,
            timeout=100 * PATIENCE,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[2]}/src"},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would ask it for its arguments
    return test


@inside
async def test_a_job_runs_in_its_vpc_and_leaves_nothing(house: House) -> None:
    house.submit(
        "cat /opt/ml/config/resourceconfig.json; hostname; echo; "
        "echo $AWS_REGION $AWS_CA_BUNDLE; echo done > /opt/ml/output/message"
    )
    job = await house.ended()
    assert (job.status, job.failure_reason) == ("Completed", None), house.output()
    assert job.exit_message == "done\n"
    lines = house.output().splitlines()
    assert json.loads(lines[0].split("}")[0] + "}")["hosts"] == ["algo-1"]
    assert "us-east-1 /etc/cloister/ca-bundle.pem" in lines
    assert house.nothing_is_left()


@inside
async def test_the_credentials_endpoint_answers_only_its_path(house: House) -> None:
    house.submit(
        "python3 - <<'E'\n"
        "import json, os, urllib.request, urllib.error\n"
        "base = 'http://169.254.170.2'\n"
        "path = os.environ['AWS_CONTAINER_CREDENTIALS_RELATIVE_URI']\n"
        "keys = json.load(urllib.request.urlopen(base + path))\n"
        "print(sorted(keys), keys['RoleArn'])\n"
        "try: urllib.request.urlopen(base + '/v2/credentials/other')\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
        "E"
    )
    job = await house.ended()
    assert job.status == "Completed", house.output()
    assert house.output().splitlines() == [
        "['AccessKeyId', 'Expiration', 'RoleArn', 'SecretAccessKey', 'Token'] "
        "arn:aws:iam::123456789012:role/jobs",
        "404",
    ]


@inside
async def test_instances_talk_by_name(house: House) -> None:
    house.submit(
        "python3 - <<'E'\n"
        "import socket, time\n"
        "if socket.gethostname() == 'algo-1':\n"
        "    with socket.create_server(('0.0.0.0', 5000)) as s: print(s.accept()[0].recv(10).decode())\n"
        "else:\n"
        "    for _ in range(50):\n"
        "        try: socket.create_connection(('algo-1', 5000), 1).sendall(b'hello'); break\n"
        "        except OSError: time.sleep(0.1)\n"
        "E",
        instances=2,
    )
    job = await house.ended()
    assert job.status == "Completed", (job.failure_reason, house.output())
    assert "hello" in house.output()
    assert house.nothing_is_left()


@inside
async def test_a_subnet_without_a_route_to_s3_fails_within_seconds_with_the_cause(house: House) -> None:
    began = time.monotonic()
    house.submit("true", ProcessingInputs=[s3_input()])
    job = await house.ended()
    assert job.status == "Failed"
    assert job.failure_reason is not None
    assert job.failure_reason.startswith(
        "ClientError: Failed to download data. ListObjectsV2 failed for s3://bkt/in/, nextToken:[null]: "
        "Unable to execute request to S3: "
    ), job.failure_reason
    assert "rtb-1" in job.failure_reason, job.failure_reason
    assert time.monotonic() - began < 9
    assert house.nothing_is_left()


@inside
async def test_a_job_that_ignores_sigint_is_killed_after_the_grace(house: House) -> None:
    house.submit("trap '' INT; echo ready; while true; do sleep 0.1; done")
    await house.until(lambda: "ready" in house.output())
    with house.engine.transaction() as tx:
        job = house.job()
        tx.put(replace(job, state=after(job.state, JobEvent.STOP)))
    began = time.monotonic()
    job = await house.ended()
    assert job.status == "Stopped"
    assert job.instances[0].exit_code == 137
    assert 0.9 < time.monotonic() - began < 5
    assert house.nothing_is_left()


@inside
async def test_the_next_daemon_goes_on_with_the_container_and_its_log(house: House) -> None:
    house.submit("for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.2; done")
    await house.until(lambda: "line 2" in house.output())
    await house.stop()
    following = House(house.state)
    await following.start()
    try:
        job = await following.ended()
        assert job.status == "Completed"
        assert following.output().splitlines() == [f"line {i}" for i in range(1, 9)]
        assert following.nothing_is_left()
    finally:
        await following.stop()


@inside
async def test_the_first_instruction_comes_soon_after_create(house: House) -> None:
    times = []
    for number in range(5):
        name = f"job-{number}"
        began = time.time()
        house.submit("date +%s.%N", name=name)
        job = await house.ended(name)
        assert job.status == "Completed"
        stream = house.job(name).instances[0].log_stream
        assert stream is not None
        first = float(house.logs.get(LOG_GROUP, stream)[0].message)
        assert job.ended is not None
        times.append((first - began, job.ended - began))
    firsts, ends = zip(*times, strict=True)
    print(f"first instruction {sorted(firsts)[2] * 1000:.0f} ms, completed {sorted(ends)[2] * 1000:.0f} ms")
    assert sorted(firsts)[2] < 1.0


@inside
async def test_a_daemon_killed_at_random_moments_is_followed_by_one_that_completes_the_job(
    house: House,
) -> None:
    """kill -9, ten times in a row: each line of the container's log is there once, and nothing is left."""
    house.submit("for i in $(seq 60); do echo line $i; sleep 0.1; done; echo bye > /opt/ml/output/message")
    # The daemon is a process of its own from here on; this one only looks at the files.
    await house.stop()
    chance = random.Random(7)
    for _ in range(10):
        daemon = subprocess.Popen([sys.executable, __file__, "serve", str(house.state)])
        await asyncio.sleep(chance.uniform(0.3, 1.2))
        daemon.kill()
        daemon.wait()
    done = subprocess.run(
        [sys.executable, __file__, "serve", str(house.state)], timeout=40 * PATIENCE, check=False
    )
    assert done.returncode == 0
    following = House(house.state)
    await following.start()
    try:
        job = following.job()
        assert (job.status, job.failure_reason, job.exit_message) == ("Completed", None, "bye\n")
        assert following.output().splitlines() == [f"line {i}" for i in range(1, 61)]
        assert following.nothing_is_left()
    finally:
        await following.stop()


async def _serve(folder: Path) -> None:
    """A daemon that ends when the job has."""
    house = House(folder)
    await house.start()
    await house.until(lambda: house.job().terminal, 35)
    await house.stop()


async def _main(name: str, folder: Path) -> None:
    house = House(folder)
    house.seed()
    await house.start()
    try:
        async with asyncio.timeout(90 * PATIENCE):
            await SCENARIOS[name](house)
    finally:
        await house.stop()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve(Path(sys.argv[2])))
        sys.exit()
    where = Path(tempfile.mkdtemp())
    try:
        asyncio.run(_main(sys.argv[1], where))
    finally:
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{where}/"):
                syscalls.umount(line.split()[4], syscalls.MNT_DETACH)
        shutil.rmtree(where)
