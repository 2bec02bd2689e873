"""Interface endpoints: an interface in each subnet, groups on it, private DNS. endpoints.py has the calls."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params
from cloister.services.ec2.security_groups import GROUPS
from cloister.services.ec2.subnets import SUBNETS
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.vpc import interface_endpoints as names
from cloister.vpc.endpoints import s3_service_name
from cloister.vpc.interface_endpoints import ENDPOINT_INTERFACE, InterfaceService
from cloister.vpc.interfaces import GROUPS_PER_INTERFACE, create_interface, default_group, regroup, release
from cloister.vpc.model import NetworkInterface, SecurityGroup, Subnet, Vpc, VpcEndpoint
from cloister.wire.errors import AwsError

#: AWS: interfaces of endpoints belong to a service of this name
REQUESTER = "amazon-vpc-endpoints"
#: parameters that only interface endpoints have
PARAMETERS = (
    "SubnetIds",
    "SecurityGroupIds",
    "SubnetConfigurations",
    "PrivateDnsEnabled",
    "DnsOptions",
    "IpAddressType",
    "AddSubnetIds",
    "RemoveSubnetIds",
    "AddSecurityGroupIds",
    "RemoveSecurityGroupIds",
)


def shape(call: Call, endpoint: VpcEndpoint) -> Params:
    """The members of an endpoint's description that only interface endpoints fill."""
    groups = [call.tx.get(SecurityGroup, group_id) for group_id in endpoint.group_ids]
    described: Params = {
        "SubnetIds": list(endpoint.subnet_ids),
        "Groups": [{"GroupId": one.group_id, "GroupName": one.name} for one in groups if one],
        "PrivateDnsEnabled": endpoint.private_dns_enabled,
        "NetworkInterfaceIds": list(endpoint.interface_ids),
        "DnsEntries": _dns_entries(call, endpoint),
        "IpAddressType": "ipv4",
        "DnsOptions": {"DnsRecordIpType": "ipv4"},
    }
    if endpoint.service_name == s3_service_name(call.region):
        inbound = endpoint.private_dns_only_inbound
        described["DnsOptions"]["PrivateDnsOnlyForInboundResolverEndpoint"] = inbound
    return described


def _dns_entries(call: Call, endpoint: VpcEndpoint) -> list[Params]:
    public = _hosted_zone(f"{call.region}.vpce.amazonaws.com")
    entries = [
        {"DnsName": name, "HostedZoneId": public} for name in names.own_names(call.tx, endpoint, call.region)
    ]
    for name in names.private_names(endpoint, call.region):
        zone = _hosted_zone(f"{endpoint.endpoint_id}/{name.removeprefix('*.')}")
        entries.append({"DnsName": name, "HostedZoneId": zone})
    return entries


def _hosted_zone(domain: str) -> str:
    """An id as Route 53 gives, always the same for one zone."""
    return "Z" + hashlib.sha256(domain.encode()).hexdigest()[:19].upper()


def make(call: Call, params: Params, policy: str) -> VpcEndpoint:
    """Put a new endpoint and its interfaces into the transaction.

    Raises InvalidServiceName, InvalidParameter, InvalidSubnetID.NotFound, InvalidGroup.NotFound,
    DuplicateSubnetsInSameZone, InsufficientFreeAddressesInSubnet."""
    vpc = VPCS.find(call.tx, params["VpcId"])
    service = _service(call, params["ServiceName"])
    _only_ipv4(params)
    private, inbound = _private_dns(call, vpc, service, params)
    endpoint = VpcEndpoint(
        endpoint_id=resource_id("vpce"),
        vpc_id=vpc.vpc_id,
        service_name=params["ServiceName"],
        kind="Interface",
        policy=policy,
        created=call.now,
        state="pending",
        group_ids=_groups(call, vpc.vpc_id, params.get("SecurityGroupIds", ())),
        private_dns_enabled=private,
        private_dns_only_inbound=inbound,
        tags=tag_specifications(params, "vpc-endpoint"),
    )
    wanted = _wanted_addresses(params)
    endpoint = _grow(call, endpoint, [*params.get("SubnetIds", ()), *wanted], wanted)
    call.tx.put(endpoint)
    return endpoint


