"""Starting, stopping, being killed: nothing is lost and nothing is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import (
    Cloister,
    cgroups_of,
    daemon_pid,
    free_port,
    make_lab,
    strike,
    traces_of,
    wait_until,
)

from cloister.cli.paths import read_running
from cloister.demo import blocks

pytestmark = pytest.mark.e2e


@pytest.fixture
def own() -> Iterator[Cloister]:
    """A Cloister of this test's own, not started."""
    folder = Path(tempfile.mkdtemp(prefix="cloister-life-", dir="/var/tmp"))
    found = Cloister(folder, free_port())
    try:
        yield found
    finally:
        found.command("down", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_down_leaves_no_process_mount_or_cgroup_and_up_keeps_every_resource(own: Cloister) -> None:
    own.up()
    on = own.stage()
    lab = make_lab(on)
    lab.run("import time; time.sleep(1)", name="first", wait=False)
    if os.geteuid() == 0:
        wait_until("the job is in a cgroup", lambda: cgroups_of(own.state) != [])
    blocks.wait_for(on, "first")
    lab.run("import time; print('here', flush=True); time.sleep(300)", name="running", wait=False)
    wait_until("the second job runs", lambda: "here" in own.command("logs", "running", check=False))
    before = json.dumps(on.ec2.describe_vpcs()["Vpcs"]) + json.dumps(
        on.ec2.describe_route_tables()["RouteTables"]
    )
    own.down()
    assert traces_of(own.state) == []
    assert cgroups_of(own.state) == []
    assert read_running(own.state) is None

    own.up()
    on = own.stage()
    after = json.dumps(on.ec2.describe_vpcs()["Vpcs"]) + json.dumps(
        on.ec2.describe_route_tables()["RouteTables"]
    )
    assert after == before
    assert on.s3.list_objects_v2(Bucket=lab.bucket)["KeyCount"] == 2
    lab.on = on
    assert lab.run("print('again')")["ProcessingJobStatus"] == "Completed"
    strike(on)


def test_up_twice_finds_the_running_one_and_down_twice_says_so(own: Cloister) -> None:
    own.up()
    pid = own.running().pid
    own.up()
    assert own.running().pid == pid
    own.down()
    assert "was not up" in own.command("down")


def test_a_port_that_is_taken_is_told_by_its_number_and_nothing_stays(own: Cloister) -> None:
    with socket.create_server(("127.0.0.1", own.port)):
        with pytest.raises(
            AssertionError, match=f"port {own.port} of 127.0.0.1 cannot be had: Address already"
        ):
            own.up()
        assert traces_of(own.state) == []
    own.up()


SLOW = """
import pathlib, time
total = sum(len(p.read_bytes()) for p in pathlib.Path("/opt/ml/processing/input/flights").iterdir())
for n in range(25):
    print("tick", n, flush=True)
    time.sleep(0.1)
pathlib.Path("/opt/ml/processing/output/total").write_text(str(total))
"""


@pytest.mark.timeout(240)
def test_a_daemon_killed_ten_times_at_random_moments_still_completes_the_job(own: Cloister) -> None:
    own.up()
    on = own.stage()
    lab = make_lab(on)
    sizes = [1000 * (n + 1) for n in range(12)]
    for n, size in enumerate(sizes):
        on.s3.put_object(Bucket=lab.bucket, Key=f"input/{n}", Body=b"x" * size)
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    for round_number in range(10):
        name = f"killed-{round_number}"
        lab.run(SLOW, name=name, with_data=True, output=f"s3://{lab.bucket}/out/{name}", wait=False)
        time.sleep(dice.uniform(0, 3.2))
        victim = daemon_pid(own.state)
        assert victim, "no daemon to kill"
        os.kill(victim, signal.SIGKILL)
        wait_until("the holder starts the daemon again", lambda v=victim: daemon_pid(own.state) not in (0, v))
        wait_until("the daemon answers", lambda: read_running(own.state) is not None)
        job = blocks.wait_for(on, name, 60)
        assert job["ProcessingJobStatus"] == "Completed", (seed, round_number, job.get("FailureReason"))
        body = on.s3.get_object(Bucket=lab.bucket, Key=f"out/{name}/total")["Body"].read()
        assert int(body) == sum(sizes), (seed, round_number)
        ticks = [line for line in blocks.job_log(on, name) if line.startswith("tick")]
        assert ticks == [f"tick {n}" for n in range(25)], (seed, round_number, ticks)
    assert on.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    strike(on)
    own.down()
    assert traces_of(own.state) == []
