"""Why one request of one interface is let through or refused, gate by gate:

DNS, route, groups, ACLs, gateways or endpoint; then, as far as S3 is asked, every policy that has a say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from cloister.authorize import decide_call
from cloister.iam.collect import principal_tags
from cloister.iam.context import global_keys
from cloister.iam.decide import Request
from cloister.iam.model import Principal, Role
from cloister.jobs import execution_role
from cloister.s3 import actions
from cloister.s3.address import decode_query, locate
from cloister.s3.authorize import decide_need
from cloister.s3.model import Bucket
from cloister.vpc import addresses as ip
from cloister.vpc import dhcp, dns, gateways, interface_endpoints, resolver_rules
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.model import NetworkInterface, Vpc, VpcEndpoint
from cloister.vpc.resolver_rules import ResolverRule
from cloister.vpc.steps import NO_PUBLIC_ADDRESS
from cloister.why import permission
from cloister.wire.errors import AwsError
from cloister.world import World


def session_of(role: Role, account: str) -> Principal:
    """The principal that a job with this role is."""
    name = execution_role.SESSION_NAME
    return Principal(
        arn=f"arn:aws:sts::{account}:assumed-role/{role.name}/{name}",
        account=account,
        user_id=f"{role.role_id}:{name}",
        access_key_id="",
        role_name=role.name,
        role_arn=f"arn:aws:iam::{account}:role{role.path}{role.name}",
        session_name=name,
    )


def why_request(
    world: World,
    interface: NetworkInterface,
    method: str,
    url: str,
    *,
    source: str | None = None,
    principal: Principal | None,
    region: str,
    account: str,
    now: float,
    objects: str | None = None,
    action: str | None = None,
    sent: Mapping[str, str] | None = None,
) -> Verdict:
    """Whether `interface` (from its address `source`, its primary one by default) may do `method` on `url`,
    an http(s) URL or `s3://BUCKET/KEY`, signed by `principal` (None: unsigned). `objects`: the ARN of all
    objects that are asked for like this one, which a proposed statement is to allow. `action`: what is asked
    of a service other than S3, as in "kms:Decrypt" or "kms:Decrypt=ARN". `sent` are headers,
    of a request to S3, that change what it needs. Raises ValueError for what is no such URL."""
    steps = tuple(
        _steps(
            world,
            interface,
            method.upper(),
            url,
            source=source,
            principal=principal,
            region=region,
            account=account,
            now=now,
            objects=objects,
            action=action,
            sent=sent,
        )
    )
    return Verdict(allowed=all(step.allowed for step in steps), steps=steps)


def _steps(
    world: World,
    interface: NetworkInterface,
    method: str,
    url: str,
    *,
    source: str | None,
    principal: Principal | None,
    region: str,
    account: str,
    now: float,
    objects: str | None,
    action: str | None,
    sent: Mapping[str, str] | None,
) -> Iterator[Step]:
    parts = urlsplit(https_url(url, region))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is neither an http(s) URL nor s3://BUCKET/KEY")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    own = source or interface.addresses[0].address
    destinations: tuple[str, ...] = (host,)
    if not is_address(host):
        step, destinations = _dns_step(world, interface, own, host, region, account)
        yield step
        if not destinations:
            return
    destination, network = _by_any(world, interface, own, destinations, port)
    translated = False
    for step in network.steps:
        yield step if translated or step.allowed else towards(world, interface, step, host, region)
        translated = translated or step.becomes is not None
    endpoint_id = _endpoint_of(world, interface.vpc_id, destination, network)
    outside = [step.becomes for step in network.steps if step.becomes is not None]
    context = global_keys(
        principal,
        now=now,
        address=own if endpoint_id or not outside else outside[-1],
        endpoint_id=endpoint_id,
        vpc_id=interface.vpc_id if endpoint_id else None,
        secure=parts.scheme == "https",
        region=region,
        tags=principal_tags(world, principal),
    )
    if not _is_s3(world, host):
        if action is not None:
            what, _, resource = action.partition("=")
            asked = Request(principal=principal, action=what, resource=resource or "*", context=context)
            decision = decide_call(world, asked, endpoint_id=endpoint_id)
            yield from permission.steps(world, decision, endpoint_id=endpoint_id)
        return
    query, headers = decode_query(parts.query), {"host": host, **(sent or {})}
    try:
        bucket, key = locate(host, parts.path or "/", lambda name: world.get(Bucket, name) is not None)
        operation = actions.operation(method, bucket, key, query, headers, region=region, account=account)
    except AwsError as error:
        yield Step(gate="request", allowed=False, origin=url, sentence=error.message)
        return
    context.update(actions.context(query, headers))
    for need in operation.needs:
        decision = decide_need(world, principal, need, context, endpoint_id=endpoint_id, account=account)
        meant = objects if need.bucket is not None else None
        yield from permission.steps(world, decision, endpoint_id=endpoint_id, objects=meant)
    if bucket is not None and operation.name != "CreateBucket" and world.get(Bucket, bucket) is None:
        sentence = f"There is no bucket {bucket}."
        yield Step(
            gate="bucket",
            allowed=False,
            origin=bucket,
            sentence=sentence,
            fix=f"aws s3api create-bucket --bucket {bucket}{_constraint(region)}",
        )


def _constraint(region: str) -> str:
    """AWS (CreateBucket): us-east-1 is the one Region that is not named."""
    where = f" --create-bucket-configuration LocationConstraint={region}"
    return where if region != "us-east-1" else ""


def https_url(url: str, region: str) -> str:
    """`s3://BUCKET/KEY` as the URL that clients use; other URLs as they are."""
    if not url.startswith("s3://"):
        return url
    bucket, _, key = url.removeprefix("s3://").partition("/")
    bucket, mark, query = bucket.partition("?")
    # a certificate's "*" is for one label
    host, path = f"s3.{region}.amazonaws.com", f"/{bucket}"
    if "." not in bucket:
        host, path = f"{bucket}.{host}", ""
    return f"https://{host}{path}{mark and f'/{mark}'}{query}{'/' if key else ''}{key}"


def towards(world: World, interface: NetworkInterface, step: Step, host: str, region: str) -> Step:
    """A refusal on the way to a service's own name: said by its name, and changed by an endpoint of it."""
    if is_address(host) or _is_s3(world, host):
        return step
    named = re.sub(r"(no route to [0-9.]+)\.$", rf"\1 ({host}).", step.sentence)
    lack = None
    if step.fix is None and (step.gate == "route" or step.code == NO_PUBLIC_ADDRESS):
        lack = interface_endpoints.lack(world, interface, host, region)
    if lack is None:
        return replace(step, sentence=named)
    why, command = lack
    start = named.rstrip(".") + (":" if step.gate == "route" else ", and")
    return replace(step, sentence=f"{start} {why}.", fix=command)


