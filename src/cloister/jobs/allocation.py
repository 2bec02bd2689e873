"""The interfaces of a job: one per instance, two addresses each, all of them or none. Pure.

AWS: at least two private addresses per instance; all of a job's interfaces are in one of the given subnets. A
job that names none is in the service's own network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cloister.jobs.lifecycle import InstanceEvent, instance_after
from cloister.jobs.model import ProcessingJob
from cloister.vpc import addresses, service_network
from cloister.vpc.interfaces import AGENT, CONTAINER, create_interface, release
from cloister.vpc.model import NetworkInterface, Subnet
from cloister.wire.errors import AwsError
from cloister.world import Transaction, World

REQUESTER = "amazon-sagemaker"


def allocate(tx: Transaction, job: ProcessingJob, *, clock: float, region: str) -> ProcessingJob:
    """Make every instance's interface in `tx`; the job with them written in. Raises AwsError."""
    if job.vpc_config is None:
        subnet = service_network.jobs_subnet(tx, region=region, now=clock)
        groups: Sequence[str] = [service_network.job_group(tx, subnet, job.folder).group_id]
    else:
        subnet, groups = choose_subnet(tx, job), job.security_group_ids
    instances, interfaces = [], []
    for each in job.instances:
        interface = create_interface(
            tx,
            subnet_id=subnet.subnet_id,
            group_ids=groups,
            now=clock,
            count=2,
            attach=(CONTAINER, AGENT),
            description=f"[Do not delete] ENI managed by SageMaker for processing job {job.name}",
            requester_managed=True,
            requester_id=REQUESTER,
        )
        interfaces.append(interface)
        own, agent = interface.addresses[:2]
        instances.append(
            replace(
                each,
                state=instance_after(each.state, InstanceEvent.ALLOCATED),
                interface_id=interface.interface_id,
                address=own.address,
                netns=own.netns,
                agent_address=agent.address,
                agent_netns=agent.netns,
                log_stream=f"{job.name}/{each.host}-{int(clock)}",
            )
        )
    acquaint(tx, interfaces, job.request)
    return replace(job, instances=tuple(instances), subnet_id=subnet.subnet_id, zone=subnet.zone)


def acquaint(
    tx: Transaction, interfaces: Sequence[NetworkInterface], request: Mapping[str, Any]
) -> list[NetworkInterface]:
    """Tell each container's address which are the others', as far as the job's NetworkConfig asks for it; the
    interfaces as they are then."""
    network = request.get("NetworkConfig") or {}
    isolated = bool(network.get("EnableNetworkIsolation"))
    encrypted = bool(network.get("EnableInterContainerTrafficEncryption"))
    if not isolated and not encrypted:
        return list(interfaces)
    everybody = [each.addresses[0].address for each in interfaces]
    made = []
    for each in interfaces:
        own = each.addresses[0]
        peers = tuple(address for address in everybody if address != own.address)
        own = replace(own, only=peers if isolated else None, encrypted_with=peers if encrypted else ())
        made.append(replace(each, addresses=(own, *each.addresses[1:])))
        tx.put(made[-1])
    return made


def give_back(tx: Transaction, job: ProcessingJob) -> None:
    """Release every instance's interface, and the group that was the job's own. Idempotent."""
    for each in job.instances:
        interface = tx.get(NetworkInterface, each.interface_id)
        if interface is not None:
            release(tx, interface.interface_id)
            for group_id in interface.group_ids:
                service_network.forget_group(tx, group_id)


def choose_subnet(world: World, job: ProcessingJob) -> Subnet:
    """The first of the job's subnets that has two addresses for each instance (AWS: all of a job's interfaces
    are in one of the given subnets). Raises AwsError."""
    need = 2 * len(job.instances)
    short: list[str] = []
    for subnet_id in job.subnet_ids:
        subnet = world.get(Subnet, subnet_id)
        if subnet is None:
            raise AwsError("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist")
        free = addresses.free_count(world, subnet)
        if free >= need:
            return subnet
        short.append(f"{subnet_id} ({subnet.cidr}) has {free} free")
    raise AwsError(
        "InsufficientFreeAddressesInSubnet",
        "The specified subnet does not have enough free addresses to satisfy the request. "
        f"The job needs {need} addresses (2 for each of {len(job.instances)} instances): "
        f"subnet {', subnet '.join(short)}.",
    )
