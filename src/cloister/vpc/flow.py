"""A question about the network and its answer, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A connection that `source` would open to `destination`.

    `source` is an interface's id (its primary address) or a private address, which `vpc_id` places;
    `destination` an interface's id or an address. `protocol` is "tcp", "udp", "icmp" or a number as text;
    `port` the destination port, for icmp type * 256 + code, None where neither applies."""

    source: str
    destination: str
    protocol: str = "tcp"
    port: int | None = None
    #: where replies go; None: any of a Linux client's ephemeral ports
    source_port: int | None = None
    vpc_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one gate said. `gate` is "interface", "route", "egress", "acl", "ingress", "endpoint", "gateway"
    or "dns". `origin` is the resource and rule that decided ("sg-…/sgr-…"). `fix` is an AWS CLI command that
    would change a refusal."""

    gate: str
    allowed: bool
    origin: str
    sentence: str
    fix: str | None = None
    #: the source address from here on, where a gateway translates it
    becomes: str | None = None
    #: of a refusal: Reachability Analyzer's explanation code; and, at groups and ACLs, "egress" or "ingress"
    code: str | None = None
    direction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    allowed: bool
    steps: tuple[Step, ...]

    @property
    def refusal(self) -> Step | None:
        """The first gate that refused."""
        return next((step for step in self.steps if not step.allowed), None)

    @property
    def reason(self) -> str:
        """The sentence that decided: of the first gate that refused, else of the last one."""
        decisive = self.refusal or (self.steps[-1] if self.steps else None)
        return decisive.sentence if decisive else ""