def is_address(host: str) -> bool:
    """Whether a host is named by its IPv4 address."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _by_any(
    world: World, interface: NetworkInterface, own: str, destinations: tuple[str, ...], port: int
) -> tuple[str, Verdict]:
    """The first of a name's addresses that is reached, as clients try them in turn; else the first."""
    first: tuple[str, Verdict] | None = None
    for destination in destinations:
        flow = Flow(source=own, destination=destination, protocol="tcp", port=port, vpc_id=interface.vpc_id)
        network = explain(world, flow)
        if network.allowed:
            return destination, network
        first = first or (destination, network)
    assert first is not None
    return first


def _dns_step(
    world: World, interface: NetworkInterface, own: str, host: str, region: str, account: str
) -> tuple[Step, tuple[str, ...]]:
    """What the servers of the VPC's DHCP options say, asked in turn, and the addresses."""
    vpc = world.get(Vpc, interface.vpc_id)
    if vpc is None:
        sentence = f"{interface.vpc_id} is gone."
        return Step(gate="dns", allowed=False, origin=interface.vpc_id, sentence=sentence), ()
    unreached: Step | None = None
    for server in dhcp.servers(world, vpc, region):
        if server in (ip.resolver_address(vpc), ip.LINK_LOCAL_RESOLVER):
            step, found = resolver_step(world, vpc, host, region)
            if found or vpc.enable_dns_support:
                return step, found
        else:
            step, reached = _other_server(world, vpc.vpc_id, own, (server, 53), vpc.dhcp_options_id, host)
            if reached:
                return step, ()
        unreached = unreached or step
    return unreached or _no_server(vpc, host, dhcp.default_id(region, account)), ()


