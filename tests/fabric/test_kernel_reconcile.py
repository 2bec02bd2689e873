"""From any plan to any plan: the kernel ends up as a fresh build of the second would leave it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.kernel import ruleset
from cloister.kernel.dump import dump_all
from cloister.kernel.netns import Namespaces
from cloister.kernel.nft import Nft
from cloister.kernel.plan import Chain, Element, Key, Netns, Part, PolicyRule, Route, Rule, Set, Veth, key
from cloister.kernel.reconcile import ApplyError, Reconciler
from cloister.kernel.rtnl import Rtnl

pytestmark = pytest.mark.fabric

Plan = dict[Key, Part]

ROUTERS, INNER = ("vpc-1", "vpc-2"), ("eni-1", "eni-2", "eni-3")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Consistent plans: what is referred to is there."""
    parts: list[Part] = []
    for name in draw(st.sets(st.sampled_from(ROUTERS))):
        parts.append(
            Netns(
                name=name,
                forward=draw(st.booleans()),
                loopback=draw(st.sampled_from([(), ("10.0.0.2/32",), ("10.0.0.2/32", "169.254.169.253/32")])),
                local=draw(st.sampled_from([(), ("52.216.0.0/15",)])),
                sysctls=draw(st.sampled_from([(), (("net/ipv4/tcp_keepalive_time", "100"),)])),
            )
        )
        links = []
        for number, inner in enumerate(INNER):
            if draw(st.booleans()):
                veth = Veth(
                    outer=name,
                    outer_if=f"e{number}",
                    outer_mac="02:00:00:00:00:01",
                    inner=f"{name}-{inner}",
                    inner_if="eth0",
                    inner_mac=draw(st.sampled_from(["02:00:00:00:01:01", "02:00:00:00:01:02"])),
                    addresses=draw(st.sampled_from([("10.0.0.4",), ("10.0.0.5", "10.0.0.4")]))
                    if number == 0
                    else (f"10.0.1.{number}",),
                    gateway=draw(st.sampled_from([None, "10.0.0.1"])),
                    group=draw(st.sampled_from([0, 7, 2**31 - 1])),
                )
                parts += [Netns(name=veth.inner), veth]
                links.append(veth)
                if draw(st.booleans()):
                    destination = "10.9.0.0/16"
                    parts.append(Route(netns=veth.inner, table=254, destination=destination, dev="eth0"))
        for table in draw(st.sets(st.sampled_from([1000, 1001]))):
            mark = draw(st.sampled_from([table, None]))
            parts.append(PolicyRule(netns=name, priority=100, table=table, mark=mark))
            for destination in draw(st.sets(st.sampled_from(["0.0.0.0/0", "10.0.0.0/16", "52.216.0.0/15"]))):
                kind = draw(st.sampled_from(["unicast", "throw", "blackhole"]))
                if kind == "unicast" and links:
                    dev = draw(st.sampled_from(links)).outer_if
                    parts.append(Route(netns=name, table=table, destination=destination, dev=dev))
                elif kind != "unicast":
                    parts.append(Route(netns=name, table=table, destination=destination, type=kind))
        parts += draw(nft_parts(name))
    return {key(part): part for part in parts}


