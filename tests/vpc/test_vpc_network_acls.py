"""Network ACLs as tables: which entry decides."""

from __future__ import annotations

import pytest

from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow
from cloister.vpc.model import (
    AclEntry,
    GroupRule,
    NetworkAcl,
    NetworkInterface,
    PrivateAddress,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
)
from cloister.vpc.network_acls import decide
from cloister.world import World

SUBNET = Subnet(
    subnet_id="subnet-1",
    vpc_id="vpc-1",
    cidr="10.0.1.0/24",
    zone="us-east-1a",
    zone_id="use1-az1",
    network_acl_id="acl-1",
)


def entry(number: int, allow: bool, cidr: str = "0.0.0.0/0", protocol: str = "-1", *ports: int) -> AclEntry:
    low, high = ports or (None, None)
    return AclEntry(
        number=number,
        egress=False,
        allow=allow,
        cidr=cidr,
        protocol=protocol,
        from_port=low,
        to_port=high,
    )


ALL = entry(100, True)
SSH = entry(90, False, "0.0.0.0/0", "6", 22, 22)
ECHO = entry(90, False, "0.0.0.0/0", "1", 8, -1)
HIGH = entry(50, True, "10.0.2.0/24", "6", 32768, 60000)


@pytest.mark.parametrize(
    ("entries", "peer", "protocol", "ports", "allowed", "decided_by"),
    [
        ((), "10.0.2.1", "tcp", (80, 80), False, "acl-1/*"),
        ((ALL,), "10.0.2.1", "tcp", (80, 80), True, "acl-1/100"),
        ((ALL, SSH), "10.0.2.1", "tcp", (22, 22), False, "acl-1/90"),
        ((ALL, SSH), "10.0.2.1", "udp", (22, 22), True, "acl-1/100"),
        ((ALL, SSH), "10.0.2.1", "tcp", (20, 25), False, "acl-1/90"),
        ((ALL, ECHO), "10.0.2.1", "icmp", (8 << 8, 8 << 8), False, "acl-1/90"),
        ((ALL, ECHO), "10.0.2.1", "icmp", (0, 0), True, "acl-1/100"),
        ((HIGH,), "10.0.2.1", "tcp", (32768, 60999), False, "acl-1/*"),
        ((HIGH,), "10.0.2.1", "tcp", (32768, 60000), True, "acl-1/50"),
        ((HIGH,), "10.0.3.1", "tcp", (40000, 40000), False, "acl-1/*"),
        ((ALL,), "10.0.2.1", "50", None, True, "acl-1/100"),
    ],
)
def test_the_lowest_number_that_matches_decides(
    entries: tuple[AclEntry, ...],
    peer: str,
    protocol: str,
    ports: tuple[int, int] | None,
    allowed: bool,
    decided_by: str,
) -> None:
    world = World.of([SUBNET, NetworkAcl(network_acl_id="acl-1", vpc_id="vpc-1", entries=entries)])
    decision = decide(world, SUBNET, egress=False, peer=peer, protocol=protocol, ports=ports)
    assert (decision.allowed, decision.origin) == (allowed, decided_by)


def test_a_subnet_whose_acl_is_gone_lets_nothing_through() -> None:
    decision = decide(
        World.of([SUBNET]), SUBNET, egress=True, peer="10.0.2.1", protocol="tcp", ports=(80, 80)
    )
    assert not decision.allowed


def test_explain_names_the_entry_that_denies_the_replies_and_the_command_that_would_allow_them() -> None:
    open_group = SecurityGroup(
        group_id="sg-1",
        vpc_id="vpc-1",
        name="g",
        description="",
        rules=(
            GroupRule(rule_id="sgr-1", egress=True, protocol="-1", cidr="0.0.0.0/0"),
            GroupRule(rule_id="sgr-2", egress=False, protocol="-1", cidr="0.0.0.0/0"),
        ),
    )
    everything = tuple(
        AclEntry(number=100, egress=egress, allow=True, cidr="0.0.0.0/0", protocol="-1")
        for egress in (True, False)
    )
    only_web = (
        AclEntry(number=100, egress=True, allow=True, cidr="0.0.0.0/0", protocol="-1"),
        AclEntry(
            number=100, egress=False, allow=True, cidr="0.0.0.0/0", protocol="6", from_port=443, to_port=443
        ),
    )
    other = Subnet(
        subnet_id="subnet-2",
        vpc_id="vpc-1",
        cidr="10.0.2.0/24",
        zone="us-east-1a",
        zone_id="use1-az1",
        network_acl_id="acl-2",
    )
    world = World.of(
        [
            Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="a"),
            SUBNET,
            other,
            open_group,
            NetworkAcl(network_acl_id="acl-1", vpc_id="vpc-1", entries=only_web),
            NetworkAcl(network_acl_id="acl-2", vpc_id="vpc-1", entries=everything),
            RouteTable(
                route_table_id="rtb-1",
                vpc_id="vpc-1",
                number=1000,
                associations=(RouteTableAssociation(association_id="m", subnet_id=None, main=True),),
            ),
            *(
                NetworkInterface(
                    interface_id=f"eni-{n}",
                    vpc_id="vpc-1",
                    subnet_id=f"subnet-{n}",
                    mac="0a:00:00:00:00:01",
                    addresses=(PrivateAddress(address=f"10.0.{n}.10", primary=True, netns=f"eni-{n}"),),
                    group_ids=("sg-1",),
                )
                for n in (1, 2)
            ),
        ]
    )
    verdict = explain(world, Flow(source="eni-1", destination="eni-2", protocol="tcp", port=443))
    assert not verdict.allowed
    refusal = verdict.refusal
    assert refusal is not None
    assert refusal.origin == "acl-1/*"
    assert refusal.sentence == (
        "Inbound rule * of acl-1 (subnet-1) denies the replies of tcp port 443 from 10.0.2.10."
    )
    assert refusal.fix == (
        "aws ec2 create-network-acl-entry --network-acl-id acl-1 --rule-number 99 --ingress --protocol 6 "
        "--port-range From=32768,To=60999 --cidr-block 10.0.2.10/32 --rule-action allow"
    )
