"""Why one request of one interface is let through or refused, gate by gate:

DNS, route, groups, ACLs, gateways or endpoint; then, as far as S3 is asked, every policy that has a say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from cloister.iam.collect import principal_tags
from cloister.iam.context import global_keys
from cloister.iam.model import Principal, Role
from cloister.jobs import execution_role
from cloister.s3 import actions
from cloister.s3.address import decode_query, locate
from cloister.s3.authorize import decide_need
from cloister.s3.model import Bucket
from cloister.vpc import addresses as ip
from cloister.vpc import dhcp, dns, interface_endpoints, resolver_rules
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Step, Verdict
from cloister.vpc.model import NetworkInterface, Vpc, VpcEndpoint
from cloister.vpc.resolver_rules import ResolverRule
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
) -> Verdict:
    """Whether `interface` (from its address `source`, its primary one by default) may do `method` on `url`,
    an http(s) URL or `s3://BUCKET/KEY`, signed by `principal` (None: unsigned).
    Raises ValueError for what is no such URL."""
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
) -> Iterator[Step]:
    parts = urlsplit(https_url(url, region))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is neither an http(s) URL nor s3://BUCKET/KEY")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    try:
        destination = str(ipaddress.IPv4Address(host))
    except ValueError:
        step, found = _dns_step(world, interface, source or interface.addresses[0].address, host, region)
        yield step
        if found is None:
            return
        destination = found
    own = source or interface.addresses[0].address
    flow = Flow(source=own, destination=destination, protocol="tcp", port=port, vpc_id=interface.vpc_id)
    network = explain(world, flow)
    for step in network.steps:
        if step.gate == "route" and not step.allowed and not _is_s3(world, host):
            command = interface_endpoints.command_for(world, interface, host, region)
            step = replace(step, fix=command or step.fix)
        yield step
    endpoint_id = _endpoint_of(world, interface.vpc_id, destination, network)
    outside = [step.becomes for step in network.steps if step.becomes is not None]
    if not _is_s3(world, host):
        return
    query, headers = decode_query(parts.query), {"host": host}
    try:
        bucket, key = locate(host, parts.path or "/", lambda name: world.get(Bucket, name) is not None)
        operation = actions.operation(method, bucket, key, query, headers)
    except AwsError as error:
        yield Step(gate="request", allowed=False, origin=url, sentence=error.message)
        return
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
    context.update(actions.context(query, headers))
    for need in operation.needs:
        decision = decide_need(world, principal, need, context, endpoint_id=endpoint_id, account=account)
        yield from permission.steps(world, decision, endpoint_id=endpoint_id)
    if bucket is not None and operation.name != "CreateBucket" and world.get(Bucket, bucket) is None:
        sentence = f"There is no bucket {bucket}."
        yield Step(
            gate="bucket",
            allowed=False,
            origin=bucket,
            sentence=sentence,
            fix=f"aws s3api create-bucket --bucket {bucket}",
        )


def https_url(url: str, region: str) -> str:
    """`s3://BUCKET/KEY` as the URL that a client uses; other URLs as they are."""
    if not url.startswith("s3://"):
        return url
    bucket, _, key = url.removeprefix("s3://").partition("/")
    bucket, mark, query = bucket.partition("?")
    return f"https://s3.{region}.amazonaws.com/{bucket}{mark}{query}{'/' if key else ''}{key}"


def _dns_step(
    world: World, interface: NetworkInterface, own: str, host: str, region: str
) -> tuple[Step, str | None]:
    vpc_id = interface.vpc_id
    vpc = world.get(Vpc, vpc_id)
    servers = dhcp.servers(world, vpc, region) if vpc is not None else ()
    if vpc is not None and servers[:1] != (ip.resolver_address(vpc),):
        return _by_dhcp_options(world, vpc, servers, own, host), None
    if vpc is not None and not vpc.enable_dns_support:
        return (
            Step(
                gate="dns",
                allowed=False,
                origin=vpc_id,
                sentence=f"DNS support of {vpc_id} is off, so {host} does not resolve in it.",
                fix=f"aws ec2 modify-vpc-attribute --vpc-id {vpc_id} --enable-dns-support",
            ),
            None,
        )
    rule = resolver_rules.rule_for(world, vpc_id, host, region=region)
    if rule is not None:
        return _forwarded(world, rule, host), None
    answer = dns.answer(world, vpc_id, host, dns.A, region=region)
    if not answer.records:
        return (
            Step(gate="dns", allowed=False, origin=vpc_id, sentence=f"{host} does not exist in {vpc_id}."),
            None,
        )
    sentence = f"{host} is {', '.join(answer.records)} in {vpc_id}."
    return Step(gate="dns", allowed=True, origin=vpc_id, sentence=sentence), answer.records[0]


def _by_dhcp_options(world: World, vpc: Vpc, servers: tuple[str, ...], own: str, host: str) -> Step:
    """DHCP options name a DNS server other than the VPC's resolver."""
    options = vpc.dhcp_options_id
    if servers:
        return _other_server(world, vpc.vpc_id, own, (servers[0], 53), options, host)
    said = f"{vpc.vpc_id} has no DNS server, so {host} does not resolve: {options or 'no DHCP options set'}."
    fix = f"aws ec2 associate-dhcp-options --vpc-id {vpc.vpc_id} --dhcp-options-id …"
    return Step(gate="dns", allowed=False, origin=options, sentence=said, fix=fix)


def _forwarded(world: World, rule: ResolverRule, host: str) -> Step:
    """A resolver rule sends the question on, from an outbound endpoint's interface."""
    for interface in resolver_rules.sources(world, rule):
        own = interface.addresses[0].address
        return _other_server(world, interface.vpc_id, own, rule.targets[0], rule.rule_id, host)
    said = f"{host} is forwarded by {rule.rule_id}, whose endpoint {rule.endpoint_id} has no interface."
    return Step(gate="dns", allowed=False, origin=rule.rule_id, sentence=said)


def _other_server(
    world: World, vpc_id: str, own: str, server: tuple[str, int], origin: str, host: str
) -> Step:
    """Whether a DNS server is reached can be told, not what it answers: the request is not judged further."""
    address, port = server
    asked = Flow(source=own, destination=address, protocol="udp", port=port, vpc_id=vpc_id)
    refusal = explain(world, asked).refusal
    if refusal is not None:
        said = f"{host} is asked of {address} ({origin}), which is not reached: {refusal.sentence}"
        return replace(refusal, gate="dns", sentence=said)
    said = f"{host} is asked of {address} ({origin}); Cloister cannot tell what that server answers."
    return Step(gate="dns", allowed=False, origin=origin, sentence=said)


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
