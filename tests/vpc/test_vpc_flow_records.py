from __future__ import annotations

import pytest

from cloister.vpc.flow_logs import FlowLog
from cloister.vpc.flow_records import (
    DEFAULT_FORMAT,
    VERSIONS,
    Counted,
    Key,
    Logged,
    Scene,
    empty_record,
    fields_of,
    flow_record,
    line,
    object_key,
    stream_name,
    text_file,
    version_of,
)
from cloister.wire.errors import AwsError

LOGGED = Logged(
    interface_id="eni-1",
    subnet_id="subnet-1",
    vpc_id="vpc-1",
    zone_id="use1-az1",
    addresses=("10.0.0.5", "10.0.0.6"),
)
SCENE = Scene(
    account="123456789012", region="us-east-1", services={"52.216.0.1": "S3"}, paths={"52.216.0.1": 7}
)


def written(log_format: str, *, egress: bool = True, **changes: object) -> str:
    near, far = ("10.0.0.6", 40000), ("52.216.0.1", 443)
    (source, source_port), (destination, destination_port) = (near, far) if egress else (far, near)
    key = Key(
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        protocol=6,
        egress=egress,
        accept=bool(changes.get("accept", True)),
    )
    counted = Counted(packets=20, bytes=4249, flags=3, start=1418530010, end=1418530070)
    return line(flow_record(fields_of(log_format), LOGGED, key, counted, SCENE))


def test_the_default_format_is_version_2s() -> None:
    assert DEFAULT_FORMAT == (
        "${version} ${account-id} ${interface-id} ${srcaddr} ${dstaddr} ${srcport} ${dstport} ${protocol} "
        "${packets} ${bytes} ${start} ${end} ${action} ${log-status}"
    )
    assert written(DEFAULT_FORMAT) == (
        "2 123456789012 eni-1 10.0.0.5 52.216.0.1 40000 443 6 20 4249 1418530010 1418530070 ACCEPT OK"
    )
    assert written(DEFAULT_FORMAT, egress=False, accept=False) == (
        "2 123456789012 eni-1 52.216.0.1 10.0.0.5 443 40000 6 20 4249 1418530010 1418530070 REJECT OK"
    )


@pytest.mark.parametrize(
    ("log_format", "expected"),
    [
        ("${bytes} ${version}", "4249 2"),
        ("${version} ${vpc-id} ${subnet-id} ${instance-id}", "3 vpc-1 subnet-1 -"),
        ("${tcp-flags} ${type} ${srcaddr} ${pkt-srcaddr}", "3 IPv4 10.0.0.5 10.0.0.6"),
        ("${region} ${az-id} ${sublocation-type} ${sublocation-id} ${version}", "us-east-1 use1-az1 - - 4"),
        ("${pkt-src-aws-service} ${pkt-dst-aws-service} ${flow-direction} ${traffic-path}", "- S3 egress 7"),
        ("${version} ${ecs-cluster-arn} ${ecs-task-id}", "7 - -"),
    ],
)
def test_custom_formats_have_their_fields_in_order_and_the_highest_version(
    log_format: str, expected: str
) -> None:
    assert written(log_format) == expected


def test_a_traffic_path_is_only_of_what_leaves() -> None:
    assert written("${flow-direction} ${traffic-path} ${pkt-dstaddr}", egress=False) == "ingress - 10.0.0.6"


def test_every_field_has_a_version_and_unknown_ones_are_refused() -> None:
    everything = " ".join(f"${{{name}}}" for name in VERSIONS)
    assert len(written(everything).split(" ")) == len(VERSIONS) == 39
    assert version_of(fields_of(everything)) == 7
    for wrong in ("", "version", "${version}${bytes}", "${colour}", "${bytes} ${bytes}", "${BYTES}"):
        with pytest.raises(AwsError, match="LogFormat"):
            fields_of(wrong)


def test_intervals_without_flows_have_dashes() -> None:
    fields = fields_of(DEFAULT_FORMAT)
    for status in ("NODATA", "SKIPDATA"):
        record = empty_record(fields, LOGGED, 60, 120, status, SCENE)
        assert line(record) == f"2 123456789012 eni-1 - - - - - - - 60 120 - {status}"


def test_files_and_streams_are_named_as_aws_names_them() -> None:
    base = {"resource_id": "vpc-1", "vpc_id": "vpc-1", "log_format": DEFAULT_FORMAT, "created": 0.0}
    where = {"account": "123456789012", "region": "us-east-1", "end": 1_560_000_000.0}
    name = "123456789012_vpcflowlogs_us-east-1_fl-1_20190608T1320Z_"
    hive = "AWSLogs/aws-account-id=123456789012/aws-service=vpcflowlogs/aws-region=us-east-1/"
    hive += "year=2019/month=06/day=08/"
    plain = "AWSLogs/123456789012/vpcflowlogs/us-east-1/2019/06/08/"
    for more, folder, ending in (
        ({}, plain, ".log.gz"),
        ({"hour_partitions": True}, f"{plain}13/", ".log.gz"),
        ({"file_format": "parquet"}, plain, ".log.parquet"),
        ({"hive_partitions": True}, hive, ".log.gz"),
        ({"hive_partitions": True, "hour_partitions": True}, f"{hive}hour=13/", ".log.gz"),
        ({"destination": "arn:aws:s3:::b/a/c/"}, f"a/c/{plain}", ".log.gz"),
    ):  # fmt: skip
        log = FlowLog(flow_log_id="fl-1", **{"destination": "arn:aws:s3:::b", **base, **more})  # type: ignore[arg-type]
        key = object_key(log, **where)  # type: ignore[arg-type]
        assert key.startswith(folder + name), key
        assert key.endswith(ending)
        assert len(key) == len(folder + name + ending) + 8
    reject = FlowLog(flow_log_id="fl-1", traffic_type="REJECT", **base)  # type: ignore[arg-type]
    assert stream_name(reject, "eni-1") == "eni-1-reject"


def test_a_text_file_has_a_header() -> None:
    assert text_file(("version", "bytes"), [(2, 10), (2, None)]) == "version bytes\n2 10\n2 -\n"
