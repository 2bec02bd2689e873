"""Why a job can or cannot do what it must: its inputs, its outputs, its instances among each other.

A job that has interfaces is asked about with them; one without (before, after) with interfaces made in a copy
of the World, in the subnet and with the groups that it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from cloister.jobs import execution_role
from cloister.jobs.allocation import REQUESTER, acquaint
from cloister.jobs.model import ProcessingJob
from cloister.jobs.objects import request_of, split_uri
from cloister.s3 import sse
from cloister.vpc import service_network
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.interfaces import AGENT, CONTAINER, create_interface
from cloister.vpc.model import NetworkInterface
from cloister.vpc.steps import allowed
from cloister.why import role
from cloister.why.request import session_of, why_request
from cloister.wire.errors import AwsError
from cloister.world import Transaction, World

#: stands for an object below a prefix: what a policy says of it, it says of all of them
_ANY_OBJECT = "*"
#: keys of an input whose policies are looked at one by one
_KEYS = 100


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
    needed = [Answer(what="role", verdict=_refusal(step)) for step in _role_steps(world, job.request)]
    ids = [each.interface_id for each in job.instances if each.interface_id]
    interfaces = [found for one in ids if (found := world.get(NetworkInterface, one)) is not None]
    if len(interfaces) == len(job.instances):
        return [*needed, *_answers(world, job.request, interfaces, place, {})]
    return [*needed, *why_request_of(world, job.request, place, subnet_id=job.subnet_id)]


def _role_steps(world: World, request: Mapping[str, Any]) -> Iterator[Step]:
    """What keeps a job with this role from running at all."""
    step = role.untrusted(world, request["RoleArn"])
    if step is None and (request.get("NetworkConfig") or {}).get("VpcConfig"):
        step = role.unable(world, request["RoleArn"])
    if step is not None:
        yield step


def _refusal(step: Step) -> Verdict:
    return Verdict(allowed=False, steps=(step,))


def why_request_of(
    world: World,
    request: Mapping[str, Any],
    place: Place,
    *,
    subnet_id: str | None = None,
    keys: Mapping[str, Sequence[str]] | None = None,
) -> list[Answer]:
    """The same for a CreateProcessingJob request of a job that is not there. `keys`: those of the objects of
    an input, by its S3Uri, as far as they are known."""
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
            stand_in(tx, subnet_id=chosen, group_ids=groups, now=place.now) for _ in range(min(count, 2))
        ]
        interfaces = acquaint(tx, interfaces, request)
    except AwsError as error:
        step = Step(gate="interface", allowed=False, origin=error.code, sentence=error.message)
        return [Answer(what="interfaces", verdict=_refusal(step))]
    found = _answers(tx.commit(), request, interfaces, place, keys or {})
    return [replace(each, verdict=in_words(each.verdict, interfaces)) for each in found]


def stand_in(tx: Transaction, *, subnet_id: str, group_ids: Sequence[str], now: float) -> NetworkInterface:
    """An interface as a job's, for a question only."""
    return create_interface(
        tx,
        subnet_id=subnet_id,
        group_ids=group_ids,
        now=now,
        count=2,
        attach=(CONTAINER, AGENT),
        requester_managed=True,
        requester_id=REQUESTER,
    )


def in_words(verdict: Verdict, interfaces: Sequence[NetworkInterface]) -> Verdict:
    """A verdict that does not tell ids and addresses of interfaces that nobody will find."""
    steps = verdict.steps
    for number, interface in enumerate(interfaces, 1):
        steps = tuple(_renamed(step, interface, f"algo-{number}") for step in steps)
    return replace(verdict, steps=steps)


def _renamed(step: Step, interface: NetworkInterface, name: str) -> Step:
    sentence = step.sentence
    for index, held in enumerate(interface.addresses):
        whose = name if index == 0 else f"{name}'s agent"
        sentence = re.sub(rf"(?<![\d.]){re.escape(held.address)}(?!\.?\d|/)", whose, sentence)
    known = step.fix is None or interface.interface_id not in step.fix
    return replace(
        step,
        sentence=sentence.replace(interface.interface_id, f"the interface of {name}"),
        origin=step.origin.replace(interface.interface_id, name),
        fix=step.fix if known else None,
    )


