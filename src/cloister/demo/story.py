"""The demo's story, told with unmodified boto3 against a running Cloister. Each step checks what it says.

`tell(...)` raises StoryError at the first step that is not as stated, and removes what it made.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import boto3
import botocore.exceptions

from cloister.demo import data
from cloister.demo.blocks import (
    Stage,
    StoryError,
    endpoint_policy,
    follow_table,
    job_log,
    make_bucket,
    make_group,
    make_role,
    make_subnet,
    make_vpc,
    run_job,
    wait_for,
)

PARTS = 6


@dataclass(slots=True, kw_only=True)
class Network:
    vpc: str
    subnets: list[str]
    group: str
    endpoint: str
    route_table: str
    role: str
    bucket: str
    other_bucket: str
    repository: str


def tell(on: Stage) -> None:
    """The whole story."""
    began = time.monotonic()
    try:
        text = data.flights_csv()
        network = _build(on)
        _upload(on, network, text)
        _distributed_job(on, network, text)
        _from_inside(on, network)
        _from_outside(on, network)
        _failures(on, network)
    finally:
        for undo in reversed(on.undo):
            try:
                undo()
            except botocore.exceptions.ClientError as error:
                on.say(f"  (could not clean up: {error})")
    on.say(f"\nThe story held, every step, in {time.monotonic() - began:.1f} s.")


def _expect(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise StoryError(f"{what}: expected {expected!r}, got {actual!r}")


# 1. ---------------------------------------------------------------------------------------------


def _build(on: Stage) -> Network:
    on.say("1. A private VPC, with unmodified boto3")
    vpc = make_vpc(on, "10.20.0.0/16")
    zones = [z["ZoneName"] for z in on.ec2.describe_availability_zones()["AvailabilityZones"]][:2]
    subnets = [make_subnet(on, vpc, f"10.20.{n}.0/24", zone) for n, zone in enumerate(zones, 1)]
    group = make_group(on, vpc, f"flights-{on.mark}", allow_itself=True)
    table = on.ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    on.undo.append(lambda: on.ec2.delete_route_table(RouteTableId=table))
    for subnet in subnets:
        follow_table(on, subnet, table)
    bucket = make_bucket(on, f"flights-{on.mark}")
    other = make_bucket(on, f"elsewhere-{on.mark}")
    repository = f"amazonlinux.{on.region}.amazonaws.com"
    endpoint = on.ec2.create_vpc_endpoint(
        VpcId=vpc,
        ServiceName=f"com.amazonaws.{on.region}.s3",
        RouteTableIds=[table],
        PolicyDocument=endpoint_policy(bucket, deny_repository=True),
    )["VpcEndpoint"]["VpcEndpointId"]
    on.undo.append(lambda: on.ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint]))
    role = make_role(on, f"flights-{on.mark}", [bucket, other])

    routes = on.ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]
    shown = {r.get("DestinationPrefixListId") or r["DestinationCidrBlock"]: r["GatewayId"] for r in routes}
    prefix_list = next((d for d in shown if d.startswith("pl-")), None)
    if prefix_list is None or shown[prefix_list] != endpoint:
        raise StoryError(f"the route table {table} has no pl-… → {endpoint} route: {shown}")
    on.say(
        f"   {vpc} 10.20.0.0/16, {subnets[0]} and {subnets[1]} in {' and '.join(zones)}, "
        f"{group} allows itself"
    )
    on.say(f"   {table}: {', '.join(f'{d} → {t}' for d, t in shown.items())}")
    on.say(f"   role {role}")
    return Network(
        vpc=vpc,
        subnets=subnets,
        group=group,
        endpoint=endpoint,
        route_table=table,
        role=role,
        bucket=bucket,
        other_bucket=other,
        repository=repository,
    )


def only_through(bucket: str, endpoint: str, account: str) -> str:
    """A bucket policy that refuses every way but this endpoint, except for the account's own root."""
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "OnlyThroughTheEndpoint",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:*",
                    "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                    "Condition": {
                        "StringNotEquals": {"aws:SourceVpce": endpoint},
                        "ArnNotEquals": {"aws:PrincipalArn": f"arn:aws:iam::{account}:root"},
                    },
                }
            ],
        }
    )