def modify(call: Call, endpoint: VpcEndpoint, params: Params, policy: str) -> None:
    """Subnets and groups come and go, private DNS is switched. Raises as `make` does."""
    vpc = VPCS.find(call.tx, endpoint.vpc_id)
    _only_ipv4(params)
    endpoint = replace(endpoint, policy=policy)
    endpoint = _shrink(call, endpoint, params.get("RemoveSubnetIds", ()))
    group_ids = _changed_groups(call, endpoint, params)
    if group_ids != endpoint.group_ids:
        endpoint = replace(endpoint, group_ids=group_ids)
        for interface_id in endpoint.interface_ids:
            interface = call.tx.get(NetworkInterface, interface_id)
            if interface is not None:
                regroup(call.tx, interface, group_ids)
    wanted = _wanted_addresses(params)
    moved = [subnet_id for subnet_id in wanted if subnet_id in endpoint.subnet_ids]
    endpoint = _grow(call, _shrink(call, endpoint, moved), [*params.get("AddSubnetIds", ()), *wanted], wanted)
    if "PrivateDnsEnabled" in params or "DnsOptions" in params:
        service = _service(call, endpoint.service_name)
        private, inbound = _private_dns(call, vpc, service, params, endpoint)
        endpoint = replace(endpoint, private_dns_enabled=private, private_dns_only_inbound=inbound)
    call.tx.put(endpoint)


def remove(call: Call, endpoint: VpcEndpoint) -> None:
    """Delete an endpoint; its interfaces go with it."""
    for interface_id in endpoint.interface_ids:
        release(call.tx, interface_id)
    call.tx.delete(VpcEndpoint, endpoint.endpoint_id)


def _service(call: Call, service_name: str) -> InterfaceService:
    service = names.service_named(service_name, call.region)
    if service is None:
        raise AwsError("InvalidServiceName", f"The Vpc Endpoint Service '{service_name}' does not exist")
    return service


def _only_ipv4(params: Params) -> None:
    options = params.get("DnsOptions") or {}
    for what, value in (
        ("IpAddressType", params.get("IpAddressType")),
        ("DnsRecordIpType", options.get("DnsRecordIpType")),
    ):
        if value not in (None, "ipv4"):
            raise AwsError(
                "UnsupportedOperation",
                f"{what} '{value}' is not supported: Cloister does not implement it, only ipv4.",
            )
    for name in ("PrivateDnsPreference", "PrivateDnsSpecifiedDomains"):
        if options.get(name):
            raise AwsError(
                "InvalidParameter", f"{name} is not supported for endpoints of the type Interface."
            )


def _private_dns(
    call: Call, vpc: Vpc, service: InterfaceService, params: Params, endpoint: VpcEndpoint | None = None
) -> tuple[bool, bool]:
    """Whether private DNS is on, and for inbound resolvers only. Our choice where the API documents no
    default: a new endpoint of a service with private names has them."""
    service_name = service.name(call.region)
    before = endpoint.private_dns_enabled if endpoint else service.has_private_names
    enabled = bool(params.get("PrivateDnsEnabled", before))
    both = service_name == s3_service_name(call.region)
    asked = (params.get("DnsOptions") or {}).get("PrivateDnsOnlyForInboundResolverEndpoint")
    if asked and not both:
        raise AwsError(
            "InvalidParameter",
            f"PrivateDnsOnlyForInboundResolverEndpoint is not supported for the service {service_name}.",
        )
    if not enabled:
        return False, False
    if not service.has_private_names:
        raise AwsError(
            "InvalidParameter",
            f"Private DNS can't be enabled because the service {service_name} does not provide a private "
            "DNS name.",
        )
    if not (vpc.enable_dns_support and vpc.enable_dns_hostnames):
        raise AwsError(
            "InvalidParameter",
            "Enabling private DNS requires both enableDnsSupport and enableDnsHostnames VPC attributes set "
            f"to true for {vpc.vpc_id}",
        )
    was_inbound = endpoint.private_dns_only_inbound if endpoint and endpoint.private_dns_enabled else both
    inbound = was_inbound if asked is None else bool(asked)
    siblings = [
        other
        for other in call.tx.where(VpcEndpoint, vpc_id=vpc.vpc_id)
        if other.service_name == service_name
        and (endpoint is None or other.endpoint_id != endpoint.endpoint_id)
    ]
    if inbound and not any(other.kind == "Gateway" for other in siblings):
        raise AwsError(
            "InvalidParameter",
            f"To set PrivateDnsOnlyForInboundResolverEndpoint to true, the VPC {vpc.vpc_id} must have a "
            "Gateway endpoint for the service.",
        )
    if any(other.private_dns_enabled for other in siblings):
        raise AwsError(
            "InvalidParameter",
            "private-dns-enabled cannot be set because there is already a conflicting DNS domain for "
            f"{service.private_names(call.region)[0]} in the VPC {vpc.vpc_id}",
        )
    return True, inbound


