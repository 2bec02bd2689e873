"""A job's record: what it reached and was refused, line by line. Pure: a line is added to a `Record`.

Beyond `LIMIT` lines of one kind only their number is kept, up to `LEFT_OUT`, and of connections what they
carried together. Rules are looked up when a line is first seen: later changes do not alter it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from cloister.iam.decide import Decision
from cloister.kernel.conntrack import Connection
from cloister.vpc.dhcp import private_domain
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Verdict
from cloister.vpc.model import NetworkInterface, Subnet, Vpc
from cloister.why import permission
from cloister.why.receipt import as_refused, told_of
from cloister.why.request import resolver_step, towards
from cloister.world import World

#: lines of one kind in a job's record
LIMIT = 1000
LEFT_OUT = 10_000
#: in place of an address
OTHERS = "others"
_ANY = (OTHERS, "all", None, None)
_NAMES = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """The holder of an address of a job's interface."""

    job_id: str
    name: str  # "algo-1", "algo-1's agent"
    interface: NetworkInterface
    address: str
    port: str  # of the router


@dataclass(slots=True)
class Record:
    """`network` is what it was when the job's interfaces were there first."""

    network: dict[str, Any] = field(default_factory=dict)
    #: who has the job's addresses, from the moment at which anything may use them (`begun`)
    whos: list[Who] = field(default_factory=list)
    begun: bool = False
    #: the handle of the router's table when its notes were read last
    table: int = 0
    #: "algo-1 tcp 10.0.0.7 443 to" -> line
    flows: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: the kernel's number and a way -> [packets and bytes sent, received] so far
    open: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: digests of the lines that are left out
    beyond: set[int] = field(default_factory=set)
    #: why connections may be missing
    gaps: list[str] = field(default_factory=list)
    #: access key id of a session of the job's -> whose it is
    keys: dict[str, str] = field(default_factory=dict)
    #: address -> the name that it was told for
    names: dict[str, str] = field(default_factory=dict)
    #: "algo-1 NAME" -> the line of a name that does not exist
    unknown: dict[str, dict[str, Any]] = field(default_factory=dict)


def told(record: Record) -> dict[str, Any]:
    """{"network", "flows", "refused", "requests", "unknown_names": lines, "left_out": a number, "gaps":
    sentences}."""
    flows = [_plain(line) for line in record.flows.values()]
    lost = [line for line in flows if line.get("refusal") and not line["packets_received"]]
    reached = [line for line in flows if line not in lost]
    return {
        "network": record.network,
        "flows": [{name: value for name, value in line.items() if name != "refusal"} for line in reached],
        "refused": [
            *(_plain(line) for line in record.refused.values()),
            *(as_refused(line) for line in lost),
        ],
        "requests": [_plain(line) for line in record.requests.values()],
        "unknown_names": [_plain(line) for line in record.unknown.values()],
        "left_out": len(record.beyond),
        "gaps": list(record.gaps),
    }


def add_request(
    record: Record,
    world: World,
    who: str,
    endpoint_id: str | None,
    action: str,
    resource: str,
    decision: Decision,
    alike: Callable[[], str | None],
) -> bool:
    """A decision of policies; whether it is the first of its line. `alike` finds the ARN of all objects that
    are asked for like this one."""
    place = resource.partition("/")[0] if action.startswith("s3:") else resource
    outcome = "allowed" if decision.allowed else "refused"
    line = _line(record, "requests", f"{who} {action} {place} {endpoint_id} {outcome}")
    if line is None:
        return False
    if not line:
        wanted = "Allow" if decision.allowed else "Deny"
        line |= {
            "who": who,
            "action": action,
            "resource": place,
            "endpoint": endpoint_id,
            "outcome": outcome,
            "by": [f"{m.origin}/{m.statement}" for m in decision.matches if m.effect == wanted],
            "count": 0,
        }
        if not decision.allowed:
            refusal = permission.refusal(world, decision, endpoint_id=endpoint_id, objects=alike())
            line |= {"example": resource, "why": refusal.sentence, "fix": refusal.fix}
    line["count"] += 1
    return bool(line["count"] == 1)


def add_name(record: Record, world: World, who: Who, name: str, addresses: tuple[str, ...]) -> bool:
    """The VPC's resolver gave these addresses for a name; whether anything of it is new."""
    before = len(record.names), len(record.unknown)
    for address in addresses[: max(0, LIMIT - len(record.names))]:
        record.names[address] = name
    if not addresses:
        _add_unknown(record, world, who, name)
    return before != (len(record.names), len(record.unknown))


