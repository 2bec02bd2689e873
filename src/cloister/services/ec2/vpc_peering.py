"""VPC peering connections between two VPCs of the account and Region.

AWS ("VPC peering connection lifecycle"): a request for an unknown VPC or for overlapping blocks fails, one
that nobody accepts expires after seven days; what failed, was rejected or deleted stays listed for two hours.
"""

from __future__ import annotations

from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.network_interfaces import time_text
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.tags import tag_specifications
from cloister.services.ec2.vpcs import VPCS
from cloister.vpc import addresses
from cloister.vpc.model import PEERING_EXPIRES, Vpc, VpcPeering
from cloister.wire.errors import AwsError
from cloister.world import World

#: AWS: failed and deleted ones are visible to the requester for two hours
LISTED_SECONDS = 7_200
_PENDING, _ACTIVE, _FAILED = "pending-acceptance", "active", "failed"
_OPEN = (_PENDING, _ACTIVE)


def _status(call: Call, peering: VpcPeering) -> str:
    if peering.status == _PENDING and call.now >= peering.created + PEERING_EXPIRES:
        return "expired"
    return peering.status


def _message(call: Call, peering: VpcPeering) -> str:
    return {
        _PENDING: f"Pending Acceptance by {call.account}",
        _ACTIVE: "Active",
        _FAILED: "Failed due to incorrect VPC-ID, Account ID, or overlapping CIDR range",
        "rejected": f"Rejected by {call.account}",
        "expired": "Expired",
        "deleted": f"Deleted by {call.account}",
    }[_status(call, peering)]


def _expires(call: Call, peering: VpcPeering) -> float | None:
    return peering.created + PEERING_EXPIRES if _status(call, peering) == _PENDING else None


def _side(call: Call, vpc_id: str, *, resolves: bool, cidrs: bool) -> Params:
    """AWS shows the blocks of the accepter only when it has accepted."""
    shape: Params = {"VpcId": vpc_id, "OwnerId": call.account, "Region": call.region}
    vpc = call.tx.get(Vpc, vpc_id)
    if vpc is not None and cidrs:
        shape["CidrBlock"] = vpc.cidr
        shape["CidrBlockSet"] = [{"CidrBlock": cidr} for cidr in vpc.cidrs]
        shape["PeeringOptions"] = _options(resolves)
    return shape


def _options(resolves: bool) -> Params:
    return {
        "AllowDnsResolutionFromRemoteVpc": resolves,
        "AllowEgressFromLocalClassicLinkToRemoteVpc": False,
        "AllowEgressFromLocalVpcToRemoteClassicLink": False,
    }


def _shape(call: Call, peering: VpcPeering, status: tuple[str, str] | None = None) -> Params:
    code, message = status or (_status(call, peering), _message(call, peering))
    shape: Params = {
        "VpcPeeringConnectionId": peering.peering_id,
        "RequesterVpcInfo": _side(
            call, peering.requester_vpc_id, resolves=peering.requester_resolves, cidrs=True
        ),
        "AccepterVpcInfo": _side(
            call,
            peering.accepter_vpc_id,
            resolves=peering.accepter_resolves,
            cidrs=peering.status == _ACTIVE,
        ),
        "Status": {"Code": code, "Message": message},
        "Tags": tag_set(peering.tags),
    }
    expires = _expires(call, peering)
    if expires is not None:
        shape["ExpirationTime"] = expires
    return shape


def _cidrs(world: World, vpc_id: str) -> tuple[str, ...]:
    vpc = world.get(Vpc, vpc_id)
    return vpc.cidrs if vpc is not None else ()


