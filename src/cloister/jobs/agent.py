"""The platform's agent: moves a job's inputs from S3 and its outputs to S3, from inside the job's VPC.

    python -m cloister.jobs.agent SPEC.json

A process of its own in the network namespace of the instance's second address, so whatever the VPC does to
the job's packets it does to these. It outlives the daemon. It writes its result atomically beside the spec;
started again it waits for the one before it (a lock on the spec), and does nothing when there is a result.

It trusts nobody: keys come from whoever may write to the bucket, the tree it uploads was made by the
container's root. A download goes to `PATH.partial` and is renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cloister.jobs import uploaded
from cloister.jobs.objects import KEY_LIMIT, BadKey, Object, plan_files, request_of, shard, split_uri, under
from cloister.jobs.resolver import getaddrinfo_by
from cloister.jobs.tree import NoFile, opened, tree

PARALLEL = 16
CHUNK = 1 << 20
#: seconds; a subnet without a route to S3 shall fail the job within a few of them
CONNECT_SECONDS = 2.0
#: connections to S3 that are tried, to one address after the other, before there is no way to it
_TRIES, _REACH_SECONDS = 4, 1.0
#: AWS: "Unable to execute request to S3" is what a processing job says when its subnet has no way to S3
UNREACHABLE = "Unable to execute request to S3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One input or output. `path` is a folder of the host."""

    name: str
    uri: str
    path: str
    data_type: str = "S3Prefix"
    sharded: bool = False
    continuous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to do. `owner` is the (uid, gid) that staged files get, the container's root; `instance` counts
    from 0. `netns` and `resolvers`, DNS servers, are None in tests: then the process's own are used."""

    task: str  # download | upload
    channels: tuple[Channel, ...]
    region: str
    access_key_id: str
    secret_access_key: str
    token: str
    role_arn: str
    instance: int = 0
    instances: int = 1
    volume_bytes: int = 1 << 60
    owner: tuple[int, int] | None = None
    ca_bundle: str | None = None
    endpoint_url: str | None = None
    netns: str | None = None
    resolvers: tuple[str, ...] | None = None
    #: the container still runs: files may come, go and change
    running: bool = False
    #: the KMS key that outputs are to be encrypted with on AWS
    kms_key: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Spec:
        data = json.loads(text)
        data["channels"] = tuple(Channel(**each) for each in data["channels"])
        data["owner"] = None if data["owner"] is None else (data["owner"][0], data["owner"][1])
        data["resolvers"] = None if data["resolvers"] is None else tuple(data["resolvers"])
        return Spec(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`reason` is the job's FailureReason, complete but for the cause in the VPC, which the supervisor adds
    to it. `request` is what failed, "METHOD s3://…": S3 refused it, or was not reached: `unreachable`."""

    ok: bool
    reason: str = ""
    unreachable: bool = False
    request: str = ""
    objects: int = 0
    bytes: int = 0
    #: channel -> what was moved: {"objects", "bytes", "sha256": of the lines "SHA256  KEY" of all, sorted by
    #: key, "first": {key: SHA-256} of some}
    digests: dict[str, Any] = field(default_factory=dict)


class Failure(Exception):
    """The task failed, for this reason."""

    def __init__(self, reason: str, *, unreachable: bool = False, request: str = "") -> None:
        super().__init__(reason)
        self.reason, self.unreachable, self.request = reason, unreachable, request


def result_path(spec_path: Path) -> Path:
    return spec_path.with_suffix(".result")


def lock_path(spec_path: Path) -> Path:
    return spec_path.with_suffix(".lock")


def main(argv: Sequence[str]) -> int:
    spec_path = Path(argv[1])
    with open(lock_path(spec_path), "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if result_path(spec_path).exists():
            return 0
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        spec = Spec.from_json(spec_path.read_text())
        try:
            _enter(spec)
            result = run(spec)
        except Failure as failure:
            result = Result(
                ok=False, reason=failure.reason, unreachable=failure.unreachable, request=failure.request
            )
        except Exception as error:  # the job shall end with a reason, not hang without one
            import traceback

            traceback.print_exc()
            result = Result(
                ok=False, reason=f"InternalServerError: the platform's agent failed: {error!r}"[:1024]
            )
        temporary = spec_path.with_suffix(".result.new")
        with open(temporary, "w") as out:
            json.dump(asdict(result), out)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(result_path(spec_path))
    return 0


def _enter(spec: Spec) -> None:
    """Go to the agent's network namespace and resolve names by its VPC, whatever the host's nsswitch says."""
    if spec.netns is not None:
        from cloister.kernel import syscalls

        fd = os.open(spec.netns, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        os.close(fd)
    if spec.resolvers is not None:
        resolve = getaddrinfo_by(spec.resolvers)
        socket.getaddrinfo = resolve


def run(spec: Spec) -> Result:
    """Do the task. Raises Failure."""
    client = _client(spec)
    if spec.endpoint_url is None:
        _reach(spec)
    if spec.task == "download":
        return _download(spec, client)
    return _upload(spec, client)


def _client(spec: Spec) -> Any:
    import botocore.session
    from botocore.config import Config

    session = botocore.session.Session()
    # Nothing of the host's own AWS configuration
    for name in ("config_file", "credentials_file"):
        session.set_config_variable(name, os.devnull)
    return session.create_client(
        "s3",
        region_name=spec.region,
        endpoint_url=spec.endpoint_url,
        aws_access_key_id=spec.access_key_id,
        aws_secret_access_key=spec.secret_access_key,
        aws_session_token=spec.token or None,
        verify=spec.ca_bundle,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=60,
            retries={"total_max_attempts": 3, "mode": "standard"},
            max_pool_connections=PARALLEL,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"us_east_1_regional_endpoint": "regional"},
            proxies={},
        ),
    )


def _reach(spec: Spec) -> None:
    """Fail within seconds when there is no way to S3, instead of after every time-out of every retry."""
    uri, operation = spec.channels[0].uri, _first_call(spec)
    bucket, _ = split_uri(uri)
    host = f"s3.{spec.region}.amazonaws.com"
    if "." not in bucket:  # as botocore calls it
        host = f"{bucket}.{host}"
    error: OSError | None = None
    try:
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]
        for address in (addresses * _TRIES)[: max(_TRIES, len(addresses))]:
            try:
                socket.create_connection((address, 443), _REACH_SECONDS).close()
                return
            except OSError as failed:
                error = failed
    except socket.gaierror as failed:  # it was asked for twice already
        error = failed
    reason = _failed(spec.task, operation, uri, UNREACHABLE)
    raise Failure(reason, unreachable=True, request=" ".join(request_of(operation, uri))) from error


def _first_call(spec: Spec) -> str:
    if spec.task == "upload":
        return "PutObject"
    return "GetObject" if spec.channels[0].data_type == "ManifestFile" else "ListObjectsV2"


def _failed(task: str, operation: str, uri: str, what: str) -> str:
    if task == "upload":
        return f"ClientError: Artifact upload failed:{operation} failed for {uri}: {what}"
    token = ", nextToken:[null]" if operation == "ListObjectsV2" else ""
    return f"ClientError: Failed to download data. {operation} failed for {uri}{token}: {what}"


@contextlib.contextmanager
def _s3(task: str, operation: str, uri: str) -> Iterator[None]:
    """Turn what S3 and the way to it throw into the job's reason."""
    import botocore.exceptions as botocore_errors
    from boto3.exceptions import S3UploadFailedError

    try:
        yield
    except botocore_errors.ClientError as error:
        raise _client_failure(task, operation, uri, error) from error
    except S3UploadFailedError as error:
        raise Failure(_failed(task, operation, uri, str(error))) from error
    except botocore_errors.SSLError as error:
        raise Failure(_failed(task, operation, uri, str(error))) from error
    except (
        botocore_errors.ConnectionError,
        botocore_errors.HTTPClientError,
        botocore_errors.IncompleteReadError,
    ) as error:
        request = " ".join(request_of(operation, uri))
        raise Failure(
            _failed(task, operation, uri, UNREACHABLE), unreachable=True, request=request
        ) from error
    except botocore_errors.BotoCoreError as error:
        raise Failure(_failed(task, operation, uri, str(error))) from error


def _client_failure(task: str, operation: str, uri: str, error: Any) -> Failure:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = error.response.get("Error", {}).get("Message", "") or code
    what = f"{text} (Service: Amazon S3; Status Code: {status}; Error Code: {code})"
    explained = status == 403 or code == "NoSuchBucket"
    request = " ".join(request_of(operation, uri)) if explained else ""
    return Failure(_failed(task, operation, uri, what), request=request)


# Download


def _download(spec: Spec, client: Any) -> Result:
    todo: list[tuple[Channel, str, list[tuple[Object, str]], list[str]]] = []
    for channel in spec.channels:
        bucket, _ = split_uri(channel.uri)
        try:
            objects = _objects(spec, client, channel)
            files, folders = plan_files(
                shard(objects, spec.instance, spec.instances) if channel.sharded else objects
            )
        except BadKey as bad:
            raise Failure(f"ClientError: Failed to download data. {bad} ({channel.uri})") from bad
        todo.append((channel, bucket, files, folders))
    total = sum(each.size for _, _, files, _ in todo for each, _ in files)
    if total > spec.volume_bytes:
        raise Failure(
            f"ClientError: Failed to download data. The input data of this instance ({total} bytes) is "
            f"larger than its storage volume ({spec.volume_bytes} bytes). Please increase VolumeSizeInGB."
        )
    count, digests = 0, {}
    try:
        for channel, bucket, files, folders in todo:
            digests[channel.name] = _download_channel(spec, client, channel, bucket, files, folders)
            count += len(files)
    except BaseException:
        for channel in spec.channels:  # nothing half-made
            _remove(channel.path)
            _remove(channel.path + ".partial")
        raise
    return Result(ok=True, objects=count, bytes=total, digests=digests)


def _objects(spec: Spec, client: Any, channel: Channel) -> list[Object]:
    """The objects of a channel, sorted by key, with their local names; never none."""
    if channel.data_type == "ManifestFile":
        found = _manifest(spec, client, channel)
    else:
        bucket, prefix = split_uri(channel.uri)
        found = [
            Object(key=item["Key"], size=item["Size"], path=under(item["Key"], prefix))
            for item in _list(client, spec, channel.uri, bucket, prefix)
        ]
    if not found:
        bucket, _ = split_uri(channel.uri)
        # AWS's own sentence for an empty prefix
        raise Failure(
            f'ClientError: Failed to download data. No S3 objects found under S3 URL "{channel.uri}" given '
            "in input data source. Please ensure that the bucket exists in the selected region "
            f'({spec.region}), that objects exist under that S3 prefix, and that the role "{spec.role_arn}" '
            f'has "s3:ListBucket" permissions on bucket "{bucket}".'
        )
    return sorted(found, key=lambda each: each.key.encode())


def _list(client: Any, spec: Spec, uri: str, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    with _s3(spec.task, "ListObjectsV2", uri):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Contents", ())


def _manifest(spec: Spec, client: Any, channel: Channel) -> list[Object]:
    """AWS (S3DataSource): [{"prefix": "s3://bucket/a/"}, "relative/key", …]."""
    bucket, key = split_uri(channel.uri)
    with _s3(spec.task, "GetObject", channel.uri):
        body = client.get_object(Bucket=bucket, Key=key)["Body"].read(64 << 20)
    wrong = f"ClientError: Failed to download data. The manifest {channel.uri} is not valid: "
    try:
        entries = json.loads(body)
    except ValueError as error:
        raise Failure(f"{wrong}it is not JSON") from error
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise Failure(f'{wrong}it must be a list that begins with {{"prefix": "s3://…"}}')
    prefix = entries[0].get("prefix")
    if not isinstance(prefix, str) or not prefix.startswith("s3://"):
        raise Failure(f"{wrong}its prefix must begin with s3://")
    if not all(isinstance(name, str) and name for name in entries[1:]):
        raise Failure(f"{wrong}every entry after the prefix must be a relative key")
    source, start = split_uri(prefix)
    if source != bucket:
        raise Failure(f"{wrong}Cloister does not implement a prefix in another bucket ({source}) yet")
    names = list(dict.fromkeys(entries[1:]))

    def head(name: str) -> Object:
        with _s3(spec.task, "HeadObject", f"s3://{source}/{start}{name}"):
            size = client.head_object(Bucket=source, Key=start + name)["ContentLength"]
        return Object(key=start + name, size=size, path=name)

    return _in_parallel(head, names)


def _in_parallel(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """All results in order, or the first failure; what has not begun by then never begins."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(function, item) for item in items]
        _, pending = wait(futures, return_when=FIRST_EXCEPTION)
        if pending:
            pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if future.done() and not future.cancelled():
                future.result()
        return [future.result() for future in futures]


def _download_channel(
    spec: Spec,
    client: Any,
    channel: Channel,
    bucket: str,
    files: list[tuple[Object, str]],
    folders: list[str],
) -> dict[str, Any]:
    """The digest of what was moved."""
    digest_path = Path(channel.path + ".digest")
    if os.path.isdir(channel.path):  # whole since an earlier run of this agent
        known: dict[str, Any] = json.loads(digest_path.read_text())
        return known
    partial = channel.path + ".partial"
    _remove(partial)
    with _disk(channel.path):
        _folder(partial, spec.owner)
        for folder in folders:
            _folder(os.path.join(partial, folder), spec.owner)

    def fetch(item: tuple[Object, str]) -> tuple[str, str, int]:
        each, path = item
        hashed, size = hashlib.sha256(), 0
        uri = f"s3://{bucket}/{each.key}"
        with _disk(path), _s3(spec.task, "GetObject", uri):
            body = client.get_object(Bucket=bucket, Key=each.key)["Body"]
            target = os.path.join(partial, path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            # Buffered: a raw write to a disk that gets full ends short, and says nothing.
            with open(os.open(target, flags, 0o644), "wb", buffering=CHUNK) as out:
                while chunk := body.read(CHUNK):
                    out.write(chunk)
                    hashed.update(chunk)
                    size += len(chunk)
                if spec.owner is not None:
                    os.fchown(out.fileno(), *spec.owner)
        return each.key, hashed.hexdigest(), size

    digest = digest_of(_in_parallel(fetch, files))
    with _disk(channel.path):
        digest_path.write_text(json.dumps(digest))
    os.rename(partial, channel.path)
    return digest


#: objects whose own digest is kept
_NAMED = 100


def digest_of(moved: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """What `Result.digests` says of (key, SHA-256, bytes) of every object."""
    ordered = sorted(moved)
    lines = "".join(f"{digest}  {key}\n" for key, digest, _ in ordered)
    return {
        "objects": len(ordered),
        "bytes": sum(size for *_, size in ordered),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "first": {key: digest for key, digest, _ in ordered[:_NAMED]},
    }


def _folder(path: str, owner: tuple[int, int] | None) -> None:
    os.mkdir(path, 0o755)
    if owner is not None:
        os.chown(path, *owner)


@contextlib.contextmanager
def _disk(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failure(
                f"ClientError: Failed to download data. No space left on the disk while writing {path}. "
                "Please increase VolumeSizeInGB, or free space on the machine that runs Cloister."
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise Failure(f"ClientError: Failed to download data. The name {path!r} is too long.") from error
        raise


def _remove(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)


# Upload


def _upload(spec: Spec, client: Any) -> Result:
    from boto3.s3.transfer import TransferConfig

    todo: list[tuple[Channel, str, str, tuple[str, ...], int]] = []
    for channel in spec.channels:
        bucket, prefix = split_uri(channel.uri)
        prefix = prefix.rstrip("/")
        for parts, size in tree(channel.path):
            if spec.running and not uploaded.can_be_read(channel.path, parts, size, time.time()):
                continue
            key = "/".join((prefix, *parts) if prefix else parts)
            try:
                length = len(key.encode())
            except UnicodeEncodeError:
                name = os.fsencode("/".join(parts))
                raise Failure(
                    f"ClientError: Artifact upload failed:The name of the file {name!r} (output "
                    f"{channel.name}) is not UTF-8, so it cannot be an S3 key."
                ) from None
            if length > KEY_LIMIT:
                raise Failure(
                    f"ClientError: Artifact upload failed:The key {key[:100]}… of output {channel.name} is "
                    f"longer than {KEY_LIMIT} bytes."
                )
            todo.append((channel, bucket, key, parts, size))
    total = sum(size for *_, size in todo)
    if total > spec.volume_bytes:  # a file with holes has any size, and would be read for ever
        raise Failure(
            f"ClientError: Artifact upload failed:The output data of this instance ({total} bytes) is larger "
            f"than its storage volume ({spec.volume_bytes} bytes). Please increase VolumeSizeInGB."
        )

    known = {each.name: uploaded.read(each.path) for each in spec.channels if each.continuous}
    secret = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": spec.kms_key} if spec.kms_key else {}

    def put(item: tuple[Channel, str, str, tuple[str, ...], int]) -> tuple[str, str, int] | None:
        try:
            return put_one(item)
        except (NoFile, FileNotFoundError, NotADirectoryError):
            if spec.running:
                return None
            raise

    def put_one(item: tuple[Channel, str, str, tuple[str, ...], int]) -> tuple[str, str, int]:
        channel, bucket, key, parts, size = item
        big = size > 64 << 20
        config = TransferConfig(
            multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=4, use_threads=big
        )
        with _s3(spec.task, "PutObject", f"s3://{bucket}/{key}"), opened(channel.path, parts) as file:
            record, name, now = known.get(channel.name), "/".join(parts), uploaded.stamp(file.fileno())
            if record is not None and name in record and record[name]["stamp"] == now:
                return key, record[name]["sha256"], size
            if size <= uploaded.SMALL:
                data = file.read(size)
                digest, size = hashlib.sha256(data).hexdigest(), len(data)
                client.put_object(Bucket=bucket, Key=key, Body=data, **secret)
            else:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                if big:
                    _transfer(client, file, bucket, key, config, secret)
                else:
                    client.put_object(Bucket=bucket, Key=key, Body=file, ContentLength=size, **secret)
            if record is not None:
                record[name] = {"stamp": now, "sha256": digest}
        return key, digest, size

    try:
        moved = list(zip(todo, _in_parallel(put, todo), strict=True))
        for channel in spec.channels:
            if channel.continuous:
                uploaded.write(channel.path, known[channel.name])
    except NoFile as gone:
        raise Failure(f"ClientError: Artifact upload failed:{gone} is no regular file any more") from gone
    digests = {
        channel.name: digest_of([found for item, found in moved if found and item[0] is channel])
        for channel in spec.channels
    }
    return Result(ok=True, objects=len(todo), bytes=total, digests=digests)


def _transfer(client: Any, file: Any, bucket: str, key: str, config: Any, secret: dict[str, str]) -> None:
    from boto3.s3.transfer import create_transfer_manager

    with create_transfer_manager(client, config) as manager:
        manager.upload(file, bucket, key, extra_args=secret).result()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
