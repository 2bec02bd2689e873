"""Availability zones, the region, and the account's attributes.

Cloister serves one region with three zones. Zone ids are made as AWS makes them: us-east-1a is use1-az1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource
from cloister.services.ec2.parameters import only
from cloister.vpc.elastic_ips import ADDRESSES_PER_ACCOUNT
from cloister.vpc.interfaces import GROUPS_PER_INTERFACE
from cloister.vpc.model import Vpc
from cloister.wire.errors import AwsError

_LETTERS = "abc"
_PARTS = {"northeast": "ne", "northwest": "nw", "southeast": "se", "southwest": "sw"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    name: str  # "us-east-1a"
    zone_id: str  # "use1-az1"
    region: str


def zones(region: str) -> tuple[Zone, ...]:
    """The zones of a region, in order."""
    area, *parts, number = region.split("-")
    short = area + "".join(_PARTS.get(part, part[:1]) for part in parts) + number
    return tuple(
        Zone(name=region + letter, zone_id=f"{short}-az{i}", region=region)
        for i, letter in enumerate(_LETTERS, start=1)
    )


def zone_of(region: str, name: str | None, zone_id: str | None) -> Zone:
    """The zone asked for by name or by id, else the first one, as AWS chooses when neither is given.
    Raises InvalidParameterValue naming the zones there are."""
    known = zones(region)
    for zone in known:
        if (name is None or zone.name == name) and (zone_id is None or zone.zone_id == zone_id):
            return zone
    value, parameter = (name, "availabilityZone") if name is not None else (zone_id, "availabilityZoneId")
    names = ", ".join(zone.name if name is not None else zone.zone_id for zone in known)
    raise AwsError(
        "InvalidParameterValue",
        f"Value ({value}) for parameter {parameter} is invalid. "
        f"Subnets can currently only be created in the following availability zones: {names}.",
    )


ZONES: Resource[Zone] = Resource(
    result="AvailabilityZones",
    key=lambda zone: zone.name,
    all=lambda world: (),
    shape=lambda call, zone: {
        "State": "available",
        "OptInStatus": "opt-in-not-required",
        "Messages": [],
        "RegionName": zone.region,
        "ZoneName": zone.name,
        "ZoneId": zone.zone_id,
        "GroupName": zone.region,
        "NetworkBorderGroup": zone.region,
        "ZoneType": "availability-zone",
    },
    filters={
        "group-long-name": lambda call, zone: None,
        "group-name": lambda call, zone: zone.region,
        "message": lambda call, zone: None,
        "opt-in-status": lambda call, zone: "opt-in-not-required",
        "parent-zone-id": lambda call, zone: None,
        "parent-zone-name": lambda call, zone: None,
        "region-name": lambda call, zone: zone.region,
        "state": lambda call, zone: "available",
        "zone-id": lambda call, zone: zone.zone_id,
        "zone-name": lambda call, zone: zone.name,
        "zone-type": lambda call, zone: "availability-zone",
    },
)


@operation("ec2", "DescribeAvailabilityZones")
def describe_availability_zones(call: Call, params: Params) -> Params:
    """AllAvailabilityZones adds Local and Wavelength Zones, of which there are none."""
    found: Sequence[Zone] = zones(call.region)
    for member, attribute, parameter in (
        ("ZoneNames", "name", "availabilityZone"),
        ("ZoneIds", "zone_id", "zoneId"),
    ):
        wanted = params.get(member, ())
        unknown = [
            one for one in wanted if one not in {getattr(zone, attribute) for zone in zones(call.region)}
        ]
        if unknown:
            raise AwsError("InvalidParameterValue", f"Invalid {parameter}: [{', '.join(unknown)}]")
        if wanted:
            found = [zone for zone in found if getattr(zone, attribute) in wanted]
    return ZONES.describe(call, params, among=found)


REGIONS: Resource[str] = Resource(
    result="Regions",
    key=lambda region: region,
    all=lambda world: (),
    shape=lambda call, region: {
        "RegionName": region,
        "Endpoint": f"ec2.{region}.amazonaws.com",
        "OptInStatus": "opt-in-not-required",
    },
    filters={
        "endpoint": lambda call, region: f"ec2.{region}.amazonaws.com",
        "opt-in-status": lambda call, region: "opt-in-not-required",
        "region-name": lambda call, region: region,
    },
)


@operation("ec2", "DescribeRegions")
def describe_regions(call: Call, params: Params) -> Params:
    """The one region that this Cloister serves: others cannot be reached here."""
    only(params, "RegionNames", "AllRegions", "Filters")
    unknown = [name for name in params.get("RegionNames", ()) if name != call.region]
    if unknown:
        raise AwsError("InvalidParameterValue", f"Invalid region names: [{', '.join(unknown)}]")
    return REGIONS.describe(call, params, among=[call.region])


@operation("ec2", "DescribeAccountAttributes")
def describe_account_attributes(call: Call, params: Params) -> Params:
    default = next((vpc.vpc_id for vpc in call.tx.all(Vpc) if vpc.is_default), "none")
    values = {
        "supported-platforms": "VPC",
        "default-vpc": default,
        "vpc-max-security-groups-per-interface": str(GROUPS_PER_INTERFACE),
        "max-elastic-ips": str(ADDRESSES_PER_ACCOUNT),
        "vpc-max-elastic-ips": str(ADDRESSES_PER_ACCOUNT),
    }
    wanted = params.get("AttributeNames") or list(values)
    unknown = [name for name in wanted if name not in values]
    if unknown:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({unknown[0]}) for parameter attributeName is invalid. Unknown attribute.",
        )
    return {
        "AccountAttributes": [
            {"AttributeName": name, "AttributeValues": [{"AttributeValue": values[name]}]} for name in wanted
        ]
    }