PEERINGS: Resource[VpcPeering] = Resource(
    result="VpcPeeringConnections",
    ids="VpcPeeringConnectionIds",
    key=lambda peering: peering.peering_id,
    all=lambda world: world.all(VpcPeering),
    get=lambda world, peering_id: world.get(VpcPeering, peering_id),
    shape=_shape,
    prefix="pcx",
    not_found="InvalidVpcPeeringConnectionID.NotFound",
    malformed="InvalidVpcPeeringConnectionId.Malformed",
    missing="The vpcPeeringConnection ID '{}' does not exist",
    filters={
        "accepter-vpc-info.cidr-block": lambda call, one: _cidrs(call.tx, one.accepter_vpc_id),
        "accepter-vpc-info.owner-id": lambda call, one: call.account,
        "accepter-vpc-info.vpc-id": lambda call, one: one.accepter_vpc_id,
        "expiration-time": lambda call, one: time_text(_expires(call, one)),
        "requester-vpc-info.cidr-block": lambda call, one: _cidrs(call.tx, one.requester_vpc_id),
        "requester-vpc-info.owner-id": lambda call, one: call.account,
        "requester-vpc-info.vpc-id": lambda call, one: one.requester_vpc_id,
        "status-code": _status,
        "status-message": _message,
        "vpc-peering-connection-id": lambda call, one: one.peering_id,
    },
)


def _is_listed(call: Call, peering: VpcPeering) -> bool:
    status = _status(call, peering)
    since = peering.created + PEERING_EXPIRES if status == "expired" else peering.changed
    return status in _OPEN or call.now - since < LISTED_SECONDS


@operation("ec2", "CreateVpcPeeringConnection", resources=on(vpc="VpcId", vpc_peering_connection="*"))
def create_vpc_peering_connection(call: Call, params: Params) -> Params:
    """AWS: asking again while a request is pending answers with that request."""
    only(params, "VpcId", "PeerVpcId", "PeerOwnerId", "PeerRegion", "TagSpecifications")
    for name, own in (("PeerOwnerId", call.account), ("PeerRegion", call.region)):
        if params.get(name, own) != own:
            raise AwsError(
                "UnsupportedOperation",
                f"{name} '{params[name]}' is not supported: Cloister has the account {call.account} in "
                f"{call.region}, and no other.",
            )
    require(params, "PeerVpcId")
    vpc, peer = VPCS.find(call.tx, params["VpcId"]), params["PeerVpcId"]
    tags = tag_specifications(params, "vpc-peering-connection")
    for old in [one for one in call.tx.all(VpcPeering) if not _is_listed(call, one)]:
        call.tx.delete(VpcPeering, old.peering_id)
    for other in call.tx.all(VpcPeering):
        if {other.requester_vpc_id, other.accepter_vpc_id} == {vpc.vpc_id, peer}:
            status = _status(call, other)
            if status == _ACTIVE:
                raise AwsError(
                    "VpcPeeringConnectionAlreadyExists",
                    f"VPC peering connection '{other.peering_id}' already exists between '{vpc.vpc_id}' and "
                    f"'{peer}'.",
                )
            if status == _PENDING and other.requester_vpc_id == vpc.vpc_id:
                return {"VpcPeeringConnection": _shape(call, other)}
    peering = VpcPeering(
        peering_id=resource_id("pcx"),
        requester_vpc_id=vpc.vpc_id,
        accepter_vpc_id=peer,
        status=_PENDING if _fits(call.tx, vpc, peer) else _FAILED,
        created=call.now,
        changed=call.now,
        tags=tags,
    )
    call.tx.put(peering)
    initiating = ("initiating-request", f"Initiating Request to {call.account}")
    return {"VpcPeeringConnection": _shape(call, peering, initiating)}


def _fits(world: World, vpc: Vpc, peer_id: str) -> bool:
    peer = world.get(Vpc, peer_id)
    if peer is None or peer.service_owned:
        return False
    return not any(addresses.overlap(one, other) for one in vpc.cidrs for other in peer.cidrs)


@operation("ec2", "DescribeVpcPeeringConnections")
def describe_vpc_peering_connections(call: Call, params: Params) -> Params:
    return PEERINGS.describe(
        call, params, among=[one for one in PEERINGS.all(call.tx) if _is_listed(call, one)]
    )


def _on_both(call: Call, params: Params) -> list[str]:
    """The connection, and the VPC of the one who acts: the accepter's."""
    found = on(vpc_peering_connection="VpcPeeringConnectionId")(call, params)
    peering = call.tx.get(VpcPeering, params.get("VpcPeeringConnectionId"))
    return [*found, call.arn("ec2", f"vpc/{peering.accepter_vpc_id}")] if peering else found