@st.composite
def nft_parts(draw: st.DrawFn, netns: str) -> list[Part]:
    parts: list[Part] = []
    groups = sorted(draw(st.sets(st.sampled_from(["g_1", "g_2", "g_3"]))))
    for group in groups:
        texts = draw(st.lists(st.sampled_from(["tcp dport 80 accept", "ip saddr @members accept", "return"])))
        if group == "g_3" and "g_1" in groups:
            texts.append("jump g_1")
        rules = tuple(Rule(text=text, comment=draw(st.sampled_from(["", "sgr-1"]))) for text in texts)
        parts.append(Chain(netns=netns, name=group, rules=rules))
    parts.append(Set(netns=netns, name="members", type="ipv4_addr", interval=draw(st.booleans())))
    for cidr in draw(st.sets(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.8"]))):
        comment = draw(st.sampled_from(["", 'eni-1 "quoted"', "eni-2"]))
        parts.append(Element(netns=netns, set="members", key=cidr, comment=comment))
    if draw(st.booleans()):
        kind = "inet_proto . inet_service . ipv4_addr"
        parts.append(Set(netns=netns, name="allowed", type=kind, interval=True, data="verdict"))
        for part in ["tcp . 80-90 . 10.0.0.0/8", "udp . 53 . 10.0.0.0/16", "tcp . 443 . 0.0.0.0/0"]:
            if draw(st.booleans()):
                data = draw(st.sampled_from(["accept", "drop", *(f"jump {group}" for group in groups)]))
                comment = draw(st.sampled_from(["", "sg-1/sgr-2"]))
                parts.append(Element(netns=netns, set="allowed", key=part, data=data, comment=comment))
        vmap = (Rule(text="ip protocol . th dport . ip saddr vmap @allowed"),)
    else:
        vmap = ()
    if draw(st.booleans()):
        priority = draw(st.sampled_from(["0", "10"]))
        hook = f"type filter hook forward priority {priority}; policy drop;"
        parts.append(Chain(netns=netns, name="forward", hook=hook, rules=vmap))
    return parts


@contextmanager
def world() -> Iterator[Reconciler]:
    folder = Path(tempfile.mkdtemp(prefix="cloister-test-"))
    with Namespaces(folder) as namespaces:
        reconciler = Reconciler(namespaces)
        try:
            yield reconciler
        finally:
            for name in namespaces.list():
                namespaces.delete(name)
            reconciler.close()
    shutil.rmtree(folder)


def fresh(plan: Plan) -> dict[str, Any]:
    with world() as reconciler:
        reconciler.apply(plan)
        return dump_all(reconciler.namespaces)


def changed(before: Plan, after: Plan) -> list[Key]:
    return [i for i in before.keys() | after.keys() if before.get(i) != after.get(i)]


FUZZ = os.environ.get("CLOISTER_FUZZ") == "1"
LAW = settings(
    max_examples=settings.default.max_examples // 3,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@LAW
@given(plans(), plans())
def test_applying_what_changed_leaves_the_kernel_as_a_fresh_build(before: Plan, after: Plan) -> None:
    with world() as reconciler:
        reconciler.apply(before)
        reconciler.apply(after, changed(before, after))
        assert dump_all(reconciler.namespaces) == fresh(after)


@LAW
@given(plans(), plans())
def test_so_it_is_when_every_change_takes_many_transactions(before: Plan, after: Plan) -> None:
    expected = fresh(after)
    with pytest.MonkeyPatch.context() as patch, world() as reconciler:
        patch.setattr(ruleset, "_TRANSACTION_BYTES", 900)
        patch.setattr(ruleset, "_FEW", 1)
        reconciler.apply(before)
        reconciler.apply(after, changed(before, after))
        assert dump_all(reconciler.namespaces) == expected


@pytest.mark.parametrize("many", [10_000 if FUZZ else 4_000])
def test_thousands_of_elements_and_hundreds_of_rules_come_change_and_go(many: int) -> None:
    """Without root too, where the kernel takes some 1,000 at a time."""

    def plan(start: int, size: int) -> Plan:
        parts: list[Part] = [
            Netns(name="v"),
            Set(netns="v", name="s", type="inet_proto . inet_service . ipv4_addr", interval=True),
            *(
                Element(
                    netns="v",
                    set="s",
                    key=f"tcp . 80 . 10.0.{i >> 8}.{i & 255}",
                    comment=f"{start}-{'x' * 120}",
                )
                for i in range(start, start + size)
            ),
            Chain(
                netns="v",
                name="many",
                rules=tuple(Rule(text=f"tcp dport {i + 1} accept") for i in range(start, start + size // 10)),
            ),
            Chain(
                netns="v",
                name="input",
                hook=INPUT,
                rules=(Rule(text="meta l4proto . th dport . ip saddr @s accept"), Rule(text="jump many")),
            ),
        ]
        return {key(part): part for part in parts}

    def counts(reconciler: Reconciler) -> tuple[int, int]:
        there = dump_all(reconciler.namespaces)["v"]["nft"]
        return len(there["set cloister s"].get("elem", ())), len(there["rules cloister many"])

    with world() as reconciler:
        half = many // 2
        first, second, third = plan(0, many), plan(half, many), plan(half + many - 10, 10)
        reconciler.apply(first)
        assert counts(reconciler) == (many, many // 10)
        reconciler.apply(second, changed(first, second))
        assert counts(reconciler) == (many, many // 10)
        reconciler.adopt()
        reconciler.apply(second)
        assert counts(reconciler) == (many, many // 10)
        reconciler.apply(third, changed(second, third))
        assert dump_all(reconciler.namespaces) == fresh(third)


@LAW
@given(plans(), plans())
def test_after_a_restart_with_no_memory_the_kernel_is_adopted(before: Plan, after: Plan) -> None:
    with world() as reconciler:
        reconciler.apply(before)
        reconciler.close()
        again = Reconciler(reconciler.namespaces)
        again.apply(after, [])
        again.close()
        # A setting that the plan no longer names cannot be known after a restart.
        there, expected = dump_all(reconciler.namespaces), fresh(after)
        assert there == expected


class Interrupted(BaseException):
    pass


@LAW
@given(plans(), plans(), plans(), st.integers(0, 60), st.booleans(), st.booleans())
def test_an_interruption_anywhere_is_repaired_by_the_next_apply(
    before: Plan, half: Plan, after: Plan, when: int, restart: bool, small: bool
) -> None:
    with world() as reconciler:
        reconciler.apply(before)
        count = itertools.count()
        steps = ((Rtnl, "send"), (Nft, "run"), (Namespaces, "create"), (Namespaces, "delete"))

        def interrupt(function: Any) -> Any:
            def call(*arguments: Any) -> Any:
                if next(count) == when:
                    raise Interrupted
                return function(*arguments)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for cls, name in steps:
                patch.setattr(cls, name, interrupt(getattr(cls, name)))
            if small:
                patch.setattr(ruleset, "_TRANSACTION_BYTES", 900)
                patch.setattr(ruleset, "_FEW", 1)
            try:
                reconciler.apply(half, changed(before, half))
            except Interrupted:
                pass
        if restart:
            reconciler.adopt()
        reconciler.apply(after, changed(half, after))
        assert dump_all(reconciler.namespaces) == fresh(after)


def test_a_pair_whose_other_namespace_was_just_deleted_is_made_again() -> None:
    """The kernel ends a namespace in the background: its pairs are still seen for a while."""
    veth = Veth(
        outer="vpc",
        outer_if="e0",
        outer_mac="02:00:00:00:00:01",
        inner="eni",
        inner_if="eth0",
        inner_mac="02:00:00:00:00:02",
        addresses=("10.0.0.4",),
    )
    plan = {key(part): part for part in (Netns(name="vpc"), Netns(name="eni"), veth)}
    with world() as reconciler:
        for _ in range(5):
            reconciler.apply(plan)
            reconciler.close()  # its sockets would keep the namespace
            reconciler.namespaces.delete("eni")
            reconciler.adopt()
            reconciler.apply(plan)
            assert dump_all(reconciler.namespaces) == fresh(plan)


def test_after_a_restart_what_is_as_planned_is_left_alone_and_what_somebody_changed_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [
        Netns(name="v", loopback=("10.0.0.2/32",)),
        Chain(netns="v", name="input", hook=INPUT, rules=(Rule(text="tcp dport 80 accept"),)),
        Set(netns="v", name="s", type="ipv4_addr"),
    ]
    plan = {key(part): part for part in parts}
    more = plan | {key(e): e for e in [Element(netns="v", set="s", key="10.0.0.1")]}
    ran: list[str] = []
    run = Nft.run

    def noted(nft: Nft, commands: str) -> str:
        ran.append(commands)
        return run(nft, commands)

    monkeypatch.setattr(Nft, "run", noted)
    with world() as reconciler:
        reconciler.apply(plan)
        reconciler.apply(more, changed(plan, more))
        del ran[:]
        reconciler.adopt()
        reconciler.apply(more)
        assert not ran
        reconciler.namespaces.call("v", Nft).run("add rule ip cloister input accept")
        reconciler.adopt()
        reconciler.apply(more)
        assert dump_all(reconciler.namespaces) == fresh(more)
        reconciler.adopt()
        reconciler.apply(plan)
        assert dump_all(reconciler.namespaces) == fresh(plan)


def test_one_namespace_that_fails_does_not_stop_the_others_and_is_named() -> None:
    good = [Netns(name="good"), Chain(netns="good", name="input", hook=INPUT, rules=(Rule(text="accept"),))]
    bad = [
        Netns(name="bad"),
        Chain(netns="bad", name="input", hook=INPUT, rules=(Rule(text="no such word"),)),
    ]
    plan = {key(part): part for part in [*good, *bad]}
    with world() as reconciler:
        with pytest.raises(ApplyError, match="bad: Error"):
            reconciler.apply(plan)
        there = dump_all(reconciler.namespaces)
        assert there["good"] == fresh({key(part): part for part in good})["good"]
        # It failed closed.
        assert there["bad"]["nft"]["chain cloister input"]["policy"] == "drop"
        assert "rules cloister input" not in there["bad"]["nft"]
        fixed = {key(part): part for part in [*good, Netns(name="bad")]}
        reconciler.apply(fixed, changed(plan, fixed))
        assert dump_all(reconciler.namespaces) == fresh(fixed)


INPUT = "type filter hook input priority 0; policy drop;"
