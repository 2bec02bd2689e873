"""Network ACLs on real packets: stateless, at the subnet's border only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fabric.lab import ANYWHERE, Lab, in_world, rule
from tests.patience import PATIENCE

from cloister.ids import resource_id
from cloister.vpc.model import AclEntry, NetworkAcl, Subnet

pytestmark = pytest.mark.fabric


def _entry(number: int, *, egress: bool, allow: bool = True, protocol: str = "-1", **more: int) -> AclEntry:
    return AclEntry(
        number=number,
        egress=egress,
        allow=allow,
        cidr="0.0.0.0/0",
        protocol=protocol,
        from_port=more.get("low"),
        to_port=more.get("high"),
    )


@in_world
async def test_replies_need_an_entry_of_their_own_and_neighbours_in_the_subnet_none(lab: Lab) -> None:
    vpc, near, _ = await lab.vpc()
    everything = NetworkAcl(
        network_acl_id=resource_id("acl"),
        vpc_id=vpc,
        entries=(_entry(100, egress=True), _entry(100, egress=False)),
    )
    acl = NetworkAcl(network_acl_id=resource_id("acl"), vpc_id=vpc)
    far = Subnet(
        subnet_id=resource_id("subnet"),
        vpc_id=vpc,
        cidr="10.0.1.0/24",
        zone="us-east-1a",
        zone_id="use1-az1",
        network_acl_id=acl.network_acl_id,
    )
    subnet = lab.engine.world.get(Subnet, near)
    assert subnet is not None
    await lab.put(everything, acl, far, replace(subnet, network_acl_id=everything.network_acl_id))
    group = await lab.group(vpc, ANYWHERE, rule(cidr="0.0.0.0/0"))
    client = await lab.interface(near, group)
    server, neighbour = await lab.interface(far.subnet_id, group), await lab.interface(far.subnet_id, group)

    assert not lab.reaches(client, server, 443)
    assert lab.reaches(neighbour, server, 443)
    inbound = _entry(100, egress=False, protocol="6", low=443, high=443)
    await lab.put(replace(acl, entries=(inbound,)))
    assert not lab.reaches(client, server, 443)  # the reply is denied
    replies = _entry(100, egress=True, protocol="6", low=1024, high=65535)
    await lab.put(replace(acl, entries=(inbound, replies)))
    assert lab.reaches(client, server, 443)
    assert not lab.reaches(client, server, 444)
    denial = _entry(50, egress=False, allow=False, protocol="6", low=400, high=500)
    await lab.put(replace(acl, entries=(inbound, replies, denial)))
    assert not lab.reaches(client, server, 443)


@in_world
async def test_a_denying_entry_stops_a_connection_that_is_established(lab: Lab) -> None:
    vpc, near, _ = await lab.vpc()
    acl = NetworkAcl(
        network_acl_id=resource_id("acl"),
        vpc_id=vpc,
        entries=(_entry(100, egress=True), _entry(100, egress=False)),
    )
    far = Subnet(
        subnet_id=resource_id("subnet"),
        vpc_id=vpc,
        cidr="10.0.1.0/24",
        zone="us-east-1a",
        zone_id="use1-az1",
        network_acl_id=acl.network_acl_id,
    )
    await lab.put(acl, far)
    group = await lab.group(vpc, ANYWHERE, rule(cidr="10.0.0.0/16"))
    client, server = await lab.interface(near, group), await lab.interface(far.subnet_id, group)
    listener = lab.listen(server.interface_id, "0.0.0.0", 5000)
    connection = lab.socket(client.interface_id)
    connection.connect((server.addresses[0].address, 5000))
    served, _ = listener.accept()
    served.settimeout(PATIENCE)
    connection.send(b"before")
    assert served.recv(10) == b"before"
    # a security group forgets nothing of a connection it tracks, an ACL tracks none
    await lab.put(replace(group, rules=(ANYWHERE,)))
    connection.send(b"tracked")
    assert served.recv(10) == b"tracked"
    await lab.put(replace(acl, entries=(_entry(100, egress=True),)))
    connection.send(b"after")
    with pytest.raises(TimeoutError):
        served.recv(10)
    served.close()
