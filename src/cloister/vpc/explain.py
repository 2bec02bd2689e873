"""Why a connection is allowed or refused: the rules that `compile` renders, read instead.

The gates come in the order in which the router asks them. Every step names the resource and rule that
decided, and a refusal the AWS CLI command that would change it. `explain` goes on after a refusal where it
can, so that all that is missing is seen at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cloister.vpc import addresses as ip
from cloister.vpc import interface_endpoints, isolation
from cloister.vpc.explain_gates import End
from cloister.vpc.explain_path import path
from cloister.vpc.explain_routes import end_of, public_end
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.model import Vpc
from cloister.vpc.steps import allowed, refused
from cloister.world import World


def explain(world: World, flow: Flow) -> Verdict:
    """Whether `flow` is let through, gate by gate."""
    return verdict_of(_flow_steps(world, flow))


def verdict_of(steps: Iterator[Step]) -> Verdict:
    found = tuple(steps)
    return Verdict(allowed=bool(found) and all(step.allowed for step in found), steps=found)


def _flow_steps(world: World, flow: Flow) -> Iterator[Step]:
    source = end_of(world, flow.source, flow.vpc_id)
    if source is None:
        yield refused("interface", flow.source, f"No network interface has the address {flow.source}.")
        return
    sender = source.interface
    if sender.interface_type == interface_endpoints.ENDPOINT_INTERFACE:
        sentence = f"{sender.interface_id} is an interface endpoint's: it opens nothing."
        yield refused("endpoint", sender.interface_id, sentence)
    if not any(held.address == source.address and held.netns for held in sender.addresses):
        sentence = f"{sender.interface_id} is not attached to anything with its address {source.address}."
        yield refused("interface", sender.interface_id, sentence, code="UNASSOCIATED_COMPONENT")
    vpc = world.get(Vpc, sender.vpc_id)
    target = end_of(world, flow.destination, sender.vpc_id)
    if vpc is None or (target is None and flow.destination.startswith("eni-")):
        yield refused("interface", flow.destination, f"There is no network interface {flow.destination}.")
        return
    destination = target.address if target is not None else flow.destination
    if destination == source.address:
        yield allowed("interface", sender.interface_id, f"{destination} is its own: nothing leaves it.")
        return
    isolated = _isolation_step(source, target, destination)
    if isolated is not None:
        yield isolated
        return
    if destination in (ip.resolver_address(vpc), ip.LINK_LOCAL_RESOLVER):
        yield _resolver_step(vpc, flow)
        return
    if target is None:
        target = public_end(world, destination)
    for carried in _carried(source, destination, flow):
        yield from path(world, source, target, destination, carried)


def _isolation_step(source: End, target: End | None, destination: str) -> Step | None:
    """The refusal of network isolation, at either end."""
    for end, other in ((source, destination), (target, source.address)):
        only = end.held.only if end is not None and end.held is not None else None
        if end is None or only is None or other in only:
            continue
        whom = f"only {', '.join(only)}, the other instances of its job" if only else "nobody"
        sentence = f"{end.address} ({end.interface.interface_id}) has network isolation: it reaches {whom}."
        return refused("interface", end.interface.interface_id, sentence)
    return None


def _carried(source: End, destination: str, flow: Flow) -> tuple[Flow, ...]:
    """The flows by which a flow travels: between instances that encrypt, keys and IPsec."""
    if source.held is None or destination not in source.held.encrypted_with:
        return (flow,)
    keys = replace(flow, protocol="udp", port=isolation.KEY_PORT, source_port=isolation.KEY_PORT)
    return keys, replace(flow, protocol=isolation.ESP, port=None, source_port=None)


def dns_support_step(vpc: Vpc) -> Step:
    if vpc.enable_dns_support:
        return allowed("dns", vpc.vpc_id, f"{vpc.vpc_id} has a resolver at {ip.resolver_address(vpc)}.")
    return refused(
        "dns",
        vpc.vpc_id,
        f"DNS support of {vpc.vpc_id} is off, so no name resolves in it.",
        f"aws ec2 modify-vpc-attribute --vpc-id {vpc.vpc_id} --enable-dns-support",
    )


def _resolver_step(vpc: Vpc, flow: Flow) -> Step:
    step = dns_support_step(vpc)
    if step.allowed and (flow.protocol not in ("tcp", "udp") or flow.port != 53):
        return refused("dns", vpc.vpc_id, f"The resolver of {vpc.vpc_id} answers udp and tcp port 53 only.")
    return step
