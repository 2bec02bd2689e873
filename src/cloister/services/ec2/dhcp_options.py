"""DHCP options: the one default set of the account, read only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.wire.errors import AwsError


@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpOptions:
    options_id: str
    options: dict[str, tuple[str, ...]]


def default_options_id(region: str, account: str) -> str:
    """The same for the life of an account in a region, without being stored."""
    return "dopt-0" + hashlib.sha256(f"{account}/{region}/default".encode()).hexdigest()[:16]


def domain_name(region: str) -> str:
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def options_id(call: Call, stored: str) -> str:
    """A VPC's DhcpOptionsId: it stores "default" for the default set."""
    return default_options_id(call.region, call.account) if stored == "default" else stored


def _default(call: Call) -> DhcpOptions:
    return DhcpOptions(
        options_id=default_options_id(call.region, call.account),
        options={"domain-name": (domain_name(call.region),), "domain-name-servers": ("AmazonProvidedDNS",)},
    )


DHCP_OPTIONS: Resource[DhcpOptions] = Resource(
    result="DhcpOptions",
    key=lambda options: options.options_id,
    all=lambda world: (),
    shape=lambda call, options: {
        "DhcpOptionsId": options.options_id,
        "OwnerId": call.account,
        "DhcpConfigurations": [
            {"Key": key, "Values": [{"Value": value} for value in values]}
            for key, values in options.options.items()
        ],
        "Tags": tag_set({}),
    },
    filters={
        "dhcp-options-id": lambda call, options: options.options_id,
        "key": lambda call, options: tuple(options.options),
        "value": lambda call, options: [value for values in options.options.values() for value in values],
        "owner-id": lambda call, options: call.account,
    },
)


@operation("ec2", "DescribeDhcpOptions")
def describe_dhcp_options(call: Call, params: Params) -> Params:
    default = _default(call)
    for options_id in params.get("DhcpOptionsIds", ()):
        if options_id != default.options_id:
            raise AwsError("InvalidDhcpOptionID.NotFound", f"The dhcpOption ID '{options_id}' does not exist")
    return DHCP_OPTIONS.describe(call, params, among=[default])
