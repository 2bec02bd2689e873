"""What an EC2 call needs, and what conditions can ask about each resource of it.

AWS ("Actions, resources, and condition keys for Amazon EC2", Service Authorization Reference): keys belong
to a resource. A request's tags are those of what it makes, and are asked for there and of `ec2:CreateTags`,
which the caller needs as well ("Grant permission to tag resources during creation").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cloister.iam.context import request_tags, resource_tags
from cloister.services.api import NEEDS, Call, Need, Operation, Params, needs_on_resources
from cloister.services.ec2.describe import tags_of
from cloister.services.ec2.tags import document_of, resource_type
from cloister.vpc.model import NetworkInterface, Subnet, VpcEndpoint, VpcPeering

#: kinds of resources with a key for their own id
_ID_KEYS = {
    "dhcp-options": "ec2:DhcpOptionsID",
    "elastic-ip": "ec2:AllocationId",
    "internet-gateway": "ec2:InternetGatewayID",
    "network-acl": "ec2:NetworkAclID",
    "network-interface": "ec2:NetworkInterfaceID",
    "route-table": "ec2:RouteTableID",
    "security-group": "ec2:SecurityGroupID",
    "subnet": "ec2:SubnetID",
    "vpc": "ec2:VpcID",
    "vpc-peering-connection": "ec2:VpcPeeringConnectionID",
}
#: kinds that lie in a VPC and have the key `ec2:Vpc`
_IN_VPC = frozenset({"subnet", "security-group", "network-interface", "route-table", "network-acl"})


def needs(call: Call, operation: Operation, params: Params) -> list[Need]:
    specified = _specified(operation, params)

    def keys(call: Call, arn: str) -> dict[str, Any]:
        kind, _, name = arn.rpartition(":")[2].partition("/")
        if not name or name == "*":
            return _of_what_is_made(call, kind, params) | specified.get(kind, {})
        return _of_resource(call, kind, name)

    found = needs_on_resources(call, operation, params, keys)
    if operation.name in ("CreateTags", "DeleteTags"):
        asked = request_tags(_by_key(params.get("Tags", ())))
        return [
            Need(action=need.action, resource=need.resource, context=need.context | asked) for need in found
        ]
    for kind, tags in specified.items():
        made = _of_what_is_made(call, kind, params) | tags | {"ec2:CreateAction": operation.name}
        found.append(Need(action="ec2:CreateTags", resource=call.arn("ec2", f"{kind}/*"), context=made))
    return found


def _specified(operation: Operation, params: Params) -> dict[str, dict[str, Any]]:
    """Kind of resource -> the keys of the tags that the request gives to it."""
    given = params.get("TagSpecifications", ())
    found: dict[str, list[Params]] = {}
    for one in given:
        if one.get("Tags"):
            found.setdefault(one.get("ResourceType", ""), []).extend(one["Tags"])
    return {kind: request_tags(_by_key(tags)) for kind, tags in found.items()}


def _by_key(tags: Iterable[Params]) -> dict[str, str]:
    return {tag.get("Key", ""): tag.get("Value", "") for tag in tags}


def _of_what_is_made(call: Call, kind: str, params: Params) -> dict[str, Any]:
    """Of a resource that is not there yet: where it will lie."""
    keys: dict[str, Any] = {"ec2:Region": call.region}
    if kind == "network-interface":
        keys |= _of_subnet(call, params.get("SubnetId"))
    elif kind in _IN_VPC and params.get("VpcId"):
        keys["ec2:Vpc"] = call.arn("ec2", f"vpc/{params['VpcId']}")
    if kind == "subnet" and params.get("AvailabilityZone"):
        keys["ec2:AvailabilityZone"] = params["AvailabilityZone"]
    if kind == "vpc-peering-connection":
        keys["ec2:RequesterVpc"] = call.arn("ec2", f"vpc/{params.get('VpcId')}")
        keys["ec2:AccepterVpc"] = call.arn("ec2", f"vpc/{params.get('PeerVpcId')}")
    return keys


def _of_subnet(call: Call, subnet_id: str | None) -> dict[str, Any]:
    subnet = call.tx.get(Subnet, subnet_id)
    if subnet is None:
        return {}
    return {
        "ec2:Subnet": call.arn("ec2", f"subnet/{subnet.subnet_id}"),
        "ec2:Vpc": call.arn("ec2", f"vpc/{subnet.vpc_id}"),
        "ec2:AvailabilityZone": subnet.zone,
    }


def _of_resource(call: Call, kind: str, name: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"ec2:Region": call.region}
    if kind in _ID_KEYS:
        keys[_ID_KEYS[kind]] = name
    found = document_of(call.tx, name)
    if found is None or resource_type(name) != kind:  # an id of another kind names nothing here
        return keys
    keys |= resource_tags("ec2", tags_of(found))
    if kind in _IN_VPC:
        keys["ec2:Vpc"] = call.arn("ec2", f"vpc/{found.vpc_id}")
    match found:
        case NetworkInterface():
            keys |= _of_subnet(call, found.subnet_id)
        case Subnet():
            keys["ec2:AvailabilityZone"] = found.zone
        case VpcEndpoint():
            keys["ec2:VpceServiceName"] = found.service_name
            keys["ec2:VpceServiceOwner"] = "amazon"
        case VpcPeering():
            keys["ec2:RequesterVpc"] = call.arn("ec2", f"vpc/{found.requester_vpc_id}")
            keys["ec2:AccepterVpc"] = call.arn("ec2", f"vpc/{found.accepter_vpc_id}")
    return keys


NEEDS["ec2"] = needs
