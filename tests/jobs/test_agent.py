"""The agent against a real S3 API (moto's server on loopback): downloads, uploads and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from cloister.jobs import agent, agent_process, uploaded
from cloister.jobs.agent import Channel, Failure, Spec, run
from cloister.jobs.remove import remove_tree
from cloister.jobs.tree import tree


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, request: pytest.FixtureRequest) -> Any:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="secret",
        config=Config(request_checksum_calculation="when_required"),
    )
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    if "bkt" in existing:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="bkt"):
            for each in page.get("Contents", ()):
                client.delete_object(Bucket="bkt", Key=each["Key"])
    else:
        client.create_bucket(Bucket="bkt")
    return client


def _spec(endpoint: str, task: str, *channels: Channel, **more: Any) -> Spec:
    return Spec(
        task=task,
        channels=channels,
        region="us-east-1",
        access_key_id="AKIATEST",
        secret_access_key="secret",
        token="",
        role_arn="arn:aws:iam::123456789012:role/r",
        endpoint_url=endpoint,
        **more,
    )


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_prefix_is_downloaded_with_its_relative_paths(endpoint: str, s3: Any, tmp_path: Path) -> None:
    for key in ("in/a.csv", "in/x/b.csv", "in/empty/", "other/c"):
        s3.put_object(Bucket="bkt", Key=key, Body=b"" if key.endswith("/") else key.encode())
    path = tmp_path / "in"
    result = run(_spec(endpoint, "download", Channel(name="i", uri="s3://bkt/in/", path=str(path))))
    assert (result.ok, result.objects, result.bytes) == (True, 2, len("in/a.csvin/x/b.csv"))
    digest = result.digests["i"]
    lines = "".join(f"{hashlib.sha256(key.encode()).hexdigest()}  {key}\n" for key in digest["first"])
    assert list(digest["first"]) == ["in/a.csv", "in/x/b.csv"]
    assert digest["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert _files(path) == {"a.csv": b"in/a.csv", "x/b.csv": b"in/x/b.csv"}
    assert (path / "empty").is_dir()
    assert not (tmp_path / "in.partial").exists()


def test_a_shard_gets_its_part_of_the_sorted_keys(endpoint: str, s3: Any, tmp_path: Path) -> None:
    for number in range(5):
        s3.put_object(Bucket="bkt", Key=f"in/{number}", Body=b"x")
    found = []
    for instance in range(2):
        path = tmp_path / str(instance)
        channel = Channel(name="i", uri="s3://bkt/in", path=str(path), sharded=True)
        run(_spec(endpoint, "download", channel, instance=instance, instances=2))
        found.append(sorted(_files(path)))
    assert found == [["0", "2", "4"], ["1", "3"]]


def test_a_manifest_names_the_objects(endpoint: str, s3: Any, tmp_path: Path) -> None:
    for key in ("data/a", "data/sub/b", "data/c"):
        s3.put_object(Bucket="bkt", Key=key, Body=key.encode())
    s3.put_object(Bucket="bkt", Key="m", Body=json.dumps([{"prefix": "s3://bkt/data/"}, "a", "sub/b"]))
    path = tmp_path / "in"
    channel = Channel(name="i", uri="s3://bkt/m", path=str(path), data_type="ManifestFile")
    run(_spec(endpoint, "download", channel))
    assert _files(path) == {"a": b"data/a", "sub/b": b"data/sub/b"}


@pytest.mark.parametrize(
    "body", [b"{", b"{}", b"[]", b'["a"]', b'[{"prefix": "bkt"}, "a"]', b'[{"prefix": "s3://bkt/"}, 1]']
)
def test_a_malformed_manifest_fails_naming_it(endpoint: str, s3: Any, tmp_path: Path, body: bytes) -> None:
    s3.put_object(Bucket="bkt", Key="m", Body=body)
    channel = Channel(name="i", uri="s3://bkt/m", path=str(tmp_path / "in"), data_type="ManifestFile")
    with pytest.raises(Failure, match=r"The manifest s3://bkt/m is not valid"):
        run(_spec(endpoint, "download", channel))


@pytest.mark.parametrize("key", ["in/../x", "in//x", "in/a/../../../x"])
def test_a_hostile_key_fails_by_name_and_leaves_nothing(
    endpoint: str, s3: Any, tmp_path: Path, key: str
) -> None:
    s3.put_object(Bucket="bkt", Key="in/good", Body=b"x")
    s3.put_object(Bucket="bkt", Key="m", Body=json.dumps([{"prefix": "s3://bkt/"}, "in/good", key]))
    s3.put_object(Bucket="bkt", Key="in/good", Body=b"x")
    channel = Channel(name="i", uri="s3://bkt/m", path=str(tmp_path / "in"), data_type="ManifestFile")
    # A client cannot write such keys through HTTP paths that are normalised: the manifest names them too.
    with pytest.raises(Failure):
        run(_spec(endpoint, "download", channel))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prefix_fails_with_awss_sentence(endpoint: str, s3: Any, tmp_path: Path) -> None:
    channel = Channel(name="i", uri="s3://bkt/none/", path=str(tmp_path / "in"))
    with pytest.raises(
        Failure, match=r'No S3 objects found under S3 URL "s3://bkt/none/" given in input data'
    ):
        run(_spec(endpoint, "download", channel))


def test_a_missing_bucket_fails_with_s3s_words(endpoint: str, s3: Any, tmp_path: Path) -> None:
    channel = Channel(name="i", uri="s3://no-such-bucket/x", path=str(tmp_path / "in"))
    with pytest.raises(Failure, match=r"ListObjectsV2 failed for s3://no-such-bucket/x.*NoSuchBucket"):
        run(_spec(endpoint, "download", channel))


def test_inputs_larger_than_the_volume_fail_before_anything_is_fetched(
    endpoint: str, s3: Any, tmp_path: Path
) -> None:
    s3.put_object(Bucket="bkt", Key="in/a", Body=b"x" * 1000)
    channel = Channel(name="i", uri="s3://bkt/in/", path=str(tmp_path / "in"))
    with pytest.raises(Failure, match=r"1000 bytes.*999 bytes.*VolumeSizeInGB"):
        run(_spec(endpoint, "download", channel, volume_bytes=999))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_fails_naming_the_path_and_leaves_nothing(
    endpoint: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="bkt", Key="in/a", Body=b"x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent.os, "fchown", full)
    channel = Channel(name="i", uri="s3://bkt/in/", path=str(tmp_path / "in"))
    with pytest.raises(Failure, match=r"No space left on the disk while writing a"):
        run(_spec(endpoint, "download", channel, owner=(0, 0)))
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_s3_is_told_as_such(s3: Any, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        channel = Channel(name="i", uri="s3://bkt/in/", path=str(tmp_path / "in"))
        with pytest.raises(Failure) as failed:
            run(_spec(url, "download", channel))
    assert failed.value.unreachable
    assert failed.value.reason == (
        "ClientError: Failed to download data. ListObjectsV2 failed for s3://bkt/in/, nextToken:[null]: "
        "Unable to execute request to S3"
    )


def test_regular_files_are_uploaded_and_links_pipes_and_sockets_are_not(
    endpoint: str, s3: Any, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    (root / "d").mkdir(parents=True)
    (root / "d" / "a").write_bytes(b"A")
    (root / "empty").write_bytes(b"")
    (root / "link").symlink_to("/etc/passwd")
    (root / "folder-link").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(root, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        result = run(_spec(endpoint, "upload", Channel(name="o", uri="s3://bkt/out/", path=str(root))))
    assert (result.ok, result.objects, result.bytes) == (True, 2, 1)
    (digest,) = result.digests.values()
    assert hashlib.sha256(b"").hexdigest() in digest["first"].values()
    found = {each["Key"] for each in s3.list_objects_v2(Bucket="bkt", Prefix="out/")["Contents"]}
    assert found == {"out/d/a", "out/empty"}


def test_an_output_folder_that_became_a_link_is_not_followed(endpoint: str, s3: Any, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        run(_spec(endpoint, "upload", Channel(name="o", uri="s3://bkt/out/", path=str(tmp_path / "out"))))


def test_an_output_larger_than_the_volume_fails_before_anything_is_sent(
    endpoint: str, s3: Any, tmp_path: Path
) -> None:
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(1 << 43)
    (tmp_path / "a").write_bytes(b"x")
    channel = Channel(name="o", uri="s3://bkt/holes/", path=str(tmp_path))
    with pytest.raises(Failure, match=r"8796093022209 bytes.*1073741824 bytes.*VolumeSizeInGB"):
        run(_spec(endpoint, "upload", channel, volume_bytes=1 << 30))
    assert "Contents" not in s3.list_objects_v2(Bucket="bkt", Prefix="holes/")


def test_a_folder_too_deep_for_a_key_is_refused_by_name_and_not_searched(
    endpoint: str, s3: Any, tmp_path: Path
) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    channel = Channel(name="o", uri="s3://bkt/out", path=str(tmp_path))
    with pytest.raises(Failure, match=r"The key out/d/d/.* is longer than 1024 bytes"):
        run(_spec(endpoint, "upload", channel))
    (parts, _size), *rest = tree(str(tmp_path))
    assert (len(parts), rest) == (513, [])
    remove_tree(tmp_path)


def test_a_file_name_that_is_no_utf_8_is_refused_by_name(endpoint: str, s3: Any, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    with pytest.raises(Failure, match=r"bad\\xff.*not UTF-8"):
        run(_spec(endpoint, "upload", Channel(name="o", uri="s3://bkt/out", path=str(tmp_path))))


async def test_a_process_does_the_task_once_and_keeps_its_result(
    endpoint: str, s3: Any, tmp_path: Path
) -> None:
    s3.put_object(Bucket="bkt", Key="in/a", Body=b"x")
    task = tmp_path / "download.json"
    spec = _spec(endpoint, "download", Channel(name="i", uri="s3://bkt/in/", path=str(tmp_path / "in")))
    result = await agent_process.perform(spec, task)
    assert (result.ok, result.objects, result.bytes) == (True, 1, 1), (tmp_path / "download.log").read_text()
    assert task.stat().st_mode & 0o777 == 0o600
    s3.delete_object(Bucket="bkt", Key="in/a")
    assert await agent_process.perform(spec, task) == result


async def test_an_ended_task_does_not_begin(endpoint: str, tmp_path: Path) -> None:
    task = tmp_path / "download.json"
    task.write_text(_spec(endpoint, "download").to_json())
    agent_process.end(task)
    result = await agent_process.perform(_spec(endpoint, "download"), task)
    assert not result.ok


async def test_a_failure_met_while_no_daemon_stood_at_the_door_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "download.json"
    path.write_text("{}")
    agent.result_path(path).write_text(
        json.dumps(asdict(agent.Result(ok=False, reason="x", unreachable=True)))
    )
    begun: list[str] = []

    async def run(at: Path) -> None:
        begun.append(at.read_text())
        if not agent.result_path(at).exists():
            agent.result_path(at).write_text(json.dumps(asdict(agent.Result(ok=True))))

    monkeypatch.setattr(agent_process, "run", run)
    spec = agent.Spec(
        task="download",
        channels=(),
        region="r",
        access_key_id="a",
        secret_access_key="s",
        token="",
        role_arn="x",
    )
    assert (await agent_process.perform(spec, path)).ok
    assert begun == ["{}", spec.to_json()]


def test_a_continuous_output_goes_up_while_it_is_written_and_what_is_there_goes_up_no_second_time(
    endpoint: str, s3: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    channel = Channel(name="o", uri="s3://bkt/out", path=str(out), continuous=True)
    (out / "log").write_bytes(b"one")
    (out / "huge").write_bytes(bytes(uploaded.SMALL + 1))
    passing = _spec(endpoint, "upload", channel, running=True)
    run(passing)
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="bkt")["Contents"]] == ["out/log"]
    s3.delete_object(Bucket="bkt", Key="out/log")
    os.utime(out / "huge", (1, 1))
    run(passing)
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="bkt")["Contents"]] == ["out/huge"]
    (out / "log").write_bytes(b"one two")
    last = run(_spec(endpoint, "upload", channel))
    assert s3.get_object(Bucket="bkt", Key="out/log")["Body"].read() == b"one two"
    assert last.digests["o"]["first"]["out/log"] == hashlib.sha256(b"one two").hexdigest()
    assert last.digests["o"]["objects"] == 2, "the last upload tells of all"


def test_a_file_that_goes_while_the_container_runs_is_no_failure(
    endpoint: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_bytes(b"x")
    monkeypatch.setattr(agent, "tree", lambda _: iter([(("gone",), 1), (("kept",), 1)]))
    channel = Channel(name="o", uri="s3://bkt/out", path=str(tmp_path), continuous=True)
    result = run(_spec(endpoint, "upload", channel, running=True))
    assert (result.ok, list(result.digests["o"]["first"])) == (True, ["out/kept"])


def test_outputs_are_written_with_the_jobs_key(endpoint: str, s3: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "big").write_bytes(b"x" * (65 << 20))
    channel = Channel(name="o", uri="s3://bkt/out", path=str(tmp_path))
    run(_spec(endpoint, "upload", channel, kms_key="1-2"))
    for key in ("out/a", "out/big"):
        head = s3.head_object(Bucket="bkt", Key=key)
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "1-2")
