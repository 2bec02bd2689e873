"""Two VPCs that are joined: a job of the one uses a server in the other by its private name, as groups allow."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Cloister, Lab, wait_until

from cloister.demo import blocks

pytestmark = pytest.mark.e2e

ASK = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        print("SAID", urllib.request.urlopen(url, timeout=2).status, flush=True)
    except OSError as error:
        print("SAID", error, flush=True)
"""


@contextlib.contextmanager
def _serving(cloister: Cloister, subnet: str, group: str) -> Iterator[str]:
    """A web server on an interface with this group; its address."""
    command = [sys.executable, "-m", "cloister.cli.main", "--state", str(cloister.state)]
    command += ["attach", "--subnet", subnet, "--security-group", group, "--"]
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("a") as said:
        command += [sys.executable, "-u", "-m", "http.server", "-d", folder, "8080"]
        server = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, **cloister.environ}, cwd="/"
        )

        def output() -> str:
            return Path(said.name).read_text()

        try:
            wait_until("the server is ready", lambda: "Serving" in output() or server.poll() is not None)
            assert server.poll() is None, output()
            yield output().partition(" has ")[2].partition("\n")[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)


def _answers(lab: Lab, name: str, *urls: str) -> list[str]:
    done = lab.outcome(lab.scripted(f"{name}-{lab.on.mark}", ASK, *urls))
    assert done["ProcessingJobStatus"] == "Completed", done
    lines = lab.log(done).splitlines()
    return [line.removeprefix("SAID ") for line in lines if line.startswith("SAID ")]


def test_a_job_uses_a_server_in_a_peered_vpc_while_they_are_joined(cloister: Cloister, lab: Lab) -> None:
    on, ec2 = lab.on, lab.on.ec2
    there = blocks.make_vpc(on, "10.41.0.0/16")
    subnet = blocks.make_subnet(on, there, "10.41.1.0/24", f"{on.region}a")
    group = blocks.make_group(on, there, f"web-{on.mark}", allow_itself=False)
    for vpc in (lab.vpc, there):
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    (far_table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [there]}])["RouteTables"]
    peering = ec2.create_vpc_peering_connection(VpcId=lab.vpc, PeerVpcId=there)["VpcPeeringConnection"]
    peering_id = peering["VpcPeeringConnectionId"]
    ec2.get_waiter("vpc_peering_connection_exists").wait(VpcPeeringConnectionIds=[peering_id])
    named: dict[str, Any] = {"VpcPeeringConnectionId": peering_id}
    try:
        ec2.accept_vpc_peering_connection(**named)
        ec2.modify_vpc_peering_connection_options(
            **named, AccepterPeeringConnectionOptions={"AllowDnsResolutionFromRemoteVpc": True}
        )
        ec2.create_route(RouteTableId=lab.route_table, DestinationCidrBlock="10.41.0.0/16", **named)
        ec2.create_route(RouteTableId=far_table["RouteTableId"], DestinationCidrBlock="10.40.0.0/16", **named)
        ec2.authorize_security_group_ingress(
            GroupId=group,
            IpPermissions=[
                {
                    "IpProtocol": "tcp",
                    "FromPort": 8080,
                    "ToPort": 8080,
                    "UserIdGroupPairs": [{"GroupId": lab.group, "VpcId": lab.vpc, **named}],
                }
            ],
        )
        with _serving(cloister, subnet, group) as address:
            url = f"http://ip-{address.replace('.', '-')}.ec2.internal:8080/"
            assert _answers(lab, "joined", url) == ["200"]
            ec2.delete_vpc_peering_connection(**named)
            (stale,) = ec2.describe_stale_security_groups(VpcId=there)["StaleSecurityGroupSet"]
            assert stale["GroupId"] == group
            name, route = _answers(lab, "parted", url, f"http://{address}:8080/")
            assert "Name or service not known" in name
            assert "timed out" in route
    finally:
        with contextlib.suppress(ec2.exceptions.ClientError):
            ec2.delete_vpc_peering_connection(**named)
        by_group = [{"Name": "group-id", "Values": [group]}]
        wait_until(
            "the server's interface is released",
            lambda: not ec2.describe_network_interfaces(Filters=by_group)["NetworkInterfaces"],
        )
        ec2.delete_route(RouteTableId=lab.route_table, DestinationCidrBlock="10.41.0.0/16")
        with contextlib.suppress(ec2.exceptions.ClientError):
            ec2.revoke_security_group_ingress(
                GroupId=group,
                SecurityGroupRuleIds=[
                    rule["SecurityGroupRuleId"]
                    for rule in ec2.describe_security_group_rules(
                        Filters=[{"Name": "group-id", "Values": [group]}]
                    )["SecurityGroupRules"]
                    if not rule["IsEgress"]
                ],
            )
