"""The demo's story, told with unmodified boto3 against a running Cloister. Each step checks what it says.

`tell(...)` raises StoryError at the first step that is not as stated, and removes what it made.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from cloister.demo import data

IMAGE = "cloister/host"
PARTS = 6
Say = Callable[[str], None]

#: the seed's example policy (process-vpc.md, "Restrict Package Installation on the Processing Container")
DENY_REPOSITORY = {
    "Sid": "AmazonLinux2AMIRepositoryAccess",
    "Principal": "*",
    "Action": ["s3:GetObject"],
    "Effect": "Deny",
    "Resource": ["arn:aws:s3:::amazonlinux.*.amazonaws.com/*"],
}


class StoryError(Exception):
    """A step did not come out as stated; the text says which and how."""


@dataclass(slots=True, kw_only=True)
class Stage:
    """The clients, and what has been made so far (to be taken away in reverse)."""

    region: str
    account: str
    say: Say
    ec2: Any
    s3: Any
    iam: Any
    sts: Any
    sagemaker: Any
    logs: Any
    mark: str
    undo: list[Callable[[], Any]] = field(default_factory=list)


def stage(region: str, environment: dict[str, str], say: Say) -> Stage:
    """Clients from the variables `cloister env` prints."""
    session = boto3.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
    )

    def client(name: str) -> Any:
        return session.client(
            name, endpoint_url=environment["AWS_ENDPOINT_URL"], verify=environment["AWS_CA_BUNDLE"]
        )

    sts = client("sts")
    return Stage(
        region=region,
        account=sts.get_caller_identity()["Account"],
        say=say,
        ec2=client("ec2"),
        s3=client("s3"),
        iam=client("iam"),
        sts=sts,
        sagemaker=client("sagemaker"),
        logs=client("logs"),
        mark=f"{int(time.time()):x}",
    )


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


def make_role(on: Stage, name: str, buckets: list[str]) -> str:
    """An execution role that SageMaker and the account may assume, for these buckets."""
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
            },
            {
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{on.account}:root"},
                "Action": "sts:AssumeRole",
            },
        ],
    }
    rights = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload"],
                "Resource": [arn for b in buckets for arn in (f"arn:aws:s3:::{b}", f"arn:aws:s3:::{b}/*")],
            },
            {
                "Effect": "Allow",
                "Action": [
                    "ec2:CreateNetworkInterface",
                    "ec2:CreateNetworkInterfacePermission",
                    "ec2:DeleteNetworkInterface",
                    "ec2:DeleteNetworkInterfacePermission",
                    "ec2:DescribeNetworkInterfaces",
                    "ec2:DescribeVpcs",
                    "ec2:DescribeDhcpOptions",
                    "ec2:DescribeSubnets",
                    "ec2:DescribeSecurityGroups",
                    "logs:CreateLogGroup",
                    "logs:CreateLogStream",
                    "logs:PutLogEvents",
                    "logs:DescribeLogStreams",
                ],
                "Resource": "*",
            },
        ],
    }
    arn: str = on.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    on.undo.append(lambda: on.iam.delete_role(RoleName=name))
    on.iam.put_role_policy(RoleName=name, PolicyName="job", PolicyDocument=json.dumps(rights))
    on.undo.append(lambda: on.iam.delete_role_policy(RoleName=name, PolicyName="job"))
    return arn


def endpoint_policy(network_bucket: str, *, deny_repository: bool) -> str:
    """The custom endpoint policy: this bucket and the package repository, less the seed's Deny."""
    statements: list[dict[str, Any]] = [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [
                f"arn:aws:s3:::{network_bucket}",
                f"arn:aws:s3:::{network_bucket}/*",
                "arn:aws:s3:::amazonlinux.*.amazonaws.com/*",
            ],
        }
    ]
    if deny_repository:
        statements.append(DENY_REPOSITORY)
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def make_vpc(on: Stage, cidr: str) -> str:
    vpc: str = on.ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
    on.undo.append(lambda: on.ec2.delete_vpc(VpcId=vpc))
    return vpc


