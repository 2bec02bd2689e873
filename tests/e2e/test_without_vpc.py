"""Jobs without VpcConfig, and a NAT gateway of one's own: S3 and the APIs are reached as from the internet."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Cloister, Lab, daemon_pid, make_lab, strike, wait_until

from cloister import way_out
from cloister.demo import blocks

pytestmark = pytest.mark.e2e

#: asks S3 and the APIs with clients that know nothing of Cloister; listens for, and calls, other instances
SCRIPT = """
import json, os, socket, sys, time, urllib.request
import boto3, botocore.config, botocore.exceptions
bucket, other = sys.argv[1], sys.argv[2]
config = botocore.config.Config(connect_timeout=4, read_timeout=20, retries={"total_max_attempts": 1})
resources = json.load(open("/opt/ml/config/resourceconfig.json"))
said = {"host": resources["current_host"]}
def ask(name, call):
    try:
        said[name] = call()
    except botocore.exceptions.ClientError as error:
        said[name] = error.response["Error"]["Code"]
    except (OSError, botocore.exceptions.BotoCoreError) as error:
        said[name] = type(error).__name__
def client(service):
    return boto3.session.Session().client(service, region_name="us-east-1", config=config)
s3 = client("s3")
def put(key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    return "done"
def reach(host, port):
    socket.create_connection((host, port), timeout=1.5).close()
    return "reached"
server = socket.create_server(("0.0.0.0", 5000))
for place in ("with-source-ip", "with-vpc", "from-pool"):
    ask(place, lambda: put(place + "/" + said["host"]))
ask("sts", lambda: client("sts").get_caller_identity()["Arn"].split("/")[1])
ask("ec2", lambda: len(client("ec2").describe_vpcs()["Vpcs"]))
ask("plain", lambda: urllib.request.urlopen("http://sts.us-east-1.amazonaws.com/", timeout=4).status)
for host in resources["hosts"]:
    ask(host, lambda: reach(host, 5000))
if other == "-":
    own = socket.gethostbyname(said["host"])
    s3.put_object(Bucket=bucket, Key="address", Body=own.encode())
    for _ in range(300):
        try:
            s3.head_object(Bucket=bucket, Key="enough")
            break
        except botocore.exceptions.ClientError:
            time.sleep(0.2)
else:
    ask("other", lambda: reach(other, 5000))
    ask("machine", lambda: reach(sys.argv[3], int(sys.argv[4])))
    time.sleep(1)
print("SAID", json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def outside(cloister: Cloister) -> Iterator[Lab]:
    """A lab whose bucket's policy looks at where a request comes from."""
    on = cloister.stage()
    try:
        lab = make_lab(on, "10.44.0.0/16")
        place = f"arn:aws:s3:::{lab.bucket}"
        conditions: dict[str, dict[str, Any]] = {
            "with-source-ip": {"Null": {"aws:SourceIp": "true"}},
            "with-vpc": {"Null": {"aws:SourceVpc": "true"}},
            "from-pool": {"NotIpAddress": {"aws:SourceIp": "198.51.100.0/24"}},
        }
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:PutObject",
                    "Resource": f"{place}/{prefix}/*",
                    "Condition": condition,
                }
                for prefix, condition in conditions.items()
            ],
        }
        on.s3.put_bucket_policy(Bucket=lab.bucket, Policy=json.dumps(policy))
        yield lab
    finally:
        strike(on)


