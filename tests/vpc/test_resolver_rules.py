"""Which resolver rule a name falls under."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.vpc.model import Vpc, VpcEndpoint
from cloister.vpc.resolver_rules import ResolverRule, ResolverRuleAssociation, rule_for
from cloister.world import World

VPC = Vpc(vpc_id="vpc-1", cidr="10.0.0.0/16", cidr_association_id="x", enable_dns_hostnames=True)
OTHER = Vpc(vpc_id="vpc-2", cidr="10.2.0.0/16", cidr_association_id="y")
STS = VpcEndpoint(
    endpoint_id="vpce-0123456789abcdef0",
    vpc_id="vpc-1",
    service_name="com.amazonaws.us-east-1.sts",
    kind="Interface",
    policy="",
    created=0,
    private_dns_enabled=True,
)


def world(*domains: str) -> World:
    """VPC 1 with a rule for each domain; one that begins with "!" is a SYSTEM rule."""
    documents: list[object] = [VPC, OTHER, STS]
    for each in domains:
        kind, domain = ("SYSTEM", each[1:]) if each.startswith("!") else ("FORWARD", each)
        documents += [
            ResolverRule(
                rule_id=each, creator_request_id=each, kind=kind, domain=domain, created=0, modified=0
            ),
            ResolverRuleAssociation(association_id=each, rule_id=each, vpc_id="vpc-1"),
        ]
    return World.of(documents)


def chosen(name: str, *domains: str, vpc: str = "vpc-1") -> str | None:
    rule = rule_for(world(*domains), vpc, name, region="us-east-1")
    return None if rule is None else rule.rule_id


@pytest.mark.parametrize(
    ("name", "domains", "expected"),
    [
        ("corp.example", ["corp.example"], "corp.example"),
        ("DB.Corp.Example.", ["corp.example"], "corp.example"),
        ("notcorp.example", ["corp.example"], None),
        ("a.b.corp.example", ["corp.example", "b.corp.example"], "b.corp.example"),
        ("a.b.corp.example", ["corp.example", "!b.corp.example"], None),
        ("a.corp.example", ["corp.example", "!b.corp.example"], "corp.example"),
        ("anything.at.all", [""], ""),
        ("", [""], ""),
        # what Resolver has rules of its own for is more specific than a rule above it
        ("ip-10-0-0-5.ec2.internal", [""], None),
        ("ip-10-0-0-5.ec2.internal", ["internal"], None),
        ("ip-10-0-0-5.ec2.internal", ["ec2.internal"], "ec2.internal"),
        ("sts.us-east-1.amazonaws.com", ["amazonaws.com"], None),
        ("x.sts.us-east-1.amazonaws.com", ["amazonaws.com"], None),
        ("s3.us-east-1.amazonaws.com", ["amazonaws.com"], "amazonaws.com"),
        ("sts.us-east-1.amazonaws.com", ["sts.us-east-1.amazonaws.com"], "sts.us-east-1.amazonaws.com"),
        ("5.0.0.10.in-addr.arpa", ["10.in-addr.arpa"], None),
        ("5.0.9.10.in-addr.arpa", ["10.in-addr.arpa"], "10.in-addr.arpa"),
        ("nonsense.in-addr.arpa", ["in-addr.arpa"], "in-addr.arpa"),
    ],
)
def test_the_most_specific_rule_decides(name: str, domains: list[str], expected: str | None) -> None:
    assert chosen(name, *domains) == (None if expected is None else expected)


def test_a_rule_is_followed_only_in_vpcs_it_is_associated_with() -> None:
    assert chosen("corp.example", "corp.example", vpc="vpc-2") is None
    assert chosen("corp.example", "corp.example", vpc="vpc-none") is None


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=5),
    st.sets(st.sampled_from(["", "a", "b.a", "!b.a", "c.b.a"])),
)
def test_a_longer_matching_domain_always_wins(labels: list[str], domains: set[str]) -> None:
    name = ".".join(labels)
    matching = {each for each in domains if not each.strip("!") or f".{name}".endswith("." + each.strip("!"))}
    longest = max((len(each.strip("!")) for each in matching), default=None)
    best = {each for each in matching if len(each.strip("!")) == longest}
    if len(best) == 1:
        (one,) = best
        assert chosen(name, *domains) == (None if one.startswith("!") else one)
    elif not best:
        assert chosen(name, *domains) is None
