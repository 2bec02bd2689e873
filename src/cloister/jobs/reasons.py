"""FailureReasons: AWS's known sentences, then the cause behind them in the words of `cloister why`. Pure.

A cause is a refusal: the sentence that names the rule by its id, and the command that would change it.
Where the command does not fit in AWS's limit, the reason says who prints it.
"""

from __future__ import annotations

from cloister.jobs.model import Instance, ProcessingJob
from cloister.vpc import fixes
from cloister.vpc.flow import Step
from cloister.vpc.model import NetworkInterface, Subnet
from cloister.why.job import Place, among, asked, isolation_of, objects_like
from cloister.wire.errors import AwsError
from cloister.world import World

#: characters (AWS: DescribeProcessingJob)
LIMIT = 1024
INTERNAL = "InternalServerError: We encountered an internal error. Please try again."


def with_cause(reason: str, refusal: Step | None, asking: str, *, what: str = "") -> str:
    """`what` are words before the cause. What the reason says already is not said again. `asking` is the
    command that explains the job: "cloister why JOB"."""
    if refusal is None or not refusal.sentence:
        return reason
    start = f"{reason.rstrip('.')}: {what}{_unsaid(refusal.sentence, reason)}"
    if not refusal.fix:
        return start
    whole = f"{start} ({refusal.fix})"
    if len(whole) <= LIMIT:
        return whole
    pointer = f" ({asking} prints the change)"
    room = LIMIT - len(pointer)
    return (start if len(start) <= room else start[: room - 1] + "…") + pointer


def _unsaid(sentence: str, reason: str) -> str:
    """The end of a sentence, after what a reason says already."""
    parts = sentence.split(": ")
    for said in range(len(parts) - 1, 0, -1):
        if ": ".join(parts[:said]) in reason:
            return ": ".join(parts[said:])
    return sentence


#: gates that ask no policy: what keeps a request from getting there
_WAY = ("dns", "interface", "route", "egress", "acl", "gateway", "ingress", "endpoint")


def of_request(
    world: World, job: ProcessingJob, instance: Instance, request: str, place: Place, *, unreachable: bool
) -> Step | None:
    """Why the rules refuse "METHOD s3://…" to an instance's agent: on the way there when S3 was not reached,
    else what S3 looks at."""
    interface = world.get(NetworkInterface, instance.interface_id)
    if interface is None:
        return None
    method, _, url = request.partition(" ")
    objects = objects_like(job.request, method, url)
    verdict = asked(world, job.request, interface, method, url, place, objects)
    steps = (step for step in verdict.steps if not step.allowed)
    return next((step for step in steps if (step.gate in _WAY) is unreachable), None)


def of_allocation(world: World, job: ProcessingJob, error: AwsError) -> str:
    """Of a job that got no interfaces."""
    subnet = world.get(Subnet, job.subnet_ids[0]) if job.subnet_ids else None
    reason = f"ClientError: {error}"
    if error.code != "InsufficientFreeAddressesInSubnet" or subnet is None:
        return reason
    fix = fixes.larger_subnet(world, subnet, 2 * len(job.instances))
    whole = f"{reason} Name a larger one in VpcConfig.Subnets: {fix}"
    return whole if fix is not None and len(whole) <= LIMIT else reason


def of_exit(instance: Instance, *, told: bool) -> str:
    """Of a container that did not exit with 0; `told`: one of the job's containers left a message."""
    if instance.exit_code is None:
        return (
            f"{INTERNAL} The container of {instance.host} was lost: it was ended with Cloister "
            "(`cloister down`), its monitor was killed, or the machine went down."
        )
    if instance.out_of_memory:
        return (
            "ClientError: Please use an instance type with more memory, or reduce the size of job data "
            "processed on an instance."
        )
    if told:
        return "AlgorithmError: See job logs for more information"
    return f"AlgorithmError: , exit code: {instance.exit_code}"


def of_time(job: ProcessingJob) -> str:
    return (
        "ClientError: The job was stopped because it exceeded MaxRuntimeInSeconds "
        f"({job.max_runtime} seconds)."
    )


def while_running(
    world: World, job: ProcessingJob, reason: str, noticed: tuple[str, Step] | None, asking: str
) -> str:
    """A reason with why the instances cannot talk, else with what was refused to a container while it ran:
    `noticed`, in words and as a step."""
    found = (world.get(NetworkInterface, each.interface_id) for each in job.instances)
    for answer in among(world, [interface for interface in found if interface is not None]):
        if answer.verdict.refusal is not None:
            return with_cause(reason, answer.verdict.refusal, asking, what=f"{answer.what}: ")
    if noticed is not None:
        what, refusal = noticed
        return with_cause(reason, refusal, asking, what=f"{what} was refused: ")
    if job.isolated:
        return f"{reason.rstrip('.')}: {isolation_of(len(job.instances))}"
    return reason