def job_script(name: str) -> str:
    return resources.files("cloister.demo").joinpath("job", name).read_text()


def _upload(on: Stage, net: Network, text: str) -> None:
    parts = list(data.split(text, PARTS))
    for name, body in parts:
        on.s3.put_object(Bucket=net.bucket, Key=f"input/{name}", Body=body.encode())
    for name in ("flights.py", "probe.py", "neighbour.py"):
        on.s3.put_object(Bucket=net.bucket, Key=f"code/{name}", Body=job_script(name).encode())
    on.s3.put_object(Bucket=net.other_bucket, Key="input/flights-00.csv", Body=b"not for this job")
    try:
        make_bucket(on, net.repository)
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    public = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{net.repository}/*",
            }
        ],
    }
    on.s3.put_bucket_policy(Bucket=net.repository, Policy=json.dumps(public))
    on.s3.put_object(
        Bucket=net.repository, Key="2/core/latest/mirror.list", Body=b"https://example.invalid/\n"
    )
    on.s3.put_bucket_policy(Bucket=net.bucket, Policy=only_through(net.bucket, net.endpoint, on.account))
    on.say(
        f"   {data.FLIGHTS:,} flights as {len(parts)} objects in s3://{net.bucket}/input/, "
        f"bucket policy: {net.endpoint} only"
    )


# 2. ---------------------------------------------------------------------------------------------


def _completed(on: Stage, job: dict[str, Any]) -> None:
    name = job["ProcessingJobName"]
    if job["ProcessingJobStatus"] != "Completed":
        log = "\n     ".join(job_log(on, name)[-12:])
        raise StoryError(f"{name} is {job['ProcessingJobStatus']}: {job.get('FailureReason')}\n     {log}")


def _distributed_job(on: Stage, net: Network, text: str) -> None:
    on.say(
        "\n2. A job of two instances: each aggregates its shard, they exchange results as algo-1 and algo-2"
    )
    name = f"flights-{on.mark}"
    began = time.monotonic()
    output = f"s3://{net.bucket}/output/{name}"
    job = run_job(
        on,
        name,
        role=net.role,
        subnets=net.subnets,
        group=net.group,
        script="flights.py",
        bucket=net.bucket,
        instances=2,
        with_data=True,
        output=output,
    )
    _completed(on, job)
    body = on.s3.get_object(Bucket=net.bucket, Key=f"output/{name}/delays.csv")["Body"].read().decode()
    rows = [line.split(",") for line in body.splitlines()[1:]]
    actual = {carrier: (int(count), int(delay)) for carrier, count, delay in rows}
    expected = data.delays_by_carrier([text])
    _expect("delays per carrier, from the job and computed directly", actual, expected)
    for line in job_log(on, name):
        on.say(f"   │ {line}")
    mean = {carrier: delay / count for carrier, (count, delay) in actual.items()}
    worst = sorted(mean, key=lambda carrier: -mean[carrier])
    on.say("   mean arrival delay, minutes: " + "  ".join(f"{c} {mean[c]:+.1f}" for c in worst))
    on.say(
        f"   equal to the same figures computed directly, for {len(actual)} carriers "
        f"({time.monotonic() - began:.1f} s from create to checked)"
    )


# 3. ---------------------------------------------------------------------------------------------


@contextmanager
def _listener_on_this_host() -> Iterator[tuple[str, int]]:
    """A socket on every address of this host, and one of those addresses, for the job to fail to reach."""
    server = socket.create_server(("0.0.0.0", 0))
    thread = threading.Thread(target=_accept_until_closed, args=(server,), daemon=True)
    thread.start()
    try:
        yield _address_of_this_host(), server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _accept_until_closed(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def _address_of_this_host() -> str:
    """The address this host would use for the outside (nothing is sent), else 127.0.0.2."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


def _from_inside(on: Stage, net: Network) -> None:
    on.say("\n3. From inside the job")
    port = 7801
    neighbour, address = _start_neighbour(on, net, port)
    names = [
        f"s3.{on.region}.amazonaws.com",
        f"{net.bucket}.s3.{on.region}.amazonaws.com",
        f"s3-{on.region}.amazonaws.com",
    ]
    with _listener_on_this_host() as (host, host_port):
        socket.create_connection((host, host_port), timeout=2).close()  # the host itself reaches it
        addresses = {
            "an outside address": ["198.51.100.1", 443],
            "this host's loopback": ["127.0.0.1", host_port],
            f"this host's {host}": [host, host_port],
            "another VPC, same CIDR": [address, port],
        }
        asked = {
            "region": on.region,
            "bucket": net.bucket,
            "other_bucket": net.other_bucket,
            "key": "input/flights-00.csv",
            "repository": f"http://{net.repository}/2/core/latest/mirror.list",
            "names": names,
            "addresses": addresses,
        }
        found = _probe(on, net, "inside", asked)
    size = on.s3.head_object(Bucket=net.bucket, Key="input/flights-00.csv")["ContentLength"]
    expected = {f"DNS {name}": "resolves" for name in names} | {
        "own bucket, boto3": f"read {size} bytes over https",
        "another bucket, boto3": "403 by the endpoint policy",
        "package repository": "403",
        **dict.fromkeys(addresses, "unreachable"),
    }
    on.ec2.modify_vpc_endpoint(
        VpcEndpointId=net.endpoint, PolicyDocument=endpoint_policy(net.bucket, deny_repository=False)
    )
    label = "package repository, without that policy"
    open_probe = {"region": on.region, "bucket": None, "repository": asked["repository"]}
    found[label] = _probe(on, net, "open", open_probe)["package repository"]
    expected[label] = "200"

    width = max(len(label) for label in expected)
    on.say(f"   {'what':{width}}  {'expected':34}  actual")
    for label, word in expected.items():
        on.say(f"   {label:{width}}  {word:34}  {found.get(label)}")
    _expect("what the job can reach", found, expected)
    on.sagemaker.stop_processing_job(ProcessingJobName=neighbour)


def _start_neighbour(on: Stage, net: Network, port: int) -> tuple[str, str]:
    """A job in another VPC of the same CIDR that listens, proven from within; its name and address."""
    vpc = make_vpc(on, "10.20.0.0/16")
    subnet = make_subnet(on, vpc, "10.20.3.0/24", f"{on.region}a")
    group = make_group(on, vpc, f"neighbour-{on.mark}", allow_itself=True)
    main = on.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]
    endpoint = on.ec2.create_vpc_endpoint(
        VpcId=vpc, ServiceName=f"com.amazonaws.{on.region}.s3", RouteTableIds=[main["RouteTableId"]]
    )["VpcEndpoint"]["VpcEndpointId"]
    on.undo.append(lambda: on.ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint]))
    bucket = make_bucket(on, f"neighbour-{on.mark}")
    on.s3.put_object(Bucket=bucket, Key="code/neighbour.py", Body=job_script("neighbour.py").encode())
    role = make_role(on, f"neighbour-{on.mark}", [bucket])
    name = f"neighbour-{on.mark}"
    run_job(
        on,
        name,
        role=role,
        subnets=[subnet],
        group=group,
        script="neighbour.py",
        bucket=bucket,
        arguments=[str(port)],
        instances=2,
        wait=False,
    )
    deadline = time.monotonic() + 30
    while not any("reachable from its own VPC" in line for line in _log_if_any(on, name)):
        if time.monotonic() > deadline:
            raise StoryError(f"the neighbour {name} did not come up: {_log_if_any(on, name)}")
        time.sleep(0.2)
    interfaces = on.ec2.describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    addresses = [i["PrivateIpAddress"] for i in interfaces["NetworkInterfaces"]]
    return name, min(addresses)


def _log_if_any(on: Stage, name: str) -> list[str]:
    try:
        return job_log(on, name)
    except botocore.exceptions.ClientError:
        return []


def _probe(on: Stage, net: Network, what: str, asked: dict[str, Any]) -> dict[str, str]:
    name = f"{what}-{on.mark}"
    job = run_job(
        on,
        name,
        role=net.role,
        subnets=net.subnets,
        group=net.group,
        script="probe.py",
        bucket=net.bucket,
        arguments=[json.dumps(asked)[i : i + 256] for i in range(0, len(json.dumps(asked)), 256)],
        output=f"s3://{net.bucket}/output/{name}",
    )
    _completed(on, job)
    body = on.s3.get_object(Bucket=net.bucket, Key=f"output/{name}/probe.json")["Body"].read()
    found: dict[str, str] = json.loads(body)
    return found


# 4. ---------------------------------------------------------------------------------------------


def _from_outside(on: Stage, net: Network) -> None:
    on.say("\n4. From outside the VPC, the same role")
    keys = on.sts.assume_role(RoleArn=net.role, RoleSessionName="outside")["Credentials"]
    outside = boto3.client(
        "s3",
        endpoint_url=on.s3.meta.endpoint_url,
        verify=on.s3._endpoint.http_session._verify,
        region_name=on.region,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )
    try:
        outside.get_object(Bucket=net.bucket, Key="input/flights-00.csv")
    except botocore.exceptions.ClientError as error:
        _expect("the bucket from outside", error.response["Error"]["Code"], "AccessDenied")
        on.say(f"   {error.response['Error']['Code']}: {error.response['Error']['Message']}")
    else:
        raise StoryError(f"{net.role} could read {net.bucket} from outside {net.endpoint}")


# 5. ---------------------------------------------------------------------------------------------


def _failures(on: Stage, net: Network) -> None:
    on.say("\n5. What must fail, fails, and says why")
    mute = make_group(on, net.vpc, f"mute-{on.mark}", allow_itself=False)
    zone = f"{on.region}a"
    tiny = make_subnet(on, net.vpc, "10.20.4.0/28", zone)
    follow_table(on, tiny, net.route_table)
    stranded = make_subnet(on, net.vpc, "10.20.5.0/24", zone)  # follows the main table, which has no endpoint
    attempts: list[tuple[str, dict[str, Any], list[str]]] = [
        (
            "without the self-referencing rule",
            {"subnets": net.subnets, "group": mute, "instances": 2, "arguments": ["3"], "with_data": True},
            ["AlgorithmError", mute, "authorize-security-group-"],
        ),
        (
            "in a subnet without a route to S3",
            {"subnets": [stranded], "group": net.group, "instances": 2, "with_data": True},
            ["ClientError: ", "Unable to execute request to S3", stranded],
        ),
        (
            "in a subnet with too few addresses",
            {"subnets": [tiny], "group": net.group, "instances": 6, "with_data": True},
            [tiny, "12", "11"],
        ),
    ]
    names = []
    for number, (_, how, _) in enumerate(attempts):
        names.append(f"fails-{number}-{on.mark}")
        run_job(on, names[-1], role=net.role, script="flights.py", bucket=net.bucket, wait=False, **how)
    for name, (what, _, words) in zip(names, attempts, strict=True):
        job = wait_for(on, name)
        reason = job.get("FailureReason", "")
        on.say(f"   {what}: {job['ProcessingJobStatus']}\n     {reason}")
        if job.get("ExitMessage"):
            on.say(f"     {job['ExitMessage']}")
        _expect(f"the job {what}", job["ProcessingJobStatus"], "Failed")
        for word in words:
            if word not in reason:
                raise StoryError(f"the FailureReason of the job {what} does not say {word!r}: {reason}")