def _groups(call: Call, vpc_id: str, group_ids: Sequence[str]) -> tuple[str, ...]:
    """The groups given, of this VPC; without any, its default group."""
    chosen = tuple(dict.fromkeys(group_ids))
    if not chosen:
        group = default_group(call.tx, vpc_id)
        return (group.group_id,) if group is not None else ()
    for group_id in chosen:
        if GROUPS.find(call.tx, group_id).vpc_id != vpc_id:
            raise AwsError(
                "InvalidParameter",
                f"Security group {group_id} and VPC {vpc_id} belong to different networks.",
            )
    if len(chosen) > GROUPS_PER_INTERFACE:
        raise AwsError(
            "SecurityGroupsPerInterfaceLimitExceeded",
            "You have exceeded the number of security groups allowed per network interface: "
            f"{len(chosen)} given, the limit is {GROUPS_PER_INTERFACE}.",
        )
    return chosen


def _changed_groups(call: Call, endpoint: VpcEndpoint, params: Params) -> tuple[str, ...]:
    added, removed = params.get("AddSecurityGroupIds", ()), params.get("RemoveSecurityGroupIds", ())
    if not added and not removed:
        return endpoint.group_ids
    for group_id in removed:
        if group_id not in endpoint.group_ids:
            raise AwsError(
                "InvalidParameter",
                f"The security group {group_id} is not associated with the endpoint {endpoint.endpoint_id}.",
            )
    left = [*(one for one in endpoint.group_ids if one not in removed), *added]
    if not left:
        raise AwsError("InvalidParameter", "An interface endpoint needs at least one security group.")
    return _groups(call, endpoint.vpc_id, left)


def _wanted_addresses(params: Params) -> dict[str, str]:
    """Subnet -> the address asked for in it."""
    wanted: dict[str, str] = {}
    for each in params.get("SubnetConfigurations", ()):
        if each.get("Ipv6"):
            raise AwsError(
                "UnsupportedOperation",
                f"The address {each['Ipv6']} is not supported: Cloister does not implement IPv6.",
            )
        if not each.get("SubnetId") or not each.get("Ipv4"):
            raise AwsError("InvalidParameter", "A subnet configuration needs SubnetId and Ipv4.")
        wanted[each["SubnetId"]] = each["Ipv4"]
    return wanted


def _grow(
    call: Call, endpoint: VpcEndpoint, subnet_ids: Sequence[str], wanted: dict[str, str]
) -> VpcEndpoint:
    """An interface in each further subnet. AWS: one subnet of a zone."""
    for subnet_id in dict.fromkeys(subnet_ids):
        subnet = SUBNETS.find(call.tx, subnet_id)
        if subnet.vpc_id != endpoint.vpc_id:
            raise AwsError(
                "InvalidParameter",
                f"Subnet {subnet_id} and VPC {endpoint.vpc_id} belong to different networks.",
            )
        if subnet_id in endpoint.subnet_ids:
            continue
        served = [call.tx.get(Subnet, each) for each in endpoint.subnet_ids]
        if any(other is not None and other.zone == subnet.zone for other in served):
            raise AwsError(
                "DuplicateSubnetsInSameZone",
                f"Found another VPC endpoint subnet in the availability zone of {subnet_id}",
            )
        interface = create_interface(
            call.tx,
            subnet_id=subnet_id,
            group_ids=endpoint.group_ids,
            now=call.now,
            addresses=[wanted[subnet_id]] if subnet_id in wanted else (),
            attach=("",),
            description=f"VPC Endpoint Interface {endpoint.endpoint_id}",
            requester_managed=True,
            requester_id=REQUESTER,
            interface_type=ENDPOINT_INTERFACE,
        )
        endpoint = replace(
            endpoint,
            subnet_ids=(*endpoint.subnet_ids, subnet_id),
            interface_ids=(*endpoint.interface_ids, interface.interface_id),
        )
    return endpoint


def _shrink(call: Call, endpoint: VpcEndpoint, subnet_ids: Sequence[str]) -> VpcEndpoint:
    for subnet_id in dict.fromkeys(subnet_ids):
        if subnet_id not in endpoint.subnet_ids:
            raise AwsError(
                "InvalidParameter",
                f"The subnet {subnet_id} is not associated with the endpoint {endpoint.endpoint_id}.",
            )
        release(call.tx, endpoint.interface_ids[endpoint.subnet_ids.index(subnet_id)])
    kept = [
        (subnet_id, interface_id)
        for subnet_id, interface_id in zip(endpoint.subnet_ids, endpoint.interface_ids, strict=True)
        if subnet_id not in subnet_ids
    ]
    return replace(
        endpoint,
        subnet_ids=tuple(subnet_id for subnet_id, _ in kept),
        interface_ids=tuple(interface_id for _, interface_id in kept),
    )
