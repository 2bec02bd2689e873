"""compile and update: the plan depends on the World, not on the way that led there."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.kernel.plan import Chain, Element, Rule, Set, Veth
from cloister.kernel.plan import Route as KernelRoute
from cloister.vpc import model
from cloister.vpc.compile import compile, update
from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.interfaces import create_interface, regroup
from cloister.vpc.model import (
    AclEntry,
    GroupRule,
    HostAddress,
    InternetGateway,
    NatGateway,
    NetworkAcl,
    NetworkInterface,
    PrefixList,
    PrivateAddress,
    Route,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
    VpcPeering,
)
from cloister.wire.errors import AwsError
from cloister.world import World, key_of

VPCS = ("vpc-0000000000000000a", "vpc-0000000000000000b")
SUBNETS = tuple(f"subnet-0000000000000000{c}" for c in "abc")
GROUPS = tuple(f"sg-0000000000000000{c}" for c in "abc")
TABLES = tuple(f"rtb-0000000000000000{c}" for c in "abc")
ENDPOINTS = tuple(f"vpce-0000000000000000{c}" for c in "ab")
INTERFACES = tuple(f"eni-00000{c}0000000000{c}" for c in "abcd")
ACLS = tuple(f"acl-0000000000000000{c}" for c in "ab")
GATEWAYS = tuple(f"igw-0000000000000000{c}" for c in "ab")
PEERING = "pcx-00000000000000001"
LISTS = ("pl-0000000000000000a", "pl-63a5400a")

one_of = st.sampled_from
cidrs = one_of(["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.7/32", "52.216.0.0/15"])


@st.composite
def rules(draw: st.DrawFn, n: int = 0) -> GroupRule:
    protocol = draw(one_of(["-1", "tcp", "udp", "icmp", "50", "6"]))
    low = high = None
    if protocol in ("tcp", "udp"):
        low = draw(st.integers(1, 100))
        high = draw(st.integers(low, 100))
    elif protocol == "icmp":
        low, high = draw(one_of([(-1, -1), (8, -1), (8, 0), (3, 4)]))
    peer = draw(one_of(["cidr", "group_id", "prefix_list_id"]))
    value = draw({"cidr": cidrs, "group_id": one_of(GROUPS), "prefix_list_id": one_of(LISTS)}[peer])
    return GroupRule(
        rule_id=f"sgr-{draw(st.integers(0, 99))}",
        egress=draw(st.booleans()),
        protocol=protocol,
        from_port=low,
        to_port=high,
        **{peer: value},
    )


@st.composite
def documents(draw: st.DrawFn) -> object:
    vpc_id = draw(one_of(VPCS))
    match draw(st.integers(0, 11)):
        case 0:
            return Vpc(
                vpc_id=vpc_id,
                cidr="10.0.0.0/16",
                more_cidrs=draw(one_of([{}, {"a": "10.1.0.0/16"}])),
                cidr_association_id="x",
                enable_dns_support=draw(st.booleans()),
            )
        case 1:
            return Subnet(
                subnet_id=draw(one_of(SUBNETS)),
                vpc_id=vpc_id,
                cidr=draw(one_of(["10.0.0.0/24", "10.0.1.0/24"])),
                zone="us-east-1a",
                zone_id="use1-az1",
                network_acl_id=draw(one_of(["", *ACLS])),
            )
        case 8:
            # a VPC has at most one gateway, as EC2 keeps it
            number = draw(st.integers(0, 1))
            return InternetGateway(
                internet_gateway_id=GATEWAYS[number], vpc_id=draw(one_of([None, VPCS[number]]))
            )
        case 11:
            return HostAddress(address=draw(one_of(["192.0.2.2", "127.0.0.1"])))
        case 9:
            return NatGateway(
                nat_gateway_id="nat-00000000000000001",
                vpc_id=vpc_id,
                subnet_id=SUBNETS[0],
                interface_id=INTERFACES[3],
                private_ip="10.0.1.10",
                created=0,
                deleted=draw(one_of([None, 1.0])),
            )
        case 10:
            ends = draw(one_of([VPCS, VPCS[::-1]]))
            return VpcPeering(
                peering_id=PEERING,
                requester_vpc_id=ends[0],
                accepter_vpc_id=ends[1],
                status=draw(one_of(["active", "active", "pending-acceptance"])),
                created=0,
                changed=0,
            )
        case 6:
            return NetworkAcl(
                network_acl_id=draw(one_of(ACLS)),
                vpc_id=vpc_id,
                entries=tuple(
                    draw(
                        st.lists(
                            st.builds(
                                AclEntry,
                                number=st.integers(1, 20),
                                egress=st.booleans(),
                                allow=st.booleans(),
                                cidr=cidrs,
                                protocol=one_of(["-1", "50"]),
                            ),
                            max_size=3,
                            unique_by=lambda entry: (entry.number, entry.egress),
                        )
                    )
                ),
            )
        case 2:
            return SecurityGroup(
                group_id=draw(one_of(GROUPS)),
                vpc_id=vpc_id,
                name="g",
                description="",
                rules=tuple(draw(st.lists(rules(), max_size=5))),
            )
        case 3:
            table = draw(st.integers(0, 2))
            associations = draw(st.lists(one_of([None, *SUBNETS]), max_size=2, unique=True))
            routes = draw(
                st.lists(
                    st.builds(
                        Route,
                        destination=one_of(["0.0.0.0/0", "10.0.0.0/16", "10.0.1.0/24", "3.5.0.0/19", *LISTS]),
                        target=one_of(
                            [
                                *("local", "nat-00000000000000001", PEERING, *GATEWAYS, *ENDPOINTS),
                                *INTERFACES[:2],
                            ]
                        ),
                        origin=one_of(["CreateRoute", "CreateRoute", "CreateRouteTable"]),
                    ),
                    max_size=2,
                )
            )
            return RouteTable(
                route_table_id=TABLES[table],
                vpc_id=vpc_id,
                number=1000 + table,
                routes=tuple(routes),
                associations=(
                    *(
                        RouteTableAssociation(association_id=f"a{s}", subnet_id=s, main=s is None)
                        for s in associations
                    ),
                    *(
                        RouteTableAssociation(association_id=f"g{g}", subnet_id=None, gateway_id=g)
                        for g in draw(st.lists(one_of(GATEWAYS), max_size=1))
                    ),
                ),
            )
        case 4:
            return VpcEndpoint(
                endpoint_id=draw(one_of(ENDPOINTS)),
                vpc_id=vpc_id,
                service_name="com.amazonaws.us-east-1.s3",
                policy="",
                route_table_ids=tuple(draw(st.lists(one_of(TABLES), max_size=2, unique=True))),
                created=0,
                state=draw(one_of(["available", "deleting"])),
                kind=draw(one_of(["Gateway", "Gateway", "Interface"])),
                interface_ids=draw(one_of([(), INTERFACES[2:3]])),
            )
        case 5:
            return PrefixList(
                prefix_list_id=LISTS[0],
                name="mine",
                owner_id="1",
                entries=dict.fromkeys(draw(st.lists(cidrs, max_size=2, unique=True)), ""),
            )
        case _:
            number = draw(st.integers(0, 3))
            interface_id = INTERFACES[number]
            count = draw(st.integers(1, 2))
            return NetworkInterface(
                interface_id=interface_id,
                vpc_id=vpc_id,
                subnet_id=draw(one_of(SUBNETS)),
                mac=f"0a:00:00:00:00:0{number}",
                # addresses are unique in a World, as EC2 keeps them
                addresses=tuple(
                    PrivateAddress(
                        address=f"10.0.1.{10 * number + i + 10}",
                        primary=i == 0,
                        netns=draw(one_of([None, interface_id + ("-agent" if i else "")])),
                        public_ip=draw(one_of([None, f"198.51.100.{10 * number + i}"])),
                    )
                    for i in range(count)
                ),
                group_ids=tuple(draw(st.lists(one_of(GROUPS), max_size=2, unique=True))),
                interface_type=("interface", "interface", "vpc_endpoint", "nat_gateway")[number],
                source_dest_check=number > 1 or draw(st.booleans()),
            )


# one step: documents to put and documents (by place in the World) to delete
steps = st.lists(
    st.tuples(st.lists(documents(), max_size=6), st.lists(st.integers(0, 40), max_size=2)), max_size=6
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_an_updated_plan_is_the_plan_compiled_afresh(
    history: list[tuple[list[object], list[int]]],
) -> None:
    world = _vpc()
    plan = compile(world)
    for puts, deletes in history:
        tx = world.begin()
        for doc in puts:
            tx.put(doc)
        for place in deletes:
            classes = (
                Vpc,
                Subnet,
                NetworkAcl,
                SecurityGroup,
                RouteTable,
                VpcEndpoint,
                PrefixList,
                NetworkInterface,
                InternetGateway,
                NatGateway,
                VpcPeering,
                HostAddress,
            )
            docs = [doc for cls in classes for doc in tx.all(cls)]
            if place < len(docs):
                tx.delete(type(docs[place]), key_of(docs[place]))
        after = tx.commit()
        was = dict(plan)
        touched = update(plan, world, after, tx.changes)
        fresh = compile(after)
        assert plan == fresh
        assert touched == {k for k in was.keys() | fresh.keys() if was.get(k) != fresh.get(k)}
        world = after


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(documents(), max_size=15))
def test_what_a_plan_refers_to_is_in_it(docs: list[object]) -> None:
    plan = compile(World.of([*_vpc().all(Vpc), *_vpc().all(Subnet), *docs]))
    chains = {(p.netns, p.name) for p in plan.values() if isinstance(p, Chain)}
    sets = {(p.netns, p.name) for p in plan.values() if isinstance(p, Set)}
    for part in plan.values():
        if isinstance(part, Element):
            assert (part.netns, part.set) in sets
            if part.data and part.data.startswith(("jump ", "goto ")):
                assert (part.netns, part.data[5:]) in chains
            assert len(part.comment.encode()) <= 128
        if isinstance(part, Chain):
            for rule in part.rules:
                words = rule.text.split()
                assert all((part.netns, w[1:]) in sets for w in words if w.startswith("@"))
                if words[-2:-1] in (["jump"], ["goto"]):
                    assert (part.netns, words[-1]) in chains
        if isinstance(part, Veth):
            assert ("Netns", part.outer) in plan
            assert ("Netns", part.inner) in plan


def _vpc(interfaces: int = 0) -> World:
    vpc_id = VPCS[0]
    tx = World.of(
        [
            Vpc(vpc_id=vpc_id, cidr="10.0.0.0/16", cidr_association_id="x"),
            Subnet(
                subnet_id=SUBNETS[0], vpc_id=vpc_id, cidr="10.0.0.0/20", zone="us-east-1a", zone_id="use1-az1"
            ),
            SecurityGroup(
                group_id=GROUPS[0],
                vpc_id=vpc_id,
                name="default",
                description="",
                rules=(GroupRule(rule_id="sgr-1", egress=False, protocol="-1", group_id=GROUPS[0]),),
            ),
            RouteTable(
                route_table_id=TABLES[0],
                vpc_id=vpc_id,
                number=1000,
                associations=(RouteTableAssociation(association_id="m", subnet_id=None, main=True),),
            ),
        ]
    ).begin()
    for _ in range(interfaces):
        create_interface(tx, subnet_id=SUBNETS[0], now=0, attach=("",))
    return tx.commit()


def test_attaching_an_interface_touches_only_its_own_parts_however_many_there_are() -> None:
    counts = []
    for already in (1, 300):
        world = _vpc(already)
        plan = compile(world)
        tx = world.begin()
        interface = create_interface(tx, subnet_id=SUBNETS[0], now=0, attach=("", "-agent"))
        touched = update(plan, world, tx.commit(), tx.changes)
        assert all(
            interface.interface_id in "".join(k)
            or interface.interface_id[-12:] in "".join(k)
            or k[2][0] == "m"
            for k in touched
        )
        counts.append(len(touched))
    assert counts[0] == counts[1]


def test_interfaces_with_one_subnet_and_groups_are_one_element_of_each_map() -> None:
    plan = compile(_vpc(5))
    (group,) = {p.group for p in plan.values() if isinstance(p, Veth)}
    elements = [p for p in plan.values() if isinstance(p, Element) and p.key == str(group)]
    assert sorted(p.set for p in elements) == [
        "acls_in", "acls_out", "egress_groups", "ingress_groups", "marks",
    ]  # fmt: skip


def test_no_key_has_more_parts_than_nftables_has_room_for() -> None:
    tx = _vpc(1).begin()
    tx.put(
        FlowLog(flow_log_id="fl-1", resource_id=VPCS[0], vpc_id=VPCS[0], log_format="${tcp-flags}", created=0)
    )
    tx.put(replace(next(iter(tx.all(NetworkInterface))), source_dest_check=False))
    sets = [part for part in compile(tx.commit()).values() if isinstance(part, Set)]
    assert any(each.name.startswith("flags_") for each in sets)
    assert any(each.name == "via" for each in sets)
    assert max(len(each.type.split(" . ")) for each in sets) == 5


def test_two_sets_of_groups_never_share_a_link_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_link_group", lambda alike: 7)
    tx = _vpc(1).begin()
    create_interface(tx, subnet_id=SUBNETS[0], now=0)  # alike
    tx.put(SecurityGroup(group_id=GROUPS[1], vpc_id=VPCS[0], name="other", description=""))
    other = {"subnet_id": SUBNETS[0], "group_ids": [GROUPS[1]], "now": 0}
    with pytest.raises(AwsError, match=f"{GROUPS[1]} cannot be told apart from .* with {GROUPS[0]}"):
        create_interface(tx, **other)
    for interface in list(tx.all(NetworkInterface)):
        with pytest.raises(AwsError, match="cannot be told apart"):
            regroup(tx, interface, (GROUPS[1],))


def test_an_endpoints_route_is_a_route_of_each_block_in_the_tables_that_name_it() -> None:
    tx = _vpc().begin()
    endpoint = VpcEndpoint(
        endpoint_id=ENDPOINTS[0],
        vpc_id=VPCS[0],
        service_name="com.amazonaws.us-east-1.s3",
        policy="",
        route_table_ids=(TABLES[0],),
        created=0,
    )
    tx.put(endpoint)
    routes = {p.destination: p for p in compile(tx.commit()).values() if isinstance(p, KernelRoute)}
    assert routes["52.216.0.0/15"].dev == "g" + ENDPOINTS[0][-12:]
    assert routes["10.0.0.0/16"].type == "throw"


def _middlebox(*, check: bool, destination: str = "10.0.16.0/20") -> World:
    """A VPC whose table leads to a subnet by way of an interface."""
    tx = _vpc().begin()
    interface = create_interface(tx, subnet_id=SUBNETS[0], now=0, attach=("",), addresses=("10.0.0.9",))
    tx.put(replace(interface, interface_id=INTERFACES[0], source_dest_check=check))
    tx.delete(NetworkInterface, interface.interface_id)
    table, subnet = tx.get(RouteTable, TABLES[0]), tx.get(Subnet, SUBNETS[0])
    assert table is not None
    assert subnet is not None
    tx.put(replace(subnet, subnet_id=SUBNETS[1], cidr="10.0.16.0/20"))
    tx.put(replace(table, routes=(Route(destination=destination, target=INTERFACES[0]),)))
    return tx.commit()


def test_only_a_vpc_with_a_middlebox_has_the_rules_for_one() -> None:
    names = {"forwarding", "via", "legs", "within", "forwarded", "leg_in", "leg_out"}
    plain = {part.name for part in compile(_vpc(1)).values() if isinstance(part, (Chain, Set))}
    assert not names & plain
    assert not any("zone" in rule.text for rule in _rules(_vpc(1)))
    assert names <= {
        part.name for part in compile(_middlebox(check=False)).values() if isinstance(part, (Chain, Set))
    }
    checked = _middlebox(check=True)
    assert not any("zone" in rule.text for rule in _rules(checked))


def _rules(world: World) -> list[Rule]:
    return [rule for part in compile(world).values() if isinstance(part, Chain) for rule in part.rules]


def test_a_route_to_an_interface_leads_to_its_port_or_with_its_check_to_its_own_address_only() -> None:
    port = "e" + INTERFACES[0][-12:] + "0"
    for check, kind in ((False, "unicast"), (True, "blackhole")):
        plan = compile(_middlebox(check=check))
        routes = {part.destination: part for part in plan.values() if isinstance(part, KernelRoute)}
        assert routes["10.0.16.0/20"].type == kind
        assert "10.0.0.9/32" not in routes  # in another block: `local` leads there
    routes = {
        part.destination: part
        for part in compile(_middlebox(check=True, destination="10.0.0.0/20")).values()
        if isinstance(part, KernelRoute)
    }
    assert (routes["10.0.0.0/20"].type, routes["10.0.0.9/32"].dev) == ("blackhole", port)


def test_what_goes_by_way_of_a_middlebox_is_all_of_the_block_but_its_own_address() -> None:
    plan = compile(_middlebox(check=False, destination="10.0.0.0/20"))
    via = [part.key for part in plan.values() if isinstance(part, Element) and part.set == "via"]
    blocks = [IPv4Network(key.removeprefix("1000 . ")) for key in via]
    assert sum(block.num_addresses for block in blocks) == 4096 - 1
    assert not any(IPv4Address("10.0.0.9") in block for block in blocks)


def test_each_subnet_has_a_zone_of_its_own() -> None:
    tx = _middlebox(check=False).begin()
    vpc, subnet = tx.get(Vpc, VPCS[0]), tx.get(Subnet, SUBNETS[0])
    assert vpc is not None
    assert subnet is not None
    tx.put(replace(vpc, more_cidrs={str(number): f"10.{number}.0.0/16" for number in range(1, 5)}))
    cidrs = [f"10.{block}.{row}.{slot}/28" for block in range(1, 5) for row in (0, 255) for slot in (0, 240)]
    for number, cidr in enumerate(cidrs):
        tx.put(replace(subnet, subnet_id=f"subnet-{number}", cidr=cidr))
    chains = [part for part in compile(tx.commit()).values() if isinstance(part, Chain)]
    zones = [chain.rules[0].text for chain in chains if chain.name.startswith("z_")]
    assert len(zones) == len(set(zones)) == len(cidrs) + 2
    assert "ct zone set 65535" not in zones
