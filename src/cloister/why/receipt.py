"""The receipt of a job: what it reached, what it was refused, in which network, with which data. Signed.

A receipt is {"receipt": BODY, "signature": {"algorithm", "public_key", "value"}}; signed is BODY as canonical
JSON (sorted members, no spaces, UTF-8) with Ed25519. Keys and signatures are in base64. Pure.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.jobs.model import ProcessingJob
from cloister.vpc import route_tables, service_network
from cloister.vpc.flow import Step
from cloister.vpc.model import NetworkAcl, NetworkInterface, SecurityGroup, Subnet, Vpc, VpcEndpoint
from cloister.world import World

VERSION = 1
_ALGORITHM = "Ed25519"
#: what a reader must know of how the numbers came about
NOTES = (
    "Bytes are those of IP packets, as the kernel counted them where the VPC routes; what instances sent to "
    "addresses of their own namespace never left it. ICMP errors about a connection are in no line.",
    "Rules are those at the time when a destination was seen first; the network is that at the job's start.",
    "Decisions of policies are recorded of requests that came in through a VPC endpoint, and of those "
    "that were signed with the job's own keys.",
)


class NotGenuine(ValueError):
    """It is no receipt, or it was changed after it was signed."""


def network_of(world: World, job: ProcessingJob) -> dict[str, Any]:
    """The job's effective network configuration while its interfaces are there."""
    found = (world.get(NetworkInterface, each.interface_id) for each in job.instances)
    interfaces = [interface for interface in found if interface is not None]
    subnet = world.get(Subnet, job.subnet_id)
    if not interfaces or subnet is None:
        return {}
    kept: dict[str, Any] = {
        "instances": {
            each.host: {"interface": each.interface_id, "address": each.address, "agent": each.agent_address}
            for each in job.instances
        },
        "network_isolation": job.isolated,
        "encrypted_between_instances": job.encrypts,
    }
    if service_network.hidden(world, subnet):
        for each in kept["instances"].values():
            del each["interface"]
        return {"network": "the service's own, with internet access"} | kept
    vpc = world.get(Vpc, subnet.vpc_id)
    table = route_tables.of_subnet(world, subnet)
    acl = world.get(NetworkAcl, subnet.network_acl_id)
    groups = (world.get(SecurityGroup, group_id) for group_id in interfaces[0].group_ids)
    return {
        "vpc": {"id": subnet.vpc_id, "cidrs": list(vpc.cidrs) if vpc else []},
        "subnet": {"id": subnet.subnet_id, "cidr": subnet.cidr, "zone": subnet.zone},
        "security_groups": [
            {"id": group.group_id, "rules": [_short(asdict(rule)) for rule in group.rules]}
            for group in groups
            if group is not None
        ],
        "route_table": {
            "id": table.route_table_id,
            "routes": [{"destination": each.destination, "target": each.target} for each in table.routes],
        }
        if table
        else None,
        "network_acl": {
            "id": acl.network_acl_id,
            "entries": [
                asdict(entry) for entry in sorted(acl.entries, key=lambda one: (one.egress, one.number))
            ],
        }
        if acl
        else None,
        "endpoints": [
            {
                "id": each.endpoint_id,
                "service": each.service_name,
                "kind": each.kind,
                "policy": _document(each.policy),
            }
            for each in sorted(
                world.where(VpcEndpoint, vpc_id=subnet.vpc_id), key=lambda one: one.endpoint_id
            )
        ],
    } | kept


def receipt(job: ProcessingJob, record: dict[str, Any], *, now: float) -> dict[str, Any]:
    """The body of a receipt; `record` is what the witness kept."""
    app = job.request["AppSpecification"]
    uris = (
        {each["InputName"]: (each.get("S3Input") or {}).get("S3Uri") for each in job.inputs},
        {each["OutputName"]: (each.get("S3Output") or {}).get("S3Uri") for each in job.outputs},
    )
    data: dict[str, Any] = {"inputs": {}, "outputs": {}}
    for what, channels in sorted(job.moved.items()):
        host, _, task = what.partition("/")
        kind, of = ("inputs", uris[0]) if task == "download" else ("outputs", uris[1])
        for name, digest in sorted(channels.items()):
            data[kind].setdefault(name, {"uri": of.get(name)})[host] = digest
    return {
        "version": VERSION,
        "made": _time(now),
        "job": {
            "name": job.name,
            "arn": job.arn,
            "status": job.status,
            "failure_reason": job.failure_reason,
            "created": _time(job.created),
            "started": _time(job.started),
            "ended": _time(job.ended),
            "role": job.request["RoleArn"],
            "image": app["ImageUri"],
            "entrypoint": app.get("ContainerEntrypoint"),
            "arguments": app.get("ContainerArguments"),
        },
        "network": record["network"],
        "reached": record["flows"],
        "refused": record["refused"],
        "requests": record["requests"],
        "unknown_names": record["unknown_names"],
        "lines_left_out": record["left_out"],
        "connections_may_be_missing": record["gaps"],
        "data": data,
        "notes": list(NOTES),
    }