def _moved(call: Call, params: Params, allowed: tuple[str, ...], status: str) -> VpcPeering:
    """The connection in its new status. Raises InvalidStateTransition."""
    peering = PEERINGS.find(call.tx, params["VpcPeeringConnectionId"])
    now = _status(call, peering)
    if now not in allowed:
        raise AwsError(
            "InvalidStateTransition",
            f"Invalid state transition for {peering.peering_id}, attempting to transition from {now} to "
            f"{status}",
        )
    peering = replace(peering, status=status, changed=call.now)
    call.tx.put(peering)
    return peering


@operation("ec2", "AcceptVpcPeeringConnection", resources=_on_both)
def accept_vpc_peering_connection(call: Call, params: Params) -> Params:
    """What may have changed since the request is looked at again: blocks that overlap now fail."""
    require(params, "VpcPeeringConnectionId")
    peering = _moved(call, params, (_PENDING,), _ACTIVE)
    requester = call.tx.get(Vpc, peering.requester_vpc_id)
    if requester is None or not _fits(call.tx, requester, peering.accepter_vpc_id):
        peering = replace(peering, status=_FAILED)
        call.tx.put(peering)
        return {"VpcPeeringConnection": _shape(call, peering)}
    return {"VpcPeeringConnection": _shape(call, peering, ("provisioning", "Provisioning"))}


@operation(
    "ec2",
    "RejectVpcPeeringConnection",
    resources=on(vpc_peering_connection="VpcPeeringConnectionId"),
)
def reject_vpc_peering_connection(call: Call, params: Params) -> Params:
    _moved(call, params, (_PENDING,), "rejected")
    return {"Return": True}


@operation(
    "ec2",
    "DeleteVpcPeeringConnection",
    resources=on(vpc_peering_connection="VpcPeeringConnectionId"),
)
def delete_vpc_peering_connection(call: Call, params: Params) -> Params:
    """Routes to it stay, as black holes; rules that name groups of the peer become stale."""
    _moved(call, params, _OPEN, "deleted")
    return {"Return": True}


_SIDES = {
    "RequesterPeeringConnectionOptions": "requester_resolves",
    "AccepterPeeringConnectionOptions": "accepter_resolves",
}


@operation(
    "ec2",
    "ModifyVpcPeeringConnectionOptions",
    resources=on(vpc_peering_connection="VpcPeeringConnectionId"),
)
def modify_vpc_peering_connection_options(call: Call, params: Params) -> Params:
    """AWS: DNS across a peering is allowed by each side, of an active connection, and both VPCs need DNS
    hostnames and DNS support."""
    only(params, "VpcPeeringConnectionId", *_SIDES)
    peering = PEERINGS.find(call.tx, params["VpcPeeringConnectionId"])
    given = {name: params[name] for name in _SIDES if params.get(name)}
    if not given:
        raise AwsError(
            "MissingParameter",
            "The request must contain the parameter RequesterPeeringConnectionOptions or "
            "AccepterPeeringConnectionOptions",
        )
    for options in given.values():
        only(options, "AllowDnsResolutionFromRemoteVpc")
    if _status(call, peering) != _ACTIVE:
        raise AwsError(
            "OperationNotPermitted",
            f"Options of the vpcPeeringConnection '{peering.peering_id}' can be changed while it is active; "
            f"it is {_status(call, peering)}.",
        )
    answer: Params = {}
    for name, options in given.items():
        resolves = bool(options.get("AllowDnsResolutionFromRemoteVpc", getattr(peering, _SIDES[name])))
        if resolves:
            _check_dns(call.tx, peering)
        peering = (
            replace(peering, requester_resolves=resolves)
            if name == "RequesterPeeringConnectionOptions"
            else replace(peering, accepter_resolves=resolves)
        )
        answer[name] = _options(resolves)
    call.tx.put(peering)
    return answer


def _check_dns(world: World, peering: VpcPeering) -> None:
    for vpc_id in (peering.requester_vpc_id, peering.accepter_vpc_id):
        vpc = world.get(Vpc, vpc_id)
        if vpc is None or not (vpc.enable_dns_hostnames and vpc.enable_dns_support):
            raise AwsError(
                "OperationNotPermitted",
                f"Enabling DNS resolution from a remote VPC requires enableDnsHostnames and enableDnsSupport "
                f"to be true for the vpc '{vpc_id}'.",
            )
