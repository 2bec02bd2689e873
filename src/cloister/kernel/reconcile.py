"""Makes the kernel equal to a plan.

What is there is remembered (`_have`), so that a change costs what changed. What is not known for sure (after
a start or a failure) is read from the kernel again. How an object is known to be ours without memory:

    namespace    it is pinned in the run folder
    veth pair    its outer end has the alias "cloister DIGEST INNER IF", its inner end "cloister"; both are
                 set last, so a pair that was not finished has none
    route, rule  protocol 201 (202: routes that belong to a pair or namespace)
    settings,    loopback has the alias "cloister DIGEST SUM GENERATION", its seal: a digest of what the
    nftables     namespace is set to, the sum of the digests of its nftables parts, and the generation of the
                 ruleset, which every change of anybody counts up. A seal that holds is believed; else
                 the namespace is set up again and the table `ip cloister` replaced (connections stay)

Order: namespaces, each with its nftables at once, so that no link is ever there without its policy; links
that go, links that come, routes, rules; inner ends go up last. Namespaces are deleted at the end.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from cloister.kernel import conntrack, pairs, rtnl, ruleset, seal, settings
from cloister.kernel.netlink import Message
from cloister.kernel.netns import Namespaces
from cloister.kernel.nft import Generation, Nft, NftError
from cloister.kernel.plan import (
    ROUTE_PROTOCOL,
    Element,
    Key,
    Netns,
    Part,
    Plan,
    PolicyRule,
    Route,
    Set,
    Veth,
    key,
)
from cloister.kernel.rtnl import Rtnl
from cloister.kernel.ruleset import NftPart

#: the most namespaces that have a netlink socket and a libnftables context open at one time
_OPEN = 128
_Change = tuple[Part | None, Part | None]


class ApplyError(RuntimeError):
    """Parts could not be applied: `failures` are (namespace, error). All other parts were applied."""

    def __init__(self, failures: list[tuple[str, Exception]]) -> None:
        self.failures = failures
        super().__init__("; ".join(f"{name}: {error}" for name, error in failures))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adopted:
    """A pair or namespace found in the kernel. `digest` is of the part it was made from; "": not finished."""

    digest: str
    inner: str = ""
    inner_if: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Handles:
    """What is open inside one namespace."""

    rtnl: Rtnl
    nft: Nft
    generation: Generation

    @staticmethod
    def open() -> _Handles:
        return _Handles(rtnl=Rtnl(), nft=Nft(), generation=Generation())

    def close(self) -> None:
        self.rtnl.close()
        self.nft.close()
        self.generation.close()


@dataclass(slots=True, kw_only=True)
class _Pairs:
    """What happens to veth pairs in one `apply`."""

    #: (namespace, link), the inner end's namespace
    drop: list[tuple[tuple[str, str], str]] = field(default_factory=list)
    #: outer namespace -> addresses that are no longer behind their pair
    released: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    amend: list[tuple[Veth, Veth]] = field(default_factory=list)
    make: list[Veth] = field(default_factory=list)


class Reconciler:
    """Follows plans. To be used by one thread at a time. Namespaces named `foreign` are somebody else's:
    they are left alone."""

    def __init__(self, namespaces: Namespaces, *, foreign: Iterable[str] = ()) -> None:
        self.namespaces = namespaces
        self._foreign = frozenset(foreign)
        self._have: dict[Key, Part | _Adopted] = {}
        #: namespaces that must be read again before they are changed
        self._unknown: set[str] = set()
        #: namespaces whose nftables are rebuilt at the next occasion, as it is not known what they hold
        self._blind: set[str] = set()
        #: what the seals of blind namespaces say, as far as they hold
        self._seals: dict[str, seal.Seal] = {}
        #: sums of the digests of nftables parts; namespaces to be sealed at the end of this `apply`
        self._sums: defaultdict[str, int] = defaultdict(int)
        self._reseal: set[str] = set()
        #: at which generation of its ruleset a namespace was sealed, or its seal was believed
        self._sealed: dict[str, int] = {}
        #: inner end -> key of its pair; (namespace, link) -> keys of the routes by it
        self._inner: dict[tuple[str, str], Key] = {}
        self._by_netns: defaultdict[str, set[Key]] = defaultdict(set)
        self._by_dev: defaultdict[tuple[str, str], set[Key]] = defaultdict(set)
        self._open: OrderedDict[str, _Handles] = OrderedDict()
        self._failures: list[tuple[str, Exception]] = []
        self._failed: set[str] = set()
        self._full = True
        self.adopt()

    def adopt(self) -> None:
        """Forget everything and take the kernel as it is. The next `apply` compares the whole plan."""
        self.close()
        self._have.clear()
        self._inner.clear()
        self._by_dev.clear()
        self._by_netns.clear()
        self._blind.clear()
        self._seals.clear()
        self._sealed.clear()
        self._unknown = set(self.namespaces.list()) - self._foreign
        self._full = True
        self._reread()

    def close(self) -> None:
        """Close what is open inside namespaces; the kernel keeps its state."""
        for handles in self._open.values():
            handles.close()
        self._open.clear()

    # ---- applying ------------------------------------------------------------------------------

    def apply(self, plan: Plan, changed: Iterable[Key] | None = None) -> None:
        """Make the kernel equal to `plan`. `changed`: the keys in which it differs from the plan applied
        before (of a new namespace: all its parts); None: compare everything. Raises ApplyError after doing
        what could be done; what failed is read from the kernel and tried again by the next `apply`."""
        again = set(self._unknown)
        self._reread()
        keys: set[Key]
        if changed is None or self._full:
            keys = self._have.keys() | plan.keys()
        else:
            keys = set(changed)
            if again:
                keys |= {i for i in self._have.keys() | plan.keys() if _place(i) in again}
        self._recognise(plan)
        changes = self._differences(plan, keys)
        touched = {_place(i) for i in changes}
        for change in changes.values():
            for part in change:
                if isinstance(part, Veth):
                    touched |= {part.outer, part.inner}
        self._failures, self._failed, self._reseal = [], set(), set()
        # Until all is done nothing of these is certain: an exception anywhere leaves them to be read again.
        self._unknown |= touched
        self._apply(plan, changes)
        self._unknown = (self._unknown - touched) | self._failed
        self._full = False
        if self._failures:
            raise ApplyError(self._failures)

    def _recognise(self, plan: Plan) -> None:
        """Of the blind namespaces, those whose seals say that they hold what the plan wants."""
        if self._seals:
            parts: defaultdict[str, list[tuple[Key, Part]]] = defaultdict(list)
            for identity, part in plan.items():
                if isinstance(part, NftPart) and part.netns in self._seals:
                    parts[part.netns].append((identity, part))
            for name, found in self._seals.items():
                netns = plan.get(("Netns", name))
                if netns is None:
                    continue
                if found.settings == seal.digest(netns):
                    self._remember(("Netns", name), netns)
                if found.total == seal.total(part for _, part in parts[name]):
                    self._blind.discard(name)
                    self._sums[name] = found.total
                    for identity, part in parts[name]:
                        self._remember(identity, part)
            self._seals.clear()

    def _seal(self, name: str, netns: Part) -> None:
        here = self._handles(name)
        generation = here.generation.read()
        alias = seal.Seal(settings=seal.digest(netns), total=self._sums[name]).text(generation)
        here.rtnl.send([rtnl.set_alias(settings.LOOPBACK, alias)])
        self._sealed[name] = generation

    def steer(self, netns: str, commands: str) -> None:
        """Run nft commands on what is no plan's business, such as elements of dynamic sets; one transaction.
        A namespace that was sealed stays so. Not while `apply` runs. Raises NftError, LookupError."""
        here = self._handles(netns)
        before = here.generation.read()
        here.nft.run(commands)
        part = self._have.get(("Netns", netns))
        sealed = self._sealed.get(netns) == before and netns not in self._blind
        if sealed and isinstance(part, Netns) and here.generation.read() == before + 1:
            self._seal(netns, part)

    def _differences(self, plan: Plan, keys: Iterable[Key]) -> dict[Key, _Change]:
        """Key -> (what there is, what shall be). Parts of a namespace that the plan lacks shall not be."""
        found: dict[Key, _Change] = {}
        pending = list(keys)
        while pending:
            identity = pending.pop()
            if identity in found:
                continue
            new = self._wanted(plan, identity)
            old = self._have.get(identity)
            if isinstance(old, _Adopted) and isinstance(new, Veth) and old.digest == seal.digest(new):
                self._remember(identity, new)
                continue
            if old == new:
                continue
            found[identity] = (old, new)  # type: ignore[assignment]  # _Adopted stands for a Part here
            if identity[0] == "Veth":
                # A route's next hop depends on the pair; and when the pair goes, so does the route.
                goes = old is not None and not pairs.amends(old, new)
                for end in {(identity[1], identity[2]), *_ends(old), *_ends(new)}:
                    for route in list(self._by_dev.get(end, ())):
                        if goes:
                            self._forget(route)
                        found.pop(route, None)
                        pending.append(route)
        return found

    def _wanted(self, plan: Plan, identity: Key) -> Part | None:
        part = plan.get(identity)
        if part is None or ("Netns", _place(identity)) not in plan:
            return None
        if isinstance(part, Veth):
            if ("Netns", part.inner) not in plan:
                return None
            self._inner[(part.inner, part.inner_if)] = identity
        if isinstance(part, Route) and part.type == "unicast" and part.via is None and part.dev:
            return replace(part, via=self._next_hop(plan, part.netns, part.dev))
        return part

    def _next_hop(self, plan: Plan, netns: str, dev: str) -> str | None:
        """The address of the other end of a pair: nothing answers ARP, so a route by a link needs one."""
        outer = plan.get(("Veth", netns, dev))
        if isinstance(outer, Veth):
            return outer.addresses[0] if outer.addresses else None
        inner = plan.get(self._inner.get((netns, dev), ()))
        if inner is None:
            inner = next(
                (p for p in plan.values() if isinstance(p, Veth) and (p.inner, p.inner_if) == (netns, dev)),
                None,
            )
        return (inner.gateway or pairs.PEER) if isinstance(inner, Veth) else None

    def _apply(self, plan: Plan, changes: dict[Key, _Change]) -> None:
        created = [new for old, new in changes.values() if isinstance(new, Netns) and old is None]
        deleted = [
            identity[1] for identity, (_, new) in changes.items() if identity[0] == "Netns" and new is None
        ]
        for netns in created:
            with self._attempt(netns.name):
                self.namespaces.create(netns.name)
        self._apply_nft(plan, changes, {netns.name for netns in created}, set(deleted))
        for identity, (old, new) in changes.items():
            if isinstance(new, Netns) and new.name not in self._failed:
                with self._attempt(new.name):
                    known = old if isinstance(old, Netns) else None
                    if old is not None:
                        self._handles(new.name).rtnl.send([rtnl.set_alias(settings.LOOPBACK, "")])
                    self._reseal.add(new.name)
                    settings.configure(
                        self.namespaces, self._handles(new.name).rtnl, known, new, fresh=old is None
                    )
                    self._remember(identity, new)
        due = self._sort_pairs(changes)
        ending = set(deleted)
        for name, addresses in due.released.items():
            if name not in ending:
                # After their rules went, before somebody else has them.
                with self._attempt(name):
                    self.namespaces.call(name, partial(conntrack.forget, addresses))
        for (name, link), inner in due.drop:
            if name in ending and inner in ending:
                # Gone with both of its namespaces, which the kernel ends in the background: much faster.
                continue
            with self._attempt(name):
                self._handles(name).rtnl.send([rtnl.delete_link(link)])
        for identity in changes:
            if identity[0] == "Veth":
                self._forget(identity)
        for was, becomes in due.amend:
            with self._attempt(becomes.outer, becomes.inner):
                pairs.amend(*self._both(becomes), was, becomes)
                self._remember(key(becomes), becomes)
        made = []
        for pair in due.make:
            with self._attempt(pair.outer, pair.inner):
                if pair.outer in self._failed or pair.inner in self._failed:
                    raise LookupError(f"link {pair.outer_if}: its namespace could not be prepared")
                pairs.make(self.namespaces, *self._both(pair), pair)
                made.append(pair)
        self._apply_routes(changes, set(deleted))
        for pair in made:
            if pair.outer not in self._failed and pair.inner not in self._failed:
                with self._attempt(pair.outer, pair.inner):
                    routes = self._waiting.pop((pair.inner, pair.inner_if), [])
                    pairs.finish(*self._both(pair), pair, routes)
                    self._remember(key(pair), pair)
        for name in self._reseal - self._failed - ending:
            with self._attempt(name):
                self._seal(name, plan[("Netns", name)])
        for name in deleted:
            with self._attempt(name):
                self._close_one(name)
                self.namespaces.delete(name)
                for identity in list(self._by_netns[name]):
                    self._forget(identity)
                del self._by_netns[name]
                self._sums.pop(name, None)
                self._blind.discard(name)

    @contextmanager
    def _attempt(self, *names: str) -> Iterator[None]:
        """A failure concerns these namespaces and stops nothing else."""
        try:
            yield
        except (OSError, NftError, LookupError, ValueError) as error:
            self._failures.append((names[0], error))
            self._failed.update(names)

    # ---- nftables ------------------------------------------------------------------------------

    def _apply_nft(
        self, plan: Plan, changes: dict[Key, _Change], created: set[str], deleted: set[str]
    ) -> None:
        old_parts: defaultdict[str, dict[Key, NftPart]] = defaultdict(dict)
        new_parts: defaultdict[str, dict[Key, NftPart]] = defaultdict(dict)
        for identity, (old, new) in changes.items():
            name = _place(identity)
            if isinstance(old, NftPart):
                old_parts[name][identity] = old
            if isinstance(new, NftPart):
                new_parts[name][identity] = new
        commands: dict[str, list[str]] = {}
        rebuild = {name for name in self._blind if name not in deleted}
        for name in (old_parts.keys() | new_parts.keys() | created) - rebuild - deleted:
            before, after = old_parts[name], new_parts[name]
            birth = ruleset.birth(name)
            if name in created:
                commands[name] = ruleset.build({**birth, **after}.values())
                continue
            # A chain of birth is there whenever the plan has none of its name.
            for identity in (before.keys() ^ after.keys()) & birth.keys():
                (after if identity in before else before)[identity] = birth[identity]
            transactions = ruleset.change(before, after, partial(self._whole_set, plan, name))
            if transactions is None:
                rebuild.add(name)
            else:
                commands[name] = transactions
        if rebuild:
            whole: dict[str, dict[Key, NftPart]] = {name: ruleset.birth(name) for name in rebuild}
            for identity, part in plan.items():
                if isinstance(part, NftPart) and part.netns in rebuild:
                    whole[part.netns][identity] = part
            commands |= {name: ruleset.build(parts.values()) for name, parts in whole.items()}
        for name, transactions in commands.items():
            if name in self._failed:
                continue
            with self._attempt(name):
                nft = self._handles(name).nft
                try:
                    for transaction in transactions:
                        nft.run(transaction)
                except NftError:
                    if name in created:
                        # Born closed in any case.
                        for transaction in ruleset.build(ruleset.birth(name).values()):
                            nft.run(transaction)
                    raise
                self._blind.discard(name)
                self._reseal.add(name)
        for identity, (old, new) in changes.items():
            name = _place(identity)
            if identity[0] in ("Set", "Element", "Chain") and name not in self._failed:
                self._forget(identity)
                if new is not None:
                    self._remember(identity, new)
                self._sums[name] = seal.follow(self._sums[name], old, new)

    def _whole_set(self, plan: Plan, netns: str, name: str) -> tuple[Set | None, list[Element]]:
        """A set and its elements as planned: of those it has, and new ones (which the change has as well)."""
        its_set = plan.get(("Set", netns, name))
        elements = (plan.get(i) for i in self._by_netns[netns] if i[0] == "Element" and i[2] == name)
        return (
            its_set if isinstance(its_set, Set) else None,
            [element for element in elements if isinstance(element, Element)],
        )

    # ---- pairs ---------------------------------------------------------------------------------

    def _sort_pairs(self, changes: dict[Key, _Change]) -> _Pairs:
        due = _Pairs()
        for identity, (old, new) in changes.items():
            if identity[0] != "Veth":
                continue
            if isinstance(old, (Veth, _Adopted)):
                kept = new.addresses if isinstance(new, Veth) else ()
                if released := set(old.addresses).difference(kept):
                    due.released[identity[1]] |= released
            if isinstance(old, Veth) and isinstance(new, Veth) and pairs.amends(old, new):
                due.amend.append((old, new))
                continue
            if old is not None:
                inner = old.inner if isinstance(old, (Veth, _Adopted)) else ""
                due.drop.append(((identity[1], identity[2]), inner))
            if isinstance(new, Veth):
                due.make.append(new)
        return due

    def _both(self, pair: Veth) -> tuple[Rtnl, Rtnl]:
        """The handles of a pair's namespaces: the outer end's, the inner end's."""
        return self._handles(pair.outer).rtnl, self._handles(pair.inner).rtnl

    # ---- routes and rules ----------------------------------------------------------------------

    def _apply_routes(self, changes: dict[Key, _Change], deleted: set[str]) -> None:
        waiting = {(new.inner, new.inner_if) for old, new in changes.values() if isinstance(new, Veth)}
        self._waiting: defaultdict[tuple[str, str], list[Message]] = defaultdict(list)
        by_netns: defaultdict[str, list[tuple[Key, _Change]]] = defaultdict(list)
        for identity, change in changes.items():
            if identity[0] in ("Route", "PolicyRule"):
                by_netns[_place(identity)].append((identity, change))
        for name, items in by_netns.items():
            if name not in deleted and name not in self._failed:
                with self._attempt(name):
                    here = self._handles(name).rtnl
                    messages: list[Message] = []
                    late: list[Message] = []
                    for _, (old, new) in items:
                        if isinstance(old, PolicyRule):
                            messages.append(rtnl.delete_rule(old.priority, old.table, old.mark))
                        if isinstance(new, PolicyRule):
                            late.append(rtnl.add_rule(new.priority, new.table, new.mark))
                        if isinstance(old, Route) and new is None:
                            messages.append(rtnl.delete_route(old.destination, table=old.table))
                        if isinstance(new, Route):
                            dev = None if new.dev is None else pairs.index_of(here, new.dev)
                            message = rtnl.add_route(
                                new.destination, table=new.table, type=new.type, dev=dev, via=new.via
                            )
                            end = (name, new.dev or "")
                            # A route by an inner end can only be made when that is up.
                            (self._waiting[end] if end in waiting else messages).append(message)
                    here.send(messages + late)
            if name not in self._failed:
                for identity, (_, new) in items:
                    self._forget(identity)
                    if new is not None and name not in deleted:
                        self._remember(identity, new)

    # ---- memory --------------------------------------------------------------------------------

    def _remember(self, identity: Key, part: Part | _Adopted) -> None:
        self._have[identity] = part
        self._by_netns[_place(identity)].add(identity)
        if isinstance(part, Veth):
            self._inner[(part.inner, part.inner_if)] = identity
        if isinstance(part, Route) and part.dev:
            self._by_dev[(part.netns, part.dev)].add(identity)

    def _forget(self, identity: Key) -> None:
        part = self._have.pop(identity, None)
        self._by_netns[_place(identity)].discard(identity)
        if isinstance(part, Route) and part.dev:
            end = (part.netns, part.dev)
            self._by_dev[end].discard(identity)
            if not self._by_dev[end]:
                del self._by_dev[end]
        elif isinstance(part, Veth) and self._inner.get((part.inner, part.inner_if)) == identity:
            del self._inner[(part.inner, part.inner_if)]

    def _reread(self) -> None:
        """Learn again what the unknown namespaces hold. Their nftables will be rebuilt."""
        unknown = self._unknown
        if unknown:
            for identity in [i for name in unknown for i in self._by_netns[name]]:
                self._forget(identity)
            self._blind -= unknown
            for name in unknown:
                self._close_one(name)
                if self.namespaces.exists(name):
                    self._remember(("Netns", name), _Adopted(digest=""))
                    self._blind.add(name)
                    self._sums[name] = 0
                    self._read(name)
        self._unknown = set()

    def _read(self, name: str) -> None:
        links, routes, rules, generation = self.namespaces.call(name, seal.all_there_is)
        names = {link.index: link.name for link in links}
        behind: defaultdict[int, list[str]] = defaultdict(list)
        for entry in routes:
            if entry.protocol == rtnl.OWNED_PROTOCOL and entry.dev and entry.destination.endswith("/32"):
                behind[entry.dev].append(entry.destination.removesuffix("/32"))
        for link in links:
            if link.index == settings.LOOPBACK and (holds := seal.parse(link.alias, generation)):
                self._seals[name] = holds
                self._sealed[name] = generation
            if link.kind != "veth" or link.alias == seal.ALIAS:
                continue
            digest, inner, inner_if = pairs.parse(link.alias)
            if inner and not self.namespaces.exists(inner):
                digest = ""  # its other end is gone, and so will this be: the kernel ends namespaces later
            pair = _Adopted(
                digest=digest, inner=inner, inner_if=inner_if, addresses=tuple(behind[link.index])
            )
            self._remember(("Veth", name, link.name), pair)
        for entry in routes:
            if entry.protocol == ROUTE_PROTOCOL:
                route = Route(
                    netns=name,
                    table=entry.table,
                    destination=entry.destination,
                    type=entry.type,
                    # A blackhole may be listed with lo as its device.
                    dev=names.get(entry.dev or 0) if entry.type == "unicast" else None,
                    via=entry.via,
                )
                self._remember(key(route), route)
        for found in rules:
            rule = PolicyRule(netns=name, priority=found.priority, table=found.table, mark=found.mark)
            self._remember(key(rule), rule)

    def _handles(self, name: str) -> _Handles:
        found = self._open.get(name)
        if found is None:
            found = self.namespaces.call(name, _Handles.open)
            self._open[name] = found
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(name)
        return found

    def _close_one(self, name: str) -> None:
        if handles := self._open.pop(name, None):
            handles.close()

    # ---- for tests and diagnosis -------------------------------------------------------------------

    def query(self, netns: str, commands: str) -> list[dict[str, object]]:
        """nftables' JSON of a `list …` command inside a namespace."""
        return self._handles(netns).nft.query(commands)


def _place(identity: Key) -> str:
    """The namespace that a part is in; a pair's is the outer one."""
    return identity[1]


def _ends(pair: object) -> list[tuple[str, str]]:
    if isinstance(pair, Veth):
        return [(pair.outer, pair.outer_if), (pair.inner, pair.inner_if)]
    return [(pair.inner, pair.inner_if)] if isinstance(pair, _Adopted) else []