def refused(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What was refused to a job while it ran, packets before requests before names: "who", "what" in words,
    the "gate", "by" which rule, "why", the "fix", how many "times" of which "unit"."""
    found = [
        {
            "who": each["who"],
            "what": f"{each['who']} to {_place(each['to'], each.get('name'))} {each['protocol']}"
            + (f" port {each['port']}" if each["port"] is not None else ""),
            "gate": each["gate"],
            "by": each["by"],
            "why": each["why"],
            "fix": each["fix"],
            "times": each["packets"],
            "unit": "packets",
        }
        for each in record["refused"]
    ]
    found += [
        {
            "who": each["who"],
            "what": f"{each['who']}: {each['action']} {each['example']}",
            "gate": "policy",
            "by": ", ".join(each["by"]) or None,
            "why": each["why"],
            "fix": each.get("fix"),
            "times": each["count"],
            "unit": "requests",
        }
        for each in record["requests"]
        if each["outcome"] == "refused"
    ]
    found += [
        {
            "who": each["who"],
            "what": f"{each['who']}: the name {each['name']}",
            "gate": each["gate"],
            "by": each["by"],
            "why": each["why"],
            "fix": each["fix"],
            "times": each["questions"],
            "unit": "questions",
        }
        for each in record["unknown_names"]
    ]
    return found


def told_of(refusal: Step | None) -> dict[str, Any]:
    """What a line of a record says of a refusal."""
    return {
        "gate": refusal.gate if refusal else None,
        "by": refusal.origin if refusal else None,
        "why": refusal.sentence if refusal else "The rules have allowed it since.",
        "fix": refusal.fix if refusal else None,
    }


def as_refused(flow: dict[str, Any]) -> dict[str, Any]:
    """A connection that got no further than a gateway, as a line of what was refused."""
    line = {name: flow.get(name) for name in ("who", "name", "protocol", "port")}
    counts = {"packets": flow["packets_sent"], "bytes": flow["bytes_sent"]}
    return {**line, "to": flow["other"], **flow["refusal"], **counts}


def _place(address: str, name: str | None) -> str:
    return f"{name} ({address})" if name else address


def sign(body: dict[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    value = base64.b64encode(key.sign(_canonical(body))).decode()
    return {
        "receipt": body,
        "signature": {"algorithm": _ALGORITHM, "public_key": public, "value": value},
    }


def verify(text: str) -> tuple[dict[str, Any], str]:
    """The body of a genuine receipt, and the public key (base64) that it is signed with. Raises
    NotGenuine."""
    try:
        document = json.loads(text, object_pairs_hook=_once)
        body, signature = document["receipt"], document["signature"]
        known = set(document) == {"receipt", "signature"} and set(signature) == {
            "algorithm",
            "public_key",
            "value",
        }
        if not known or signature["algorithm"] != _ALGORITHM or body["version"] != VERSION:
            raise NotGenuine("not a receipt of a kind that is known here")
        public, value = _bytes(signature["public_key"]), _bytes(signature["value"])
        Ed25519PublicKey.from_public_bytes(public).verify(value, _canonical(body))
    except InvalidSignature:
        raise NotGenuine("the signature is not that of this content: something was changed") from None
    except NotGenuine:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise NotGenuine(f"not a receipt: {error}") from None
    return body, signature["public_key"]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose members are there once: of two, readers may see different ones."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a member is there twice")
    return dict(pairs)


def _bytes(text: str) -> bytes:
    """Base64 in the one form that encoding gives."""
    value = base64.b64decode(text, validate=True)
    if base64.b64encode(value).decode() != text:
        raise ValueError("not base64 as it is written")
    return value


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _short(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, {}, "")}


def _document(policy: str) -> Any:
    try:
        return json.loads(policy) if policy else None
    except ValueError:
        return policy


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