def _add_unknown(record: Record, world: World, who: Who, name: str) -> None:
    """A name that does not exist; with a search list it was asked for with the VPC's domain as well."""
    vpc = world.get(Vpc, who.interface.vpc_id)
    subnet = world.get(Subnet, who.interface.subnet_id)
    if vpc is None or subnet is None:
        return
    region = subnet.region
    bare = name.removesuffix(f".{private_domain(region)}")
    if bare != name and f"{who.name} {bare}" in record.unknown:
        return
    line = _line(record, "unknown", f"{who.name} {name}")
    if line is None:
        return
    if not line:
        step, _ = resolver_step(world, vpc, name, region)
        line |= {"who": who.name, "name": name, **told_of(step), "questions": 0}
    line["questions"] += 1


def add_connection(record: Record, world: World, who: Who, way: str, each: Connection) -> None:
    """A connection "to" or "from" others, as it is counted now."""
    other = each.destination if way == "to" else each.source
    protocol = _NAMES.get(each.protocol, str(each.protocol))
    line, told = _line(record, "flows", f"{who.name} {protocol} {other} {each.port} {way}"), True
    if line is None:
        line, told = record.flows.setdefault(f"{who.name} {OTHERS} {way}", {}), False
    if not line:
        place = (other, protocol, record.names.get(other), each.port or None)
        line |= {"who": who.name, "way": way}
        line |= zip(("other", "protocol", "name", "port"), place if told else _ANY, strict=True)
        line |= dict.fromkeys(("connections", "packets_sent", "bytes_sent"), 0)
        line |= dict.fromkeys(("packets_received", "bytes_received"), 0)
        if told and way == "to":
            verdict = _explain(record, world, who, other, protocol, each.port)
            line["through"] = [step.origin for step in verdict.steps if step.allowed]
            if verdict.refusal is not None:  # further on than where the router notes it
                line["refusal"] = told_of(verdict.refusal)
    sent, received = (each.sent, each.received) if way == "to" else (each.received, each.sent)
    counts = [*sent, *received]
    before = record.open.get(f"{each.number} {way}")
    if before is None or any(now < then for now, then in zip(counts, before, strict=True)):
        before = [0, 0, 0, 0]
        line["connections"] += 1
    names = ("packets_sent", "bytes_sent", "packets_received", "bytes_received")
    for name, now, then in zip(names, counts, before, strict=True):
        line[name] += now - then
    record.open[f"{each.number} {way}"] = counts


def count_from_zero(record: Record, table: int) -> bool:
    """Note which table of the router counts refusals now; whether it is another than before."""
    anew = record.table not in (0, table)
    record.table = table
    if anew:
        for line in record.refused.values():
            line["_last"] = [0, 0]
    return anew


def add_refusal(
    record: Record, world: World, who: Who, address: str, protocol: int, port: int, packets: int, size: int
) -> None:
    """Packets that the router has refused so far."""
    name = _NAMES.get(protocol, str(protocol))
    line = _line(record, "refused", f"{who.name} {name} {address} {port}")
    if line is None:
        return
    if not line:
        refusal = _explain(record, world, who, address, name, port).refusal
        line |= {"who": who.name, "to": address, "name": record.names.get(address)}
        line |= {"protocol": name, "port": port or None}
        line |= told_of(refusal) | {"packets": 0, "bytes": 0, "_last": [0, 0]}
    last = line["_last"] if packets >= line["_last"][0] else [0, 0]  # less: the note was cleared
    line["packets"] += packets - last[0]
    line["bytes"] += size - last[1]
    line["_last"] = [packets, size]


def _explain(record: Record, world: World, who: Who, address: str, protocol: str, port: int) -> Verdict:
    flow = Flow(
        source=who.address,
        vpc_id=who.interface.vpc_id,
        destination=address,
        protocol=protocol,
        port=port if protocol in ("tcp", "udp") else None,
    )
    found = explain(world, flow)
    known, subnet = record.names.get(address), world.get(Subnet, who.interface.subnet_id)
    steps, refusal = list(found.steps), found.refusal
    if known is None or subnet is None or refusal is None:
        return found
    at = steps.index(refusal)
    if all(step.becomes is None for step in steps[:at]):
        steps[at] = towards(world, who.interface, refusal, known, subnet.region)
    return replace(found, steps=tuple(steps))


def _line(record: Record, kind: str, key: str) -> dict[str, Any] | None:
    lines: dict[str, dict[str, Any]] = getattr(record, kind)
    if key not in lines and len(lines) >= LIMIT:
        if len(record.beyond) < LEFT_OUT:
            record.beyond.add(crc32(f"{kind} {key}".encode()))
        return None
    return lines.setdefault(key, {})


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith("_")}
