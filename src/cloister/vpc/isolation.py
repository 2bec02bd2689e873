"""What a job's NetworkConfig asks of its containers' ports, beside their groups. Pure.

EnableNetworkIsolation: a container reaches the other instances of its job and nothing else; alone it has no
port at all. EnableInterContainerTrafficEncryption: instances speak with each other by IPsec only. What a
container sends to another leaves its namespace by a second link, `ESP_LINK`, to one that it cannot see, where
`jobs/tunnel.py` takes it and sends it on, encrypted, from the container's own address. AWS ("Protect
Communications Between ML Compute Instances"): groups must allow UDP port 500 and protocol 50 among members.

A container's root may forge any packet, so both are enforced in the router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloister.kernel.plan import Chain, Element, Netns, Part, Rule, Veth
from cloister.vpc import addresses as ip
from cloister.vpc.model import NetworkInterface, PrivateAddress
from cloister.vpc.security_groups import REFUSED_IN, REFUSED_OUT, shared_chain

#: IKE's port and ESP's protocol number, by which AWS has the groups allow encrypted traffic
KEY_PORT = 500
ESP = "50"
#: a container's second link, and its other end in the tunnel's namespace
ESP_LINK, CLEAR_LINK = "esp0", "clear"
#: 9001 less what ESP adds: two headers, the vector, the tag, two bytes, and padding to four. As the kernel's
#: own ESP reckons it: what one sends, the other may pass on whole.
ESP_MTU = 8946


def cut_off(held: PrivateAddress) -> bool:
    """A container that may reach nobody: it has no port."""
    return held.only == ()


def tunnel_netns(netns: str) -> str:
    """The namespace where the tunnel of a container takes packets."""
    return f"{netns}-esp"


def tunnel_parts(router: str, held: PrivateAddress) -> Iterator[Part]:
    """The second link of a container that encrypts: its peers are behind it. While nobody takes the packets
    they are lost, and never sent in the clear."""
    if not held.encrypted_with or held.netns is None:
        return
    inner = tunnel_netns(held.netns)
    yield Netns(name=inner)
    yield Veth(
        outer=held.netns,
        outer_if=ESP_LINK,
        outer_mac=ip.mac(router, held.address, prefix=0x06),
        inner=inner,
        inner_if=CLEAR_LINK,
        inner_mac=ip.mac(router, held.address, prefix=0x02),
        addresses=held.encrypted_with,
        mtu=ESP_MTU,
    )


def source_elements(interface: NetworkInterface, held: PrivateAddress, port: str) -> Iterator[Element]:
    """What may come by the container's port: its own address, to anybody or to its peers only."""
    key = f"{port} . {held.address}"
    if held.only is None:
        yield Element(netns=interface.vpc_id, set="sources", key=key, comment=interface.interface_id)
        return
    for peer in held.only:
        yield Element(
            netns=interface.vpc_id, set="peer_sources", key=f"{key} . {peer}", comment=interface.interface_id
        )


def has_gate(held: PrivateAddress) -> bool:
    """Whether a container's packets are judged by more than its groups."""
    return bool(held.encrypted_with) or held.only is not None


def gate(group_ids: Sequence[str], held: PrivateAddress, port: str, *, egress: bool) -> str:
    """The chain that judges the port's packets: its groups' own, or one that comes before it."""
    if held.encrypted_with if egress else held.only is not None:
        return f"{'x' if egress else 'y'}_{port}"
    return shared_chain(group_ids, egress=egress)


def gate_parts(router: str, group_ids: Sequence[str], held: PrivateAddress, port: str) -> Iterator[Part]:
    """The chains that `gate` names, where they are not the groups'."""
    if held.encrypted_with:
        groups = shared_chain(group_ids, egress=True)
        peers = f"ip daddr {{ {', '.join(held.encrypted_with)} }}"
        yield Chain(
            netns=router,
            name=gate(group_ids, held, port, egress=True),
            rules=(
                Rule(text=f"{peers} meta l4proto {ESP} goto {groups}"),
                Rule(text=f"{peers} udp dport {KEY_PORT} goto {groups}"),
                Rule(text=f"{peers} goto {REFUSED_OUT}", comment="between instances only encrypted"),
                Rule(text=f"goto {groups}"),
            ),
        )
    if held.only is not None:
        yield Chain(
            netns=router,
            name=gate(group_ids, held, port, egress=False),
            rules=(
                Rule(
                    text=f"ip saddr {{ {', '.join(held.only)} }} goto {shared_chain(group_ids, egress=False)}"
                ),
                Rule(text=f"goto {REFUSED_IN}", comment="network isolation"),
            ),
        )