def asking(lab: Lab, name: str, *arguments: str, instances: int = 1) -> dict[str, Any]:
    request = lab.scripted(name, SCRIPT, lab.bucket, *arguments)
    request["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = instances
    del request["NetworkConfig"]
    return request


def said(lab: Lab, job: dict[str, Any]) -> list[dict[str, Any]]:
    found = [line.partition("SAID ")[2] for line in lab.log(job).splitlines() if "SAID " in line]
    return sorted((json.loads(each) for each in found), key=lambda each: str(each["host"]))


def own_address() -> str:
    """An address of this host that others would call it by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(one.getsockname()[0])


def key(lab: Lab, name: str) -> bool:
    return any(
        each["Key"] == name for each in lab.on.s3.list_objects_v2(Bucket=lab.bucket).get("Contents", [])
    )


AS_FROM_THE_INTERNET = {
    "with-source-ip": "done",
    "with-vpc": "AccessDenied",
    "from-pool": "done",
    "plain": "HTTPError",
}


def test_a_job_without_a_vpc_reaches_what_the_internet_reaches_and_no_other_job(
    cloister: Cloister, outside: Lab
) -> None:
    before = json.loads(cloister.command("status", "--json"))["resources"]
    first = asking(outside, f"first-{outside.on.mark}", "-")
    outside.create(first)
    wait_until("the first job listens", lambda: key(outside, "address"))
    running = json.loads(cloister.command("status", "--json"))
    assert "the service's network" in {job["subnet"] for job in running["jobs"]}
    assert {**running["resources"], "jobs": 0} == {**before, "jobs": 0}
    address = outside.get("address").decode()
    with socket.create_server(("0.0.0.0", 0)) as on_this_machine:
        machine = (own_address(), str(on_this_machine.getsockname()[1]))
        second = asking(outside, f"second-{outside.on.mark}", address, *machine, instances=2)
        ended = outside.outcome(second)
    outside.put("enough", b"")
    assert ended["ProcessingJobStatus"] == "Completed", ended
    answers = said(outside, ended)
    assert [each["host"] for each in answers] == ["algo-1", "algo-2"]
    role = outside.role.rpartition("/")[2]
    for each in answers:
        assert each.items() >= AS_FROM_THE_INTERNET.items(), each
        assert (each["sts"], each["ec2"]) == (role, before["VPCs"])
        assert (each["algo-1"], each["algo-2"]) == ("reached", "reached")
        assert each["other"] == "TimeoutError"
        assert each["machine"] == "TimeoutError"
    told = json.loads(cloister.command("why", second["ProcessingJobName"], "--json", check=False))["refused"]
    requests = [each for each in told if each["unit"] == "requests"]
    assert {each["who"] for each in requests} == {"algo-1", "algo-2"}
    assert {each["by"] for each in requests} == {f"bucket policy of {outside.bucket}/statement 2"}
    done = blocks.wait_for(outside.on, first["ProcessingJobName"])
    assert done["ProcessingJobStatus"] == "Completed", done
    listed = outside.on.ec2.describe_network_interfaces()["NetworkInterfaces"]
    assert not any(each["PrivateIpAddress"].startswith("100.64.") for each in listed)
    assert not any(vpc["CidrBlock"].startswith("100.64.") for vpc in outside.on.ec2.describe_vpcs()["Vpcs"])


def test_a_job_behind_ones_own_nat_gateway_is_known_by_its_elastic_ip(
    cloister: Cloister, outside: Lab
) -> None:
    on, ec2 = outside.on, outside.on.ec2
    made: list[Any] = []
    try:
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        made.append(lambda: ec2.delete_internet_gateway(InternetGatewayId=gateway))
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=outside.vpc)
        made.append(lambda: ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=outside.vpc))
        public = ec2.create_subnet(VpcId=outside.vpc, CidrBlock="10.44.9.0/28")["Subnet"]["SubnetId"]
        made.append(lambda: ec2.delete_subnet(SubnetId=public))
        table = ec2.create_route_table(VpcId=outside.vpc)["RouteTable"]["RouteTableId"]
        made.append(lambda: ec2.delete_route_table(RouteTableId=table))
        association = ec2.associate_route_table(RouteTableId=table, SubnetId=public)["AssociationId"]
        made.append(lambda: ec2.disassociate_route_table(AssociationId=association))
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
        elastic = ec2.allocate_address(Domain="vpc")
        made.append(lambda: ec2.release_address(AllocationId=elastic["AllocationId"]))
        nat = ec2.create_nat_gateway(SubnetId=public, AllocationId=elastic["AllocationId"])["NatGateway"]
        made.append(lambda: ec2.delete_nat_gateway(NatGatewayId=nat["NatGatewayId"]))
        ec2.get_waiter("nat_gateway_available").wait(
            NatGatewayIds=[nat["NatGatewayId"]], WaiterConfig={"Delay": 1, "MaxAttempts": 20}
        )
        # the endpoint's own route is more specific than the gateway's: away with it
        ec2.modify_vpc_endpoint(VpcEndpointId=outside.endpoint, RemoveRouteTableIds=[outside.route_table])
        ec2.create_route(
            RouteTableId=outside.route_table,
            DestinationCidrBlock="0.0.0.0/0",
            NatGatewayId=nat["NatGatewayId"],
        )
        made.append(
            lambda: ec2.delete_route(RouteTableId=outside.route_table, DestinationCidrBlock="0.0.0.0/0")
        )
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:PutObject",
                    "Resource": f"arn:aws:s3:::{outside.bucket}/{prefix}/*",
                    "Condition": condition,
                }
                for prefix, condition in {
                    "from-pool": {"NotIpAddress": {"aws:SourceIp": f"{elastic['PublicIp']}/32"}},
                    "with-source-ip": {"IpAddress": {"aws:SourceIp": "198.51.100.0/24"}},
                    "with-vpc": {"Null": {"aws:SourceVpce": "true"}},
                }.items()
            ],
        }
        on.s3.put_bucket_policy(Bucket=outside.bucket, Policy=json.dumps(policy))
        request = outside.scripted(
            f"natted-{on.mark}", SCRIPT, outside.bucket, "10.44.200.9", "10.0.2.2", "443"
        )
        ended = outside.outcome(request)
        assert ended["ProcessingJobStatus"] == "Completed", ended
        (answer,) = said(outside, ended)
        assert answer["from-pool"] == "done"
        assert (answer["with-source-ip"], answer["with-vpc"]) == ("AccessDenied", "AccessDenied")
        assert answer["sts"] == outside.role.rpartition("/")[2]
        assert answer["other"] in ("TimeoutError", "OSError", "ConnectionRefusedError")
        # the interface is shown with its address
        (eni,) = ec2.describe_network_interfaces(
            Filters=[{"Name": "interface-type", "Values": ["nat_gateway"]}]
        )["NetworkInterfaces"]
        assert eni["Association"]["PublicIp"] == elastic["PublicIp"]
    finally:
        for undo in reversed(made):
            undo()


@pytest.mark.skipif(
    bool(way_out.missing()) or way_out.default_route() is None, reason="this host has no way out"
)
def test_the_way_out_comes_again_after_the_daemon_was_killed(cloister: Cloister, outside: Lab) -> None:
    def running() -> list[int]:
        return [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if _command(process).startswith(b"/")
            and str(cloister.state).encode() in _command(process)
            and way_out.PROGRAM.encode() in _command(process).split(b"\0")[0]
        ]

    def status() -> str:
        done = json.loads(cloister.command("status", "--json", check=False) or "{}")
        return str(done.get("way_out"))

    request = asking(outside, f"third-{outside.on.mark}", "127.0.0.1", "127.0.0.1", "1")
    assert outside.outcome(request)["ProcessingJobStatus"] == "Completed"
    wait_until("the way out is open", lambda: status().startswith("by "))
    before, daemon = running(), daemon_pid(cloister.state)
    assert len(before) == 1
    os.kill(daemon, signal.SIGKILL)
    wait_until("it is open again", lambda: status().startswith("by ") and running() not in ([], before))
    assert len(running()) == 1


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
