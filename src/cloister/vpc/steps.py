"""How a step of an explanation is worded. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.vpc import isolation, security_groups
from cloister.vpc.flow import Flow, Step


def permission(flow: Flow) -> str:
    """What would allow it, as an IpPermission of the AWS CLI."""
    if flow.port is None:
        every = {"tcp": (0, 65535), "udp": (0, 65535), "icmp": (-1, -1)}.get(flow.protocol)
        ports = f",FromPort={every[0]},ToPort={every[1]}" if every else ""
        return f"IpProtocol={flow.protocol}{ports}"
    if flow.protocol == "icmp":
        return f"IpProtocol=icmp,FromPort={flow.port >> 8},ToPort={flow.port & 0xFF}"
    return f"IpProtocol={flow.protocol},FromPort={flow.port},ToPort={flow.port}"


def traffic(flow: Flow) -> str:
    """ "tcp port 443"."""
    if flow.protocol == security_groups.ALL:
        return "everything"
    if flow.protocol == isolation.ESP:
        return "protocol 50 (ESP)"
    return flow.protocol if flow.port is None else f"{flow.protocol} port {flow.port}"


def either(ids: Sequence[str]) -> str:
    return " or ".join(ids) if ids else "no group"


def allowed(gate: str, origin: str, sentence: str) -> Step:
    return Step(gate=gate, allowed=True, origin=origin, sentence=sentence)


NO_PUBLIC_ADDRESS = "IGW_PUBLIC_IP_ASSOCIATION_FOR_EGRESS"
#: AWS (Reachability Analyzer guide, "Explanation codes"), by gate; others are given where a refusal is made
_CODES = {
    "route": "NO_ROUTE_TO_DESTINATION",
    "egress": "ENI_SG_RULES_MISMATCH",
    "ingress": "ENI_SG_RULES_MISMATCH",
    "acl": "SUBNET_ACL_RESTRICTION",
    "endpoint": "VPCE_GATEWAY_PROTOCOL_RESTRICTION",
    "interface": "NO_POSSIBLE_DESTINATION",
    "gateway": "CANNOT_ROUTE",
}


def refused(
    gate: str,
    origin: str,
    sentence: str,
    fix: str | None = None,
    *,
    code: str | None = None,
    direction: str | None = None,
) -> Step:
    return Step(
        gate=gate,
        allowed=False,
        origin=origin,
        sentence=sentence,
        fix=fix,
        code=code or _CODES.get(gate),
        direction=direction or (gate if gate in ("egress", "ingress") else None),
    )
