"""Interface endpoints in the plan, in verdicts and in the resolver's answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.iam.model import Principal
from cloister.kernel.plan import Chain, Element, Netns, Veth
from cloister.vpc import dns
from cloister.vpc.compile import compile, update
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Verdict
from cloister.vpc.interface_endpoints import (
    ENDPOINT_INTERFACE,
    SERVICES,
    label,
    own_names,
    resolve_own,
    resolve_private,
)
from cloister.vpc.interfaces import create_interface
from cloister.vpc.model import (
    GroupRule,
    NetworkInterface,
    RouteTable,
    RouteTableAssociation,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcEndpoint,
)
from cloister.why.request import why_request
from cloister.wire.model import service_names
from cloister.world import World

REGION = "us-east-1"
VPC, FAR = "vpc-0000000000000000a", "vpc-0000000000000000b"
NEAR, OTHER = "subnet-0000000000000000a", "subnet-0000000000000000b"
OPEN_POLICY = (
    '{"Version": "2012-10-17", "Statement": '
    '[{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}]}'
)
OPEN, SHUT = "sg-0000000000000000a", "sg-0000000000000000b"


def world_with(
    *suffixes: str, group: str = OPEN, private: bool = True
) -> tuple[World, NetworkInterface, list[VpcEndpoint]]:
    """A VPC of two zones, an interface to ask from, and an endpoint of each service in both zones."""
    everything = GroupRule(rule_id="sgr-1", egress=True, protocol="-1", cidr="0.0.0.0/0")
    https = GroupRule(
        rule_id="sgr-2", egress=False, protocol="tcp", from_port=443, to_port=443, cidr="10.0.0.0/16"
    )
    tx = World.of(
        [
            Vpc(vpc_id=VPC, cidr="10.0.0.0/16", cidr_association_id="x", enable_dns_hostnames=True),
            Vpc(vpc_id=FAR, cidr="10.9.0.0/16", cidr_association_id="x", enable_dns_hostnames=True),
            Subnet(subnet_id=NEAR, vpc_id=VPC, cidr="10.0.0.0/24", zone="us-east-1a", zone_id="use1-az1"),
            Subnet(subnet_id=OTHER, vpc_id=VPC, cidr="10.0.1.0/24", zone="us-east-1b", zone_id="use1-az2"),
            SecurityGroup(
                group_id=OPEN, vpc_id=VPC, name="default", description="", rules=(everything, https)
            ),
            SecurityGroup(group_id=SHUT, vpc_id=VPC, name="shut", description="", rules=(everything,)),
            RouteTable(
                route_table_id="rtb-0000000000000000a",
                vpc_id=VPC,
                number=1000,
                associations=(RouteTableAssociation(association_id="m", subnet_id=None, main=True),),
            ),
        ]
    ).begin()
    asker = create_interface(tx, subnet_id=NEAR, group_ids=[OPEN], now=0, attach=("",))
    made = []
    for number, suffix in enumerate(suffixes):
        interfaces = [
            create_interface(
                tx,
                subnet_id=subnet,
                group_ids=[group],
                now=0,
                attach=("",),
                interface_type=ENDPOINT_INTERFACE,
                requester_managed=True,
            )
            for subnet in (NEAR, OTHER)
        ]
        endpoint = VpcEndpoint(
            endpoint_id=f"vpce-{number:017x}",
            vpc_id=VPC,
            service_name=f"com.amazonaws.{REGION}.{suffix}",
            kind="Interface",
            policy="",
            created=0,
            subnet_ids=(NEAR, OTHER),
            interface_ids=tuple(one.interface_id for one in interfaces),
            private_dns_enabled=private,
        )
        tx.put(endpoint)
        made.append(endpoint)
    return tx.commit(), asker, made


def address(world: World, endpoint: VpcEndpoint, place: int = 0) -> str:
    interface = world.get(NetworkInterface, endpoint.interface_ids[place])
    assert interface is not None
    return interface.addresses[0].address


def ask(world: World, name: str, vpc: str = VPC) -> dns.Answer:
    return dns.answer(world, vpc, name, dns.A, region=REGION)


@pytest.mark.parametrize(("suffix", "ports"), [("sts", "443"), ("s3", "80, 443")])
def test_an_endpoints_namespace_lets_in_its_services_ports_and_opens_nothing(suffix: str, ports: str) -> None:
    world, asker, (endpoint,) = world_with(suffix)
    plan = compile(world)
    for interface_id in endpoint.interface_ids:
        chain = plan[("Chain", interface_id, "input")]
        assert isinstance(chain, Chain)
        assert chain.rules[-1].text == f'iifname "eth0" tcp dport {{ {ports} }} accept'
        out = plan[("Chain", interface_id, "output")]
        assert isinstance(out, Chain)
        assert [rule.text for rule in out.rules] == [
            'oifname "eth0" ct state established ct direction reply accept'
        ]
        namespace = plan[("Netns", interface_id)]
        assert isinstance(namespace, Netns)
        assert namespace.loopback == ()  # no credentials are handed out here
    judged = {p.key for p in plan.values() if isinstance(p, Element) and p.set == "ingress_groups"}
    ports = [p.group for p in plan.values() if isinstance(p, Veth)]
    assert len(ports) == 3
    assert {str(group) for group in ports} == judged  # the endpoint's interfaces as any other
    assert asker.interface_id not in endpoint.interface_ids


def test_an_endpoint_that_goes_and_comes_changes_its_own_parts_only() -> None:
    world, _, (endpoint,) = world_with("sts")
    plan = compile(world)
    tx = world.begin()
    for interface_id in endpoint.interface_ids:
        tx.delete(NetworkInterface, interface_id)
    tx.delete(VpcEndpoint, endpoint.endpoint_id)
    after = tx.commit()
    touched = update(plan, world, after, tx.changes)
    assert plan == compile(after)
    assert not any(key[0] == "Netns" and key[1] == VPC for key in touched)


@pytest.mark.parametrize(
    ("group", "protocol", "port", "gate"),
    [
        (OPEN, "tcp", 443, None),
        (OPEN, "tcp", 80, "ingress"),
        (SHUT, "tcp", 443, "ingress"),
        (OPEN, "udp", 443, "ingress"),
    ],
)
def test_the_verdict_says_which_gate_shuts(group: str, protocol: str, port: int, gate: str | None) -> None:
    world, asker, (endpoint,) = world_with("sts", group=group)
    flow = Flow(source=asker.interface_id, destination=address(world, endpoint), protocol=protocol, port=port)
    verdict = explain(world, flow)
    assert verdict.allowed is (gate is None)
    assert first_refusal(verdict) == gate


def test_a_port_that_the_service_does_not_answer_is_refused_by_the_endpoint() -> None:
    world, asker, (endpoint,) = world_with("sts")
    group = world.get(SecurityGroup, OPEN)
    assert group is not None
    anything = GroupRule(rule_id="sgr-3", egress=False, protocol="-1", cidr="0.0.0.0/0")
    tx = world.begin()
    tx.put(replace(group, rules=(*group.rules, anything)))
    world = tx.commit()
    flow = Flow(source=asker.interface_id, destination=address(world, endpoint, 1), protocol="tcp", port=80)
    verdict = explain(world, flow)
    assert first_refusal(verdict) == "endpoint"
    assert endpoint.endpoint_id in verdict.steps[-1].sentence
    back = Flow(source=endpoint.interface_ids[0], destination=asker.interface_id, protocol="tcp", port=443)
    assert first_refusal(explain(world, back)) == "endpoint"  # an endpoint opens nothing


def test_s3_by_an_interface_endpoint_is_explained_by_the_way_to_it() -> None:
    def asked(**how: Any) -> Verdict:
        world, asker, (endpoint,) = world_with("s3", **how)
        tx = world.begin()
        tx.put(replace(endpoint, policy=OPEN_POLICY))
        world = tx.commit()
        root = Principal(arn="arn:aws:iam::1:root", account="1", user_id="1", access_key_id="AKIA")
        return why_request(
            world, asker, "GET", "s3://data?list-type=2", principal=root, region=REGION, account="1", now=0
        )

    assert first_refusal(asked()) == "bucket"  # there is none in this World: S3 itself was reached
    assert first_refusal(asked(group=SHUT)) == "ingress"
    assert first_refusal(asked(private=False)) == "route"


def test_every_endpoints_names_resolve_to_its_interfaces() -> None:
    world, _, made = world_with(*SERVICES)
    for endpoint, service in zip(made, SERVICES.values(), strict=True):
        both = (address(world, endpoint), address(world, endpoint, 1))
        regional, first, second = (name.replace("*", "bucket") for name in own_names(world, endpoint, REGION))
        for vpc in (VPC, FAR):
            assert ask(world, regional, vpc).records == both
            assert ask(world, first, vpc).records == both[:1]
            assert ask(world, second, vpc).records == both[1:]
        for name in service.private_names(REGION):
            assert ask(world, name.replace("*", "my.bucket").upper()).records == both
            assert ask(world, name.replace("*", "my.bucket"), FAR).records != both


def test_every_service_is_one_of_botocores() -> None:
    assert {service.service for service in SERVICES.values()} <= service_names()


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".sts.", ".kms."),
        lambda name: name.replace("us-east-1.vpce", "eu-west-1.vpce"),
        lambda name: name.replace("-us-east-1a.", "-us-east-1c."),
        lambda name: "x." + name,
        lambda name: name.replace("vpce-00000000000000000", "vpce-00000000000000009"),
        lambda name: name[:22] + "-" + "aaaaaaaa" + name[31:],
        lambda name: name.partition(".")[2],
    ],
)
def test_a_name_that_is_nobodys_does_not_exist(change: object) -> None:
    world, _, (endpoint,) = world_with("sts")
    zonal = own_names(world, endpoint, REGION)[1]
    assert resolve_own(world, zonal, REGION)
    assert callable(change)
    assert ask(world, change(zonal)) == dns.Answer(rcode=dns.NXDOMAIN)


def test_a_hosted_zone_hides_what_is_below_the_services_name() -> None:
    world, _, _ = world_with("sts", "s3")
    vpc = world.get(Vpc, VPC)
    assert vpc is not None
    assert resolve_private(world, vpc, "below.sts.us-east-1.amazonaws.com", REGION) == ()
    assert ask(world, "below.sts.us-east-1.amazonaws.com").rcode == dns.NXDOMAIN
    assert resolve_private(world, vpc, "any.bucket.s3.us-east-1.amazonaws.com", REGION)
    assert resolve_private(world, vpc, "sts.amazonaws.com", REGION) is None
    assert (
        resolve_private(
            world, replace(vpc, enable_dns_hostnames=False), "sts.us-east-1.amazonaws.com", REGION
        )
        is None
    )


def test_a_label_is_always_the_same_and_like_aws_s() -> None:
    assert label("vpce-00000000000000001") == label("vpce-00000000000000001")
    assert label("vpce-00000000000000001") != label("vpce-00000000000000002")
    assert len(label("vpce-00000000000000001")) == len("vpce-00000000000000001") + 9


def first_refusal(verdict: Verdict) -> str | None:
    return next((step.gate for step in verdict.steps if not step.allowed), None)
