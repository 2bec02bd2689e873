"""A CreateProcessingJob request against the World, without running it: what would fail, and what would help.

Findings come in the order in which a job meets them: the request itself, the role, subnets and addresses, the
instances among each other, every input and output, every service that the user names.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloister.jobs import execution_role
from cloister.jobs.model import SUBNET_TAG
from cloister.jobs.objects import split_uri
from cloister.services.api import Call
from cloister.services.sagemaker import checks
from cloister.vpc import addresses, fixes, service_network
from cloister.vpc.flow import Step, Verdict
from cloister.vpc.model import SecurityGroup, Subnet
from cloister.why import role
from cloister.why.job import Place, in_words, stand_in, why_request_of
from cloister.why.request import session_of, why_request
from cloister.wire.errors import AwsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`about` is what was looked at; `steps` are the gates, where there are any."""

    ok: bool
    about: str
    sentence: str
    fix: str | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """`trouble`: why the image cannot be had; `command_trouble`: why it cannot start the job's command; ""
    when nothing was found. `seen` says what was looked at, and what was not."""

    trouble: str = ""
    command_trouble: str = ""
    seen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the World does not know. `keys`: some of the keys below an input's S3Uri, by that; absent: not
    known."""

    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    image: ImageFacts = ImageFacts()


def preflight(
    call: Call, params: Mapping[str, Any], services: Sequence[str] = (), facts: Facts | None = None
) -> list[Finding]:
    """`params` are CreateProcessingJob's, already validated against the model. `services` are names as in
    `sts`, `secretsmanager`, actions as in `kms:Decrypt`, or host names that the container will ask over
    HTTPS."""
    return list(_findings(call, dict(params), services, facts or Facts()))


def _findings(call: Call, params: dict[str, Any], services: Sequence[str], facts: Facts) -> Iterator[Finding]:
    config = (params.get("NetworkConfig") or {}).get("VpcConfig")
    yield from _checked("request", lambda: checks.check_implemented(params), "Cloister does all it asks for.")
    yield from _checked("channels", lambda: checks.check_channels(params), "Names and paths are in order.")
    forced = _checked("subnet tag", lambda: checks.check_forced_subnet(params, config), "")
    yield from (each for each in forced if not each.ok)
    yield _image(params["AppSpecification"]["ImageUri"], facts.image)
    yield (trust := _role(call, params["RoleArn"]))
    if not trust.ok:  # what its policies allow is no question yet
        return
    place = Place(region=call.region, account=call.account, now=call.now)
    subnet_id = None
    if config:
        unable = role.unable(call.tx, params["RoleArn"])
        yield _of_step("permissions", unable, "The role may do what a job in a VPC needs.")
        problems = list(_checked("network", lambda: checks.check_network(call, config), ""))
        yield from (each for each in problems if not each.ok)
        if not all(each.ok for each in problems):
            return
        forced_to = [tag["Value"] for tag in params.get("Tags") or () if tag["Key"] == SUBNET_TAG]
        subnet_id, findings = _subnets(call, params, forced_to[-1:] or config["Subnets"])
        yield from findings
        if subnet_id is None:
            return
    for answer in why_request_of(call.tx, params, place, subnet_id=subnet_id, keys=facts.keys):
        finding = _of_verdict(answer.what, answer.verdict)
        encrypted = (params.get("NetworkConfig") or {}).get("EnableInterContainerTrafficEncryption")
        if config and " to algo-" in answer.what and not finding.ok and not encrypted:
            finding = _self_reference(call, config["SecurityGroupIds"], finding)
        yield finding
    yield from _empty(params, facts)
    isolated = (params.get("NetworkConfig") or {}).get("EnableNetworkIsolation")
    for service in services:
        if isolated:
            sentence = "The container has network isolation: it reaches no service."
            yield Finding(ok=False, about=f"service {service}", sentence=sentence)
        else:
            yield _service(call, params, subnet_id, service)


def _image(uri: str, facts: ImageFacts) -> Finding:
    if facts.trouble:
        fix = f"podman pull {shlex.quote(uri)}"
        return Finding(ok=False, about="image", sentence=facts.trouble, fix=fix)
    if facts.command_trouble:
        return Finding(ok=False, about="image", sentence=facts.command_trouble)
    return Finding(ok=True, about="image", sentence=facts.seen or f"{uri} can be had.")


def _role(call: Call, arn: str) -> Finding:
    """The caller may pass it, and SageMaker may assume it."""
    problem = next(iter(_checked("role", lambda: checks.check_role(call, arn), "SageMaker may assume it.")))
    untrusted = role.untrusted(call.tx, arn) if not problem.ok else None
    return _of_step("role", untrusted, "") if untrusted is not None else problem


def _of_step(about: str, step: Step | None, otherwise: str) -> Finding:
    if step is None:
        return Finding(ok=True, about=about, sentence=otherwise)
    return Finding(ok=False, about=about, sentence=step.sentence, fix=step.fix, steps=(step,))


def _empty(params: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    """Inputs without an object: AWS lets no job begin without."""
    for each in params.get("ProcessingInputs") or ():
        uri = (each.get("S3Input") or {}).get("S3Uri", "")
        if uri not in facts.keys or each.get("AppManaged"):
            continue
        about, keys = f"input {each['InputName']}: objects", facts.keys[uri]
        if each["S3Input"].get("S3DataType") == "ManifestFile":
            if split_uri(uri)[1] not in keys:
                yield Finding(ok=False, about=about, sentence=f"There is no manifest {uri}.")
        elif not keys:
            yield Finding(ok=False, about=about, sentence=f"There is no object under {uri}: a job needs one.")


def _checked(about: str, check: Callable[[], None], sentence: str) -> Iterator[Finding]:
    try:
        check()
    except AwsError as error:
        yield Finding(ok=False, about=about, sentence=error.message)
    else:
        yield Finding(ok=True, about=about, sentence=sentence)


def _subnets(
    call: Call, params: Mapping[str, Any], subnet_ids: Sequence[str]
) -> tuple[str | None, list[Finding]]:
    """The subnet that the job would get, and what there is to say about its subnets."""
    count = params["ProcessingResources"]["ClusterConfig"].get("InstanceCount", 1)
    need = 2 * count
    subnets = [subnet for one in subnet_ids if (subnet := call.tx.get(Subnet, one)) is not None]
    free = {subnet.subnet_id: addresses.free_count(call.tx, subnet) for subnet in subnets}
    chosen = next((one for one, left in free.items() if left >= need), None)
    listed = ", ".join(f"{s.subnet_id} in {s.zone} has {free[s.subnet_id]} free" for s in subnets)
    sentence = f"The job needs {need} addresses of one subnet (2 for each of {count} instances); {listed}."
    fix = None
    if chosen is None:
        sentence += " Name a larger one in VpcConfig.Subnets."
        fix = fixes.larger_subnet(call.tx, subnets[0], need)
    findings = [Finding(ok=chosen is not None, about="addresses", sentence=sentence, fix=fix)]
    zones = sorted({subnet.zone for subnet in subnets})
    if len(zones) == 1:
        note = f"All subnets are in {zones[0]}: AWS advises at least two zones for availability."
        findings.append(Finding(ok=True, about="zones", sentence=note))
    return chosen, findings


def _self_reference(call: Call, group_ids: Sequence[str], finding: Finding) -> Finding:
    """Instances that cannot talk lack the rule that lets a group in from itself, the smallest that helps."""
    group = call.tx.get(SecurityGroup, group_ids[0])
    if group is None or finding.steps[-1].gate != "ingress":
        return finding
    return Finding(
        ok=False,
        about=finding.about,
        sentence=f"{finding.sentence} Instances of a job need a rule that lets their group in from itself.",
        fix=f"aws ec2 authorize-security-group-ingress --group-id {group.group_id} "
        f"--protocol tcp --port 0-65535 --source-group {group.group_id}",
        steps=finding.steps,
    )


def _service(call: Call, params: Mapping[str, Any], subnet_id: str | None, service: str) -> Finding:
    """`service`: "sts", "kms:Decrypt", or a host's name or address, with or without a port."""
    name, _, operation = service.partition(":")
    port = f":{operation}" if operation.isdigit() else ""
    prefix = {"sagemaker": "api.sagemaker", "ecr": "api.ecr"}.get(name, name)
    host = name if "." in name else f"{prefix}.{call.region}.amazonaws.com"
    assumed = execution_role.assume(call.tx, params["RoleArn"])
    tx = call.tx.begin()
    if subnet_id is None:
        subnet = service_network.jobs_subnet(tx, region=call.region, now=call.now)
        subnet_id, groups = subnet.subnet_id, [service_network.job_group(tx, subnet, "job").group_id]
    else:
        groups = params["NetworkConfig"]["VpcConfig"]["SecurityGroupIds"]
    interface = stand_in(tx, subnet_id=subnet_id, group_ids=groups, now=call.now)
    verdict = why_request(
        tx.commit(),
        interface,
        "GET",
        f"https://{host}{port}/",
        principal=session_of(assumed, call.account) if assumed is not None else None,
        region=call.region,
        account=call.account,
        now=call.now,
        action=service if operation and not port else None,
    )
    return _of_verdict(f"service {service}", in_words(verdict, [interface]))


def _of_verdict(about: str, verdict: Verdict) -> Finding:
    refusal = verdict.refusal
    return Finding(
        ok=verdict.allowed,
        about=about,
        sentence=verdict.reason,
        fix=refusal.fix if refusal is not None else None,
        steps=verdict.steps,
    )
