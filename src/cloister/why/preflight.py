"""A CreateProcessingJob request against the World, without running it: what would fail, and what would help.

Findings come in the order in which a job meets them: the request itself, the role, subnets and addresses, the
instances among each other, every input and output, every service that the user names.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.jobs import execution_role
from cloister.services.api import Call
from cloister.services.sagemaker import checks
from cloister.vpc import addresses
from cloister.vpc.flow import Step, Verdict
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import SecurityGroup, Subnet
from cloister.why.job import Place, why_request_of
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


def preflight(call: Call, params: Mapping[str, Any], services: Sequence[str] = ()) -> list[Finding]:
    """`params` are CreateProcessingJob's, already validated against the model. `services` are names as in
    `sts`, `secretsmanager`, or host names that the container will ask over HTTPS."""
    return list(_findings(call, dict(params), services))


def _findings(call: Call, params: dict[str, Any], services: Sequence[str]) -> Iterator[Finding]:
    yield from _checked("request", lambda: checks.check_implemented(params), "Cloister does all it asks for.")
    yield from _checked("channels", lambda: checks.check_channels(params), "Names and paths are in order.")
    config = (params.get("NetworkConfig") or {}).get("VpcConfig")
    yield from _checked(
        "role", lambda: checks.check_role(call, params["RoleArn"]), "SageMaker may assume it."
    )
    place = Place(region=call.region, account=call.account, now=call.now)
    if not config:
        for answer in why_request_of(call.tx, params, place):
            yield _of_verdict(answer.what, answer.verdict)
        return
    yield from _permissions(call, params["RoleArn"])
    problems = list(_checked("network", lambda: checks.check_network(call, config), ""))
    yield from (each for each in problems if not each.ok)
    if not all(each.ok for each in problems):
        return
    subnet_id, findings = _subnets(call, params, config["Subnets"])
    yield from findings
    if subnet_id is None:
        return
    for answer in why_request_of(call.tx, params, place, subnet_id=subnet_id):
        finding = _of_verdict(answer.what, answer.verdict)
        encrypted = (params.get("NetworkConfig") or {}).get("EnableInterContainerTrafficEncryption")
        if " to algo-" in answer.what and not finding.ok and not encrypted:
            finding = _self_reference(call, config["SecurityGroupIds"], finding)
        yield finding
    isolated = params["NetworkConfig"].get("EnableNetworkIsolation")
    for service in services:
        if isolated:
            sentence = "The container has network isolation: it reaches no service."
            yield Finding(ok=False, about=f"service {service}", sentence=sentence)
        else:
            yield _service(call, params, subnet_id, service)


def _checked(about: str, check: Callable[[], None], sentence: str) -> Iterator[Finding]:
    try:
        check()
    except AwsError as error:
        yield Finding(ok=False, about=about, sentence=error.message)
    else:
        yield Finding(ok=True, about=about, sentence=sentence)


def _permissions(call: Call, role_arn: str) -> Iterator[Finding]:
    role = execution_role.assume(call.tx, role_arn)
    if role is None:
        return
    missing = execution_role.missing_permissions(call.tx, session_of(role, call.account))
    if not missing:
        yield Finding(ok=True, about="permissions", sentence="The role may do what a job in a VPC needs.")
        return
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": missing, "Resource": "*"}],
    }
    yield Finding(
        ok=False,
        about="permissions",
        sentence=f"The role {role.name} lacks {', '.join(missing)}.",
        fix=f"aws iam put-role-policy --role-name {role.name} --policy-name sagemaker-vpc "
        f"--policy-document {shlex.quote(json.dumps(document))}",
    )


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
        fix = f"aws ec2 create-subnet --vpc-id {subnets[0].vpc_id} --cidr-block A-FREE-BLOCK"
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


def _service(call: Call, params: Mapping[str, Any], subnet_id: str, service: str) -> Finding:
    prefix = {"sagemaker": "api.sagemaker", "ecr": "api.ecr"}.get(service, service)
    host = service if "." in service else f"{prefix}.{call.region}.amazonaws.com"
    role = execution_role.assume(call.tx, params["RoleArn"])
    tx = call.tx.begin()
    interface = create_interface(
        tx,
        subnet_id=subnet_id,
        group_ids=params["NetworkConfig"]["VpcConfig"]["SecurityGroupIds"],
        now=call.now,
        attach=("",),
    )
    verdict = why_request(
        tx.commit(),
        interface,
        "GET",
        f"https://{host}/",
        principal=session_of(role, call.account) if role is not None else None,
        region=call.region,
        account=call.account,
        now=call.now,
    )
    return _of_verdict(f"service {service}", verdict)


def _of_verdict(about: str, verdict: Verdict) -> Finding:
    refusal = verdict.refusal
    return Finding(
        ok=verdict.allowed,
        about=about,
        sentence=verdict.reason,
        fix=refusal.fix if refusal is not None else None,
        steps=verdict.steps,
    )