def resolver_step(world: World, vpc: Vpc, host: str, region: str) -> tuple[Step, tuple[str, ...]]:
    """What the VPC's own resolver says of a name, and its addresses."""
    vpc_id = vpc.vpc_id
    if not vpc.enable_dns_support:
        return (
            Step(
                gate="dns",
                allowed=False,
                origin=vpc_id,
                sentence=f"DNS support of {vpc_id} is off, so {host} does not resolve in it.",
                fix=f"aws ec2 modify-vpc-attribute --vpc-id {vpc_id} --enable-dns-support",
            ),
            (),
        )
    rule = resolver_rules.rule_for(world, vpc_id, host, region=region)
    if rule is not None:
        return _forwarded(world, rule, host), ()
    answer = dns.answer(world, vpc_id, host, dns.A, region=region)
    if not answer.records:
        sentence = f"{host} does not exist in {vpc_id}."
        peering = dns.silent_peering(world, vpc, host, region)
        if peering is None:
            if not host.endswith((".internal", ".amazonaws.com")):
                sentence = _of_internet(world, vpc_id, host)
            return Step(gate="dns", allowed=False, origin=vpc_id, sentence=sentence), ()
        side = "accepter" if peering.requester_vpc_id == vpc_id else "requester"
        sentence += (
            f" It is a name of {peering.other(vpc_id)}, and {peering.peering_id} resolves none for it."
        )
        commands = [
            f"aws ec2 modify-vpc-attribute --vpc-id {one.vpc_id} --enable-dns-{what}"
            for one in (vpc, world.get(Vpc, peering.other(vpc_id)))
            if one is not None
            for what, on in (("support", one.enable_dns_support), ("hostnames", one.enable_dns_hostnames))
            if not on  # AWS: else a peering's DNS resolution cannot be enabled
        ]
        commands.append(
            "aws ec2 modify-vpc-peering-connection-options "
            f"--vpc-peering-connection-id {peering.peering_id} "
            f"--{side}-peering-connection-options AllowDnsResolutionFromRemoteVpc=true"
        )
        fix = " && ".join(commands)
        return Step(gate="dns", allowed=False, origin=peering.peering_id, sentence=sentence, fix=fix), ()
    sentence = f"{host} is {', '.join(answer.records)} in {vpc_id}."
    return Step(gate="dns", allowed=True, origin=vpc_id, sentence=sentence), answer.records


def _of_internet(world: World, vpc_id: str, host: str) -> str:
    if gateways.of_vpc(world, vpc_id) is not None:
        return f"{host} is asked of this host's DNS servers; Cloister cannot tell what they answer."
    return (
        f"{host} does not exist in {vpc_id}: names of the internet resolve in a VPC with an internet gateway."
    )


def _no_server(vpc: Vpc, host: str, default: str) -> Step:
    options = vpc.dhcp_options_id
    said = f"{vpc.vpc_id} has no DNS server, so {host} does not resolve: {options or 'no DHCP options set'}."
    fix = f"aws ec2 associate-dhcp-options --vpc-id {vpc.vpc_id} --dhcp-options-id {default}"
    return Step(gate="dns", allowed=False, origin=options or vpc.vpc_id, sentence=said, fix=fix)


def _forwarded(world: World, rule: ResolverRule, host: str) -> Step:
    """A resolver rule sends the question on, from an outbound endpoint's interface."""
    for interface in resolver_rules.sources(world, rule):
        own = interface.addresses[0].address
        return _other_server(world, interface.vpc_id, own, rule.targets[0], rule.rule_id, host)[0]
    said = f"{host} is forwarded by {rule.rule_id}, whose endpoint {rule.endpoint_id} has no interface."
    return Step(gate="dns", allowed=False, origin=rule.rule_id, sentence=said)


def _other_server(
    world: World, vpc_id: str, own: str, server: tuple[str, int], origin: str, host: str
) -> tuple[Step, bool]:
    """Whether a DNS server is reached can be told, not what it answers: the request is not judged further."""
    address, port = server
    asked = Flow(source=own, destination=address, protocol="udp", port=port, vpc_id=vpc_id)
    refusal = explain(world, asked).refusal
    if refusal is not None:
        said = f"{host} is asked of {address} ({origin}), which is not reached: {refusal.sentence}"
        return replace(refusal, gate="dns", sentence=said), False
    said = f"{host} is asked of {address} ({origin}); Cloister cannot tell what that server answers."
    return Step(gate="dns", allowed=False, origin=origin, sentence=said), True


def _endpoint_of(world: World, vpc_id: str, destination: str, network: Verdict) -> str | None:
    """The endpoint that a request goes through: a gateway endpoint the route leads to, or the interface
    endpoint whose address it asks."""
    for step in network.steps:
        if step.gate == "endpoint":
            return step.origin
    for endpoint in world.where(VpcEndpoint, vpc_id=vpc_id):
        for interface_id in getattr(endpoint, "interface_ids", ()):
            interface = world.get(NetworkInterface, interface_id)
            if interface and any(held.address == destination for held in interface.addresses):
                return endpoint.endpoint_id
    return None


def _is_s3(world: World, host: str) -> bool:
    """Whether S3 answers under this name: one of its endpoints' names, or a bucket that is called so."""
    if world.get(Bucket, host) is not None:
        return True
    name = host.removesuffix(".amazonaws.com")
    return name != host and any(label == "s3" or label.startswith("s3-") for label in name.split("."))
