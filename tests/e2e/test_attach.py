"""Programs of one's own in the VPC: a real PostgreSQL on an interface, used by a job as its groups allow.

The server's group lets in port 5432 from the job's group and from nowhere else."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Cloister, Lab, strike, wait_until

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

QUERY = """
import glob, subprocess, sys
psql = sorted(glob.glob("/usr/lib/postgresql/*/bin/psql"))[-1]
done = subprocess.run(
    [psql, "-h", sys.argv[1], "-U", "tester", "-d", "postgres", "-At", "-v", "ON_ERROR_STOP=1", "-c",
     "create table if not exists flights (carrier text, delay int);"
     "insert into flights values ('AA', 10), ('AA', 20), ('UA', 5);"
     "select carrier, avg(delay)::int from flights group by carrier order by carrier"],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, env={"PGCONNECT_TIMEOUT": "4"})
print(done.stdout, flush=True)
sys.exit(done.returncode)
"""


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    assert found, "PostgreSQL is not installed: scripts/install.sh installs it"
    return str(found[-1])


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A database cluster, owned by a user that PostgreSQL agrees to run as."""
    top = Path(tempfile.mkdtemp(prefix="cloister-pg-", dir="/var/tmp"))
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(top, user.pw_uid, user.pw_gid)
    try:
        make = [_program("initdb"), "-D", str(top / "data"), "-U", "tester", "--auth=trust", "--no-sync"]
        done = subprocess.run([*_as_server(), *make], capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        with (top / "data" / "pg_hba.conf").open("a") as file:
            file.write("host all all 0.0.0.0/0 trust\n")
        yield top / "data"
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _as_server() -> list[str]:
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@contextlib.contextmanager
def _serving(cloister: Cloister, data: Path, subnet: str, group: str) -> Iterator[str]:
    """PostgreSQL on an interface with this group; its address."""
    command = [sys.executable, "-m", "cloister.cli.main", "--state", str(cloister.state)]
    command += ["attach", "--subnet", subnet, "--security-group", group, "--", *_as_server()]
    command += [_program("postgres"), "-D", str(data), "-c", "listen_addresses=*"]
    command += ["-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    with tempfile.NamedTemporaryFile("a") as said:
        server = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, **cloister.environ}, cwd="/"
        )

        def output() -> str:
            return Path(said.name).read_text()

        try:
            wait_until(
                "PostgreSQL is ready", lambda: "ready to accept" in output() or server.poll() is not None
            )
            assert server.poll() is None, output()
            yield output().partition(" has ")[2].partition("\n")[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)


def _query(lab: Lab, address: str, group: str, name: str) -> dict[str, Any]:
    request = lab.scripted(name, QUERY, address)
    request["NetworkConfig"]["VpcConfig"]["SecurityGroupIds"] = [group]
    return lab.outcome(request)


def test_a_job_reads_and_writes_a_real_database_in_a_private_subnet_as_its_groups_allow(
    cloister: Cloister, lab: Lab, data: Path
) -> None:
    on = lab.on
    private = blocks.make_subnet(on, lab.vpc, "10.40.7.0/24", f"{on.region}b")
    server = blocks.make_group(on, lab.vpc, f"db-{on.mark}", allow_itself=False)
    stranger = blocks.make_group(on, lab.vpc, f"stranger-{on.mark}", allow_itself=True)
    on.ec2.authorize_security_group_ingress(
        GroupId=server,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 5432,
                "ToPort": 5432,
                "UserIdGroupPairs": [{"GroupId": lab.group}],
            }
        ],
    )
    # a group that another one names cannot be deleted before
    on.undo.append(lambda: _revoke_all(on, server))
    with _serving(cloister, data, private, server) as address:
        assert address.startswith("10.40.7.")
        allowed = _query(lab, address, lab.group, f"db-allowed-{on.mark}")
        assert allowed["ProcessingJobStatus"] == "Completed", lab.log(allowed)
        assert lab.log(allowed).splitlines()[-2:] == ["AA|15", "UA|5"]
        refused = _query(lab, address, stranger, f"db-refused-{on.mark}")
        assert refused["ProcessingJobStatus"] == "Failed"
        assert "timeout expired" in lab.log(refused)
    wait_until("the interface is released", lambda: not _interfaces(on, private), timeout=10)


def test_down_ends_attached_programs_at_once_and_their_interfaces_are_gone_after(cloister: Cloister) -> None:
    on = cloister.stage()
    vpc = blocks.make_vpc(on, "10.47.0.0/16")
    subnet = blocks.make_subnet(on, vpc, "10.47.1.0/24", f"{on.region}a")
    group = blocks.make_group(on, vpc, f"held-{on.mark}", allow_itself=False)
    command = [sys.executable, "-m", "cloister.cli.main", "--state", str(cloister.state)]
    command += ["attach", "--subnet", subnet, "--security-group", group, "--", "sleep", "120"]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **cloister.environ}
    )
    try:
        wait_until("the interface is there", lambda: _interfaces(on, subnet))
        begun = time.monotonic()
        cloister.down()
        assert time.monotonic() - begun < 15  # not the daemon's whole grace of 20 s
        program.communicate(timeout=20)
    finally:
        if program.poll() is None:
            program.kill()
            program.communicate()
        cloister.up()
    assert _interfaces(on, subnet) == []
    strike(on)


def _revoke_all(on: blocks.Stage, group: str) -> None:
    rules = on.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    if rules:
        on.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rules)


def _interfaces(on: blocks.Stage, subnet: str) -> list[Any]:
    found = on.ec2.describe_network_interfaces(Filters=[{"Name": "subnet-id", "Values": [subnet]}])
    listed: list[Any] = found["NetworkInterfaces"]
    return listed
