"""Why a job can or cannot do what it must: its inputs, its outputs, its instances among each other.

A job that has interfaces is asked about with them; one without (before, after) with interfaces made in a copy
of the World, in the subnet and with the groups that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.jobs import execution_role
from cloister.jobs.allocation import acquaint
from cloister.jobs.model import ProcessingJob
from cloister.jobs.objects import request_of, split_uri
from cloister.vpc import service_network
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.interfaces import AGENT, CONTAINER, create_interface
from cloister.vpc.model import NetworkInterface
from cloister.why.request import session_of, why_request
from cloister.wire.errors import AwsError
from cloister.world import World

#: stands for an object below a prefix
_ANY_OBJECT = "any-object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and when a question is asked."""

    region: str
    account: str
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`what` is the question in words: "input code: s3://…", "algo-1 to algo-2"."""

    what: str
    verdict: Verdict


def why_job(world: World, job: ProcessingJob, place: Place) -> list[Answer]:
    ids = [each.interface_id for each in job.instances if each.interface_id]
    interfaces = [found for one in ids if (found := world.get(NetworkInterface, one)) is not None]
    if len(interfaces) == len(job.instances):
        return list(_answers(world, job.request, interfaces, place))
    return why_request_of(world, job.request, place, subnet_id=job.subnet_id)


def why_request_of(
    world: World, request: Mapping[str, Any], place: Place, *, subnet_id: str | None = None
) -> list[Answer]:
    """The same for a CreateProcessingJob request of a job that is not there."""
    config = (request.get("NetworkConfig") or {}).get("VpcConfig")
    count = request["ProcessingResources"]["ClusterConfig"].get("InstanceCount", 1)
    tx = world.begin()
    try:
        if config:
            chosen, groups = subnet_id or config["Subnets"][0], config["SecurityGroupIds"]
        else:
            subnet = service_network.jobs_subnet(tx, region=place.region, now=place.now)
            chosen = subnet.subnet_id
            groups = [service_network.job_group(tx, subnet, "job").group_id]
        interfaces = [
            create_interface(
                tx,
                subnet_id=chosen,
                group_ids=groups,
                now=place.now,
                count=2,
                attach=(CONTAINER, AGENT),
            )
            for _ in range(min(count, 2))
        ]
        interfaces = acquaint(tx, interfaces, request)
    except AwsError as error:
        step = Step(gate="interface", allowed=False, origin=error.code, sentence=error.message)
        return [Answer(what="interfaces", verdict=Verdict(allowed=False, steps=(step,)))]
    return list(_answers(tx.commit(), request, interfaces, place))


def _answers(
    world: World, request: Mapping[str, Any], interfaces: list[NetworkInterface], place: Place
) -> Iterator[Answer]:
    for what, method, url in transfers(request):
        yield Answer(what=what, verdict=asked(world, request, interfaces[0], method, url, place))
    yield from among(world, interfaces)


def among(world: World, interfaces: Sequence[NetworkInterface]) -> Iterator[Answer]:
    """Whether the instances with these interfaces reach each other at all. They are alike: two tell."""
    if len(interfaces) > 1:
        for one, other in ((0, 1), (1, 0)):
            flow = Flow(
                source=interfaces[one].interface_id,
                destination=interfaces[other].interface_id,
                protocol="tcp",
                vpc_id=interfaces[one].vpc_id,
            )
            what = f"algo-{one + 1} to algo-{other + 1}"
            yield Answer(what=what, verdict=explain(world, flow))


def transfers(request: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What the agent asks of S3 for a job: (in words, method, URL)."""
    for each in request.get("ProcessingInputs") or ():
        s3 = each.get("S3Input")
        if not s3:
            continue
        what, uri = f"input {each['InputName']}", s3["S3Uri"]
        if s3.get("S3DataType") == "ManifestFile":
            yield f"{what}: read {uri}", *request_of("GetObject", uri)
        else:
            yield f"{what}: list {uri}", *request_of("ListObjectsV2", uri)
            yield f"{what}: read objects of {uri}", *request_of("GetObject", _below(uri))
    for each in (request.get("ProcessingOutputConfig") or {}).get("Outputs") or ():
        s3 = each.get("S3Output")
        if s3:
            uri = s3["S3Uri"]
            yield f"output {each['OutputName']}: write to {uri}", *request_of("PutObject", _below(uri))


def _below(uri: str) -> str:
    """An object below a prefix, or the one object that the prefix is."""
    bucket, prefix = split_uri(uri)
    if prefix and not prefix.endswith("/") and "." in prefix.rsplit("/", 1)[-1]:
        return f"s3://{bucket}/{prefix}"
    return f"s3://{bucket}/{prefix.rstrip('/') + '/' if prefix else ''}{_ANY_OBJECT}"


def asked(
    world: World,
    request: Mapping[str, Any],
    interface: NetworkInterface,
    method: str,
    url: str,
    place: Place,
) -> Verdict:
    """Whether the agent at a job's interface may do `method` on `url` as the job's role."""
    role = execution_role.assume(world, request["RoleArn"])
    agent = interface.addresses[min(1, len(interface.addresses) - 1)]
    return why_request(
        world,
        interface,
        method,
        url,
        source=agent.address,
        principal=session_of(role, place.account) if role is not None else None,
        region=place.region,
        account=place.account,
        now=place.now,
    )
