"""DHCP options: sets made, described, associated with VPCs, deleted. The default set is not stored."""

from __future__ import annotations

from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.parameters import exclusive, on, only
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import NO_DHCP_OPTIONS, VPCS
from cloister.vpc import dhcp
from cloister.vpc.model import DhcpOptions, Vpc
from cloister.wire.errors import AwsError


def _default(call: Call) -> DhcpOptions:
    return DhcpOptions(
        options_id=dhcp.default_id(call.region, call.account), options=dhcp.default_options(call.region)
    )


def _shape(call: Call, options: DhcpOptions) -> Params:
    return {
        "DhcpOptionsId": options.options_id,
        "OwnerId": call.account,
        "DhcpConfigurations": [
            {"Key": key, "Values": [{"Value": value} for value in values]}
            for key, values in options.options.items()
        ],
        "Tags": tag_set(options.tags),
    }


DHCP_OPTIONS: Resource[DhcpOptions] = Resource(
    result="DhcpOptions",
    key=lambda options: options.options_id,
    all=lambda world: world.all(DhcpOptions),
    get=lambda world, options_id: world.get(DhcpOptions, options_id),
    shape=_shape,
    prefix="dopt",
    not_found="InvalidDhcpOptionID.NotFound",
    malformed="InvalidDhcpOptionsId.Malformed",
    missing="The dhcpOption ID '{}' does not exist",
    filters={
        "dhcp-options-id": lambda call, options: options.options_id,
        "key": lambda call, options: tuple(options.options),
        "value": lambda call, options: [value for values in options.options.values() for value in values],
        "owner-id": lambda call, options: call.account,
    },
)


def _find(call: Call, options_id: str) -> DhcpOptions:
    default = _default(call)
    return default if options_id == default.options_id else DHCP_OPTIONS.find(call.tx, options_id)


@operation("ec2", "CreateDhcpOptions", resources=on(dhcp_options="*"))
def create_dhcp_options(call: Call, params: Params) -> Params:
    only(params, "DhcpConfigurations", "TagSpecifications")
    options: dict[str, tuple[str, ...]] = {}
    for each in params.get("DhcpConfigurations", ()):
        # AWS: the servers of one option come as values, or as one value with commas
        values = tuple(one.strip() for value in each.get("Values", ()) for one in value.split(","))
        key = each.get("Key", "")
        wrong = f"The DHCP option '{key}' is given twice." if key in options else dhcp.problem(key, values)
        if wrong is not None:
            raise AwsError("InvalidParameterValue", wrong)
        options[key] = values
    if not options:
        raise AwsError("MissingParameter", "The request must contain the parameter dhcpConfiguration")
    made = DhcpOptions(
        options_id=resource_id("dopt"), options=options, tags=tag_specifications(params, "dhcp-options")
    )
    call.tx.put(made)
    return {"DhcpOptions": _shape(call, made)}


@operation("ec2", "DescribeDhcpOptions")
def describe_dhcp_options(call: Call, params: Params) -> Params:
    exclusive(params, "DhcpOptionsIds", "MaxResults")
    wanted = dict.fromkeys(params.get("DhcpOptionsIds", ()))
    among = [_find(call, each) for each in wanted] or [_default(call), *call.tx.all(DhcpOptions)]
    return DHCP_OPTIONS.describe(call, params, among=among)


@operation("ec2", "AssociateDhcpOptions", resources=on(dhcp_options="DhcpOptionsId", vpc="VpcId"))
def associate_dhcp_options(call: Call, params: Params) -> Params:
    """ "default" stands for no set at all, as on AWS; the default set has an id."""
    vpc = VPCS.find(call.tx, params["VpcId"])
    stored = ""
    if params["DhcpOptionsId"] != NO_DHCP_OPTIONS:
        chosen = _find(call, params["DhcpOptionsId"]).options_id
        stored = "default" if chosen == dhcp.default_id(call.region, call.account) else chosen
    call.tx.put(replace(vpc, dhcp_options_id=stored))
    return {}


@operation("ec2", "DeleteDhcpOptions", resources=on(dhcp_options="DhcpOptionsId"))
def delete_dhcp_options(call: Call, params: Params) -> Params:
    """Not while a VPC has it. Choice of ours: the default set stays."""
    chosen = _find(call, params["DhcpOptionsId"])
    if chosen.options_id == dhcp.default_id(call.region, call.account):
        raise AwsError(
            "OperationNotPermitted", f"The default dhcpOptions '{chosen.options_id}' cannot be deleted."
        )
    if any(vpc.dhcp_options_id == chosen.options_id for vpc in call.tx.all(Vpc)):
        raise AwsError(
            "DependencyViolation",
            f"The dhcpOptions '{chosen.options_id}' has dependencies and cannot be deleted.",
        )
    call.tx.delete(DhcpOptions, chosen.options_id)
    return {}
