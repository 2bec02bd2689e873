"""A group's rules as nftables text: golden cases."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.kernel.plan import Chain, Element
from cloister.vpc import addresses, interfaces
from cloister.vpc.model import GroupRule, SecurityGroup, Subnet, Vpc
from cloister.vpc.security_groups import chain_parts
from cloister.wire.errors import AwsError
from cloister.world import World

T = "th dport . meta l4proto . ip saddr @i_sg1_t{} accept"
B = "ip saddr . th dport . meta l4proto @i_sg1_b0 accept"


def _rule(protocol: str, low: int | None = None, high: int | None = None, **peer: Any) -> GroupRule:
    return GroupRule(
        rule_id="sgr-1",
        egress=False,
        protocol=protocol,
        from_port=low,
        to_port=high,
        **(peer or {"cidr": "10.0.0.0/8"}),
    )


@pytest.mark.parametrize(
    ("rules", "elements", "texts"),
    [
        ([_rule("-1")], ["10.0.0.0/8"], ["ip saddr @i_sg1_a0 accept"]),
        ([_rule("tcp", 80, 80)], ["80 . tcp . 10.0.0.0/8"], [T.format(0)]),
        ([_rule("6", 80, 90)], ["80-90 . tcp . 10.0.0.0/8"], [T.format(0)]),
        ([_rule("tcp")], ["0-65535 . tcp . 10.0.0.0/8"], [T.format(0)]),
        ([_rule("udp", 1, 2, cidr="10.0.0.5/32")], ["1-2 . udp . 10.0.0.5"], [T.format(0)]),
        ([_rule("tcp", 80, 90), _rule("tcp", 85, 95)], ["80-95 . tcp . 10.0.0.0/8"], [T.format(0)]),
        (
            [_rule("tcp", 1, 9), _rule("tcp", 2, 3, cidr="10.1.0.0/16"),
             _rule("udp", 2, 3, cidr="11.0.0.0/8")],
            ["1-9 . tcp . 10.0.0.0/8", "2-3 . udp . 11.0.0.0/8", "2-3 . tcp . 10.1.0.0/16"],
            [T.format(0), T.format(1)],
        ),
        (
            [_rule("tcp", 80, 80), _rule("tcp", 80, 80, cidr="11.0.0.0/8")],
            ["10.0.0.0/8 . 80 . tcp", "11.0.0.0/8 . 80 . tcp"],
            [B],
        ),
        (
            [_rule("icmp", 8, -1)],
            ["8 . 0-255 . 10.0.0.0/8"],
            ["icmp type . icmp code . ip saddr @i_sg1_c0 accept"],
        ),
        ([_rule("50")], ["10.0.0.0/8 . 50"], ["ip saddr . meta l4proto @i_sg1_p0 accept"]),
        ([_rule("-1", group_id="sg-1")], [], ["ip saddr @m_sg1 accept"]),
        ([_rule("tcp", 80, 90, group_id="sg-1")], [], ["ip saddr @m_sg1 tcp dport 80-90 accept"]),
        ([_rule("-1", group_id="sg-gone")], [], []),
    ],
)  # fmt: skip
def test_rules_become_elements_of_sets(rules: list[GroupRule], elements: list[str], texts: list[str]) -> None:
    group = SecurityGroup(group_id="sg-1", vpc_id="vpc-1", name="g", description="", rules=tuple(rules))
    parts = list(chain_parts(World.of([group]), group))
    assert [p.key for p in parts if isinstance(p, Element)] == elements
    (chain,) = (p for p in parts if isinstance(p, Chain) and p.name == "i_sg1")
    assert [rule.text for rule in chain.rules] == texts


def _world() -> World:
    return World.of(
        [
            Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="x"),
            Subnet(subnet_id="subnet-1", vpc_id="vpc-1", cidr="10.0.0.0/28", zone="us-east-1a", zone_id="z"),
            SecurityGroup(group_id="sg-1", vpc_id="vpc-1", name="default", description=""),
            SecurityGroup(group_id="sg-2", vpc_id="vpc-2", name="default", description=""),
        ]
    )


def test_a_28_has_room_for_five_instances_of_two_addresses_and_no_more() -> None:
    tx = _world().begin()
    made = [
        interfaces.create_interface(tx, subnet_id="subnet-1", now=0, attach=("", "-agent")) for _ in range(5)
    ]
    held = {address.address for interface in made for address in interface.addresses}
    assert len(held) == 10
    assert not held & {f"10.0.0.{n}" for n in (0, 1, 2, 3, 15)}
    assert addresses.free_count(tx, tx.get(Subnet, "subnet-1")) == 1  # type: ignore[arg-type]
    with pytest.raises(AwsError, match="InsufficientFreeAddressesInSubnet"):
        interfaces.create_interface(tx, subnet_id="subnet-1", now=0, count=2)
    interfaces.release(tx, made[0].interface_id)
    assert interfaces.create_interface(tx, subnet_id="subnet-1", now=0, count=2).group_ids == ("sg-1",)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"subnet_id": "subnet-x"}, "InvalidSubnetID.NotFound"),
        ({"group_ids": ["sg-x"]}, "InvalidGroup.NotFound"),
        ({"group_ids": ["sg-2"]}, "group sg-2 and subnet subnet-1 belong to different networks"),
        ({"addresses": ["10.0.0.1"]}, "reserved address range"),
        ({"addresses": ["10.0.1.9"]}, "does not fall within"),
        ({"addresses": ["10.0.0.9", "10.0.0.9"]}, "InvalidIPAddress.InUse"),
    ],
)
def test_an_interface_that_cannot_be_is_refused_by_name(wanted: dict[str, Any], code: str) -> None:
    with pytest.raises(AwsError, match=code):
        interfaces.create_interface(_world().begin(), **{"subnet_id": "subnet-1", "now": 0, **wanted})
