"""Flow log records: fields, formats, lines, and where they go. Pure.

AWS: VPC guide, "Flow log records" (fields and versions), "Flow log files" (keys in S3).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.vpc.flow_logs import FlowLog
from cloister.wire.errors import AwsError

#: a field -> the version of the format that brought it
VERSIONS: dict[str, int] = {
    name: version
    for version, names in {
        2: "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end"
        " action log-status",
        3: "vpc-id subnet-id instance-id tcp-flags type pkt-srcaddr pkt-dstaddr",
        4: "region az-id sublocation-type sublocation-id",
        5: "pkt-src-aws-service pkt-dst-aws-service flow-direction traffic-path",
        7: "ecs-cluster-arn ecs-cluster-name ecs-container-instance-arn ecs-container-instance-id"
        " ecs-container-id ecs-second-container-id ecs-service-name ecs-task-definition-arn ecs-task-arn"
        " ecs-task-id",
    }.items()
    for name in names.split()
}
DEFAULT_FORMAT = " ".join(f"${{{name}}}" for name, version in VERSIONS.items() if version == 2)
#: fields that Parquet files hold as numbers, and of how many bits
NUMBERS: dict[str, int] = {
    **dict.fromkeys(("version", "srcport", "dstport", "protocol", "tcp-flags", "traffic-path"), 32),
    **dict.fromkeys(("packets", "bytes", "start", "end"), 64),
}
FIN, SYN, RST, ACK = 1, 2, 4, 16
TCP, UDP = 6, 17

Value = str | int | None
#: the values of a log's fields in its format's order; None is "-"
Record = tuple[Value, ...]


def fields_of(log_format: str) -> tuple[str, ...]:
    """The fields of a format, "${version} ${srcaddr} …". Raises InvalidParameter."""
    names = []
    for word in log_format.split():
        found = re.fullmatch(r"\$\{([a-z0-9-]+)\}", word)
        if found is None or found[1] not in VERSIONS:
            name = found[1] if found else word
            raise AwsError("InvalidParameter", f"LogFormat has an unknown field: {name}")
        if found[1] in names:
            raise AwsError("InvalidParameter", f"LogFormat has a field twice: {found[1]}")
        names.append(found[1])
    if not names:
        raise AwsError("InvalidParameter", "LogFormat has no field")
    return tuple(names)


def version_of(fields: Iterable[str]) -> int:
    """AWS: the version is the highest of the fields specified; 2 at least."""
    return max(2, *(VERSIONS[name] for name in fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An interface as it was when its traffic was counted, at the port of `address`, one of its `addresses`,
    which have the primary one first."""

    interface_id: str
    subnet_id: str
    vpc_id: str
    zone_id: str
    addresses: tuple[str, ...]
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One flow at one interface, as its packets have it."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int
    egress: bool
    accept: bool


@dataclass(slots=True, kw_only=True)
class Counted:
    packets: int = 0
    bytes: int = 0
    flags: int = 0
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What records say beside what was counted. `services` maps an address to AWS's name of the service it
    is of; `paths` a destination to its traffic-path; both as far as they are known."""

    account: str
    region: str
    services: Mapping[str, str]
    paths: Mapping[str, int]


def flow_record(fields: tuple[str, ...], logged: Logged, key: Key, counted: Counted, scene: Scene) -> Record:
    """AWS: srcaddr and dstaddr show the interface's primary private address for its own end; pkt-srcaddr
    and pkt-dstaddr what the packet carries (another of its addresses; the far end of what a NAT gateway
    forwards)."""
    own = logged.addresses[0] if logged.addresses else None
    values: dict[str, Value] = {
        **_common(fields, logged, counted.start, counted.end, "OK", scene),
        "srcaddr": own if key.egress and own else key.source,
        "dstaddr": key.destination if key.egress or not own else own,
        "srcport": key.source_port,
        "dstport": key.destination_port,
        "protocol": key.protocol,
        "packets": counted.packets,
        "bytes": counted.bytes,
        "action": "ACCEPT" if key.accept else "REJECT",
        "tcp-flags": counted.flags,
        "type": "IPv4",
        "pkt-srcaddr": key.source,
        "pkt-dstaddr": key.destination,
        "pkt-src-aws-service": scene.services.get(key.source),
        "pkt-dst-aws-service": scene.services.get(key.destination),
        "flow-direction": "egress" if key.egress else "ingress",
        "traffic-path": scene.paths.get(key.destination) if key.egress else None,
    }
    return tuple(values.get(name) for name in fields)


def empty_record(
    fields: tuple[str, ...], logged: Logged, start: int, end: int, status: str, scene: Scene
) -> Record:
    """NODATA or SKIPDATA of an interface."""
    values = _common(fields, logged, start, end, status, scene)
    return tuple(values.get(name) for name in fields)


def _common(
    fields: tuple[str, ...], logged: Logged, start: int, end: int, status: str, scene: Scene
) -> dict[str, Value]:
    # No interface here is an instance's of the customer, and there are no sublocations and no ECS tasks.
    return {
        "version": version_of(fields),
        "account-id": scene.account,
        "interface-id": logged.interface_id,
        "start": start,
        "end": end,
        "log-status": status,
        "vpc-id": logged.vpc_id,
        "subnet-id": logged.subnet_id,
        "region": scene.region,
        "az-id": logged.zone_id,
    }


def line(record: Record) -> str:
    return " ".join("-" if value is None else str(value) for value in record)


# --- where they go ---------------------------------------------------------------------------------------


def stream_name(log: FlowLog, interface_id: str) -> str:
    """AWS: "eni-…-all", "-accept" or "-reject"."""
    return f"{interface_id}-{log.traffic_type.lower()}"


def bucket_and_prefix(destination: str) -> tuple[str, str]:
    """Of "arn:aws:s3:::BUCKET/PREFIX/"; the prefix ends in "/" or is empty."""
    bucket, _, prefix = destination.split(":::", 1)[-1].partition("/")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


def object_key(log: FlowLog, *, account: str, region: str, end: float) -> str:
    """The key of the file of the interval that ends at `end`, POSIX seconds. AWS: the name has the time
    the interval ended and a hash that keeps files apart; here the hash is of the log and the time, so that a
    delivery that is repeated writes the same object."""
    when = datetime.fromtimestamp(end, UTC)
    _, prefix = bucket_and_prefix(log.destination)
    parquet = log.file_format == "parquet"
    if log.hive_partitions:
        folder = (
            f"AWSLogs/aws-account-id={account}/aws-service=vpcflowlogs/aws-region={region}/"
            f"year={when:%Y}/month={when:%m}/day={when:%d}/"
        )
        folder += f"hour={when:%H}/" if log.hour_partitions else ""
    else:
        folder = f"AWSLogs/{account}/vpcflowlogs/{region}/{when:%Y/%m/%d}/"
        folder += f"{when:%H}/" if log.hour_partitions else ""
    digest = hashlib.sha256(f"{log.flow_log_id} {int(end)}".encode()).hexdigest()[:8]
    ending = "log.parquet" if parquet else "log.gz"
    name = f"{account}_vpcflowlogs_{region}_{log.flow_log_id}_{when:%Y%m%dT%H%MZ}_{digest}.{ending}"
    return prefix + folder + name


def text_file(fields: tuple[str, ...], records: Iterable[Record]) -> str:
    """A header with the fields' names, then a line for each record."""
    return "\n".join([" ".join(fields), *map(line, records)]) + "\n"