def make_subnet(on: Stage, vpc: str, cidr: str, zone: str) -> str:
    subnet: str = on.ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)["Subnet"]["SubnetId"]
    on.undo.append(lambda: on.ec2.delete_subnet(SubnetId=subnet))
    return subnet


def follow_table(on: Stage, subnet: str, table: str) -> None:
    association = on.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
    on.undo.append(lambda: on.ec2.disassociate_route_table(AssociationId=association))


def make_group(on: Stage, vpc: str, name: str, *, allow_itself: bool) -> str:
    group: str = on.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
    on.undo.append(lambda: on.ec2.delete_security_group(GroupId=group))
    if allow_itself:
        permission = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        on.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
        # A group that refers to itself is in use by itself only; it can be deleted with its rules.
    return group


def make_bucket(on: Stage, name: str) -> str:
    where = (
        {} if on.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": on.region}}
    )
    on.s3.create_bucket(Bucket=name, **where)
    on.undo.append(lambda: _empty_and_delete(on, name))
    return name


def _empty_and_delete(on: Stage, bucket: str) -> None:
    for page in on.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            on.s3.delete_object(Bucket=bucket, Key=item["Key"])
    on.s3.delete_bucket(Bucket=bucket)


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


def run_job(
    on: Stage,
    name: str,
    *,
    role: str,
    subnets: list[str],
    group: str,
    script: str,
    bucket: str,
    arguments: list[str] | None = None,
    instances: int = 1,
    with_data: bool = False,
    output: str | None = None,
    wait: bool = True,
) -> dict[str, Any]:
    """Create one Processing job and, unless told otherwise, wait for its end. The last Describe."""
    inputs = [
        {
            "InputName": "code",
            "S3Input": {
                "S3Uri": f"s3://{bucket}/code/{script}",
                "LocalPath": "/opt/ml/processing/input/code",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
            },
        }
    ]
    if with_data:
        inputs.append(
            {
                "InputName": "flights",
                "S3Input": {
                    "S3Uri": f"s3://{bucket}/input/",
                    "LocalPath": "/opt/ml/processing/input/flights",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                    "S3DataDistributionType": "ShardedByS3Key",
                },
            }
        )
    outputs = [
        {
            "OutputName": "result",
            "S3Output": {
                "S3Uri": output,
                "LocalPath": "/opt/ml/processing/output",
                "S3UploadMode": "EndOfJob",
            },
        }
    ]
    on.sagemaker.create_processing_job(
        ProcessingJobName=name,
        RoleArn=role,
        AppSpecification={
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["python3", f"/opt/ml/processing/input/code/{script}"],
            **({"ContainerArguments": arguments} if arguments else {}),
        },
        ProcessingInputs=inputs,
        ProcessingOutputConfig={"Outputs": outputs if output else []},
        ProcessingResources={
            "ClusterConfig": {"InstanceCount": instances, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        },
        NetworkConfig={"VpcConfig": {"Subnets": subnets, "SecurityGroupIds": [group]}},
        StoppingCondition={"MaxRuntimeInSeconds": 120},
    )
    on.undo.append(lambda: _delete_job(on, name))
    return wait_for(on, name) if wait else {}


def _delete_job(on: Stage, name: str) -> None:
    if on.sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"] in (
        "InProgress",
        "Stopping",
    ):
        on.sagemaker.stop_processing_job(ProcessingJobName=name)
        wait_for(on, name)
    on.sagemaker.delete_processing_job(ProcessingJobName=name)


def wait_for(on: Stage, name: str, timeout: float = 90) -> dict[str, Any]:
    """Poll Describe until the job is terminal."""
    deadline = time.monotonic() + timeout
    while True:
        job: dict[str, Any] = on.sagemaker.describe_processing_job(ProcessingJobName=name)
        if job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped"):
            return job
        if time.monotonic() > deadline:
            raise StoryError(f"{name} is still {job['ProcessingJobStatus']} after {timeout:.0f} s")
        time.sleep(0.1)


def job_log(on: Stage, name: str) -> list[str]:
    group = "/aws/sagemaker/ProcessingJobs"
    found = on.logs.filter_log_events(logGroupName=group, logStreamNamePrefix=f"{name}/")
    return [event["message"] for event in found["events"]]


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
