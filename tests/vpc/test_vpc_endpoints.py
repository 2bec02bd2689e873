"""Which addresses the services have that gateway endpoints lead to."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import combinations

from cloister.vpc import dns
from cloister.vpc.endpoints import (
    SERVICES,
    managed_prefix_lists,
    prefix_list_in,
    service_at,
    service_in_any_region,
)
from cloister.vpc.gateways import STAND_IN
from cloister.vpc.model import Vpc
from cloister.world import World

VPC = Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="vpc-cidr-assoc-1")


def test_no_address_is_of_two_services_in_any_region() -> None:
    blocks = {
        suffix: [
            IPv4Network(cidr)
            for listed in managed_prefix_lists()
            if listed.name.endswith(f".{suffix}")
            for cidr in listed.entries
        ]
        for suffix in SERVICES
    }
    for one, other in combinations([*blocks.values(), [STAND_IN]], 2):
        assert not any(a.overlaps(b) for a in one for b in other)
    ids = [listed.prefix_list_id for listed in managed_prefix_lists()]
    assert len(ids) == len(set(ids))


def test_a_services_name_resolves_into_its_own_prefix_list() -> None:
    world = World.of([VPC])
    for suffix, service in SERVICES.items():
        for region in ("us-east-1", "eu-west-1", "ap-south-2"):
            for address in dns.answer(world, "vpc-1", service.host(region), dns.A, region=region).records:
                assert service_at(address, region) is service_in_any_region(address) is service
                blocks = prefix_list_in(service, region).entries
                assert any(address in map(str, IPv4Network(block)) for block in blocks), (suffix, region)


def test_an_accounts_own_name_is_dynamodbs_and_that_of_streams_is_not() -> None:
    world = World.of([VPC])

    def services(name: str) -> set[str | None]:
        records = dns.answer(world, "vpc-1", name, dns.A, region="us-east-1").records
        found = {service_at(address, "us-east-1") for address in records}
        return {one.label if one is not None else None for one in found}

    assert services("111122223333.ddb.us-east-1.amazonaws.com") == {"DYNAMODB"}
    assert services("streams.dynamodb.us-east-1.amazonaws.com") == {None}
    assert services("ddb.us-east-1.amazonaws.com") == set()