def _answers(
    world: World,
    request: Mapping[str, Any],
    interfaces: list[NetworkInterface],
    place: Place,
    keys: Mapping[str, Sequence[str]],
) -> Iterator[Answer]:
    for each in transfers(request, keys):
        verdicts = (
            asked(world, request, interfaces[0], method, url, place, each.objects)
            for method, url in each.requests
        )
        yield Answer(what=each.what, verdict=_worst(verdicts))
    yield from among(world, interfaces)
    if (request.get("NetworkConfig") or {}).get("EnableNetworkIsolation"):
        count = request["ProcessingResources"]["ClusterConfig"].get("InstanceCount", 1)
        said = allowed("interface", interfaces[0].interface_id, isolation_of(count))
        yield Answer(what="container", verdict=Verdict(allowed=True, steps=(said,)))


def isolation_of(count: int) -> str:
    """What EnableNetworkIsolation means to the container of a job of so many instances."""
    whom = "nobody but the job's other instances" if count > 1 else "nobody, also no AWS service,"
    return f"With network isolation the container reaches {whom} and has no credentials."


def _worst(verdicts: Iterator[Verdict]) -> Verdict:
    found = next(verdicts)
    return found if not found.allowed else next((one for one in verdicts if not one.allowed), found)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What the agent asks of S3: in words, as (method, URL), and the ARN of all objects of the kind, "" when
    none are meant."""

    what: str
    requests: tuple[tuple[str, str], ...]
    objects: str = ""


def transfers(request: Mapping[str, Any], keys: Mapping[str, Sequence[str]]) -> Iterator[Transfer]:
    """What the agent asks of S3 for a job."""
    for each in request.get("ProcessingInputs") or ():
        s3 = each.get("S3Input")
        if not s3 or each.get("AppManaged"):
            continue
        what, uri = f"input {each['InputName']}", s3["S3Uri"]
        if s3.get("S3DataType") == "ManifestFile":
            yield Transfer(what=f"{what}: read {uri}", requests=(request_of("GetObject", uri),))
            continue
        bucket, _ = split_uri(uri)
        yield Transfer(what=f"{what}: list {uri}", requests=(request_of("ListObjectsV2", uri),))
        known = [f"s3://{bucket}/{key}" for key in list(keys.get(uri, ()))[:_KEYS]]
        yield Transfer(
            what=f"{what}: read objects of {uri}",
            requests=tuple(request_of("GetObject", one) for one in known or [_below(uri)]),
            objects=arn_of(uri if known == [uri] else _below(uri)),
        )
    for each in (request.get("ProcessingOutputConfig") or {}).get("Outputs") or ():
        s3 = each.get("S3Output")
        if s3 and not each.get("AppManaged"):
            uri = s3["S3Uri"]
            below = f"{uri.rstrip('/')}/{_ANY_OBJECT}"
            yield Transfer(
                what=f"output {each['OutputName']}: write to {uri}",
                requests=(request_of("PutObject", below),),
                objects=arn_of(below),
            )


def objects_like(request: Mapping[str, Any], method: str, url: str) -> str:
    """The ARN of all objects that a job asks for as it asks for the one at "s3://…", "" for none."""
    arn = arn_of(unquote(url.partition("?")[0]))
    for each in transfers(request, {}):
        asked_for = each.requests[0][0] == method and each.objects.endswith(_ANY_OBJECT)
        if asked_for and arn.startswith(each.objects.removesuffix(_ANY_OBJECT)):
            return each.objects
    return ""


def arn_of(uri: str) -> str:
    return "arn:aws:s3:::" + "/".join(split_uri(uri))


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
    objects: str = "",
) -> Verdict:
    """Whether the agent at a job's interface may do `method` on `url` as the job's role. `objects`: the ARN
    of all that it asks for like this."""
    untrusted = role.untrusted(world, request["RoleArn"])
    if untrusted is not None:
        return _refusal(untrusted)
    assumed = execution_role.assume(world, request["RoleArn"])
    agent = interface.addresses[min(1, len(interface.addresses) - 1)]
    return why_request(
        world,
        interface,
        method,
        url,
        source=agent.address,
        principal=session_of(assumed, place.account) if assumed is not None else None,
        region=place.region,
        account=place.account,
        now=place.now,
        objects=objects or None,
        sent=_sent(request, method),
    )


def _sent(request: Mapping[str, Any], method: str) -> dict[str, str]:
    """The headers of what the agent writes with the job's key."""
    key = (request.get("ProcessingOutputConfig") or {}).get("KmsKeyId")
    return {sse.ALGORITHM: sse.KMS, sse.KEY: key} if key and method == "PUT" else {}
