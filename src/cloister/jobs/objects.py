"""From object keys to the files of an input channel. Pure.

Keys are whatever somebody wrote into a bucket: every local name that comes out of here is relative, has no
empty, `.` or `..` segment, no NUL, and fits a Linux file system; what does not is refused by the key's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

KEY_LIMIT = 1024  # S3: bytes of a key
NAME_LIMIT = 255  # bytes of one segment (Linux NAME_MAX)
PATH_LIMIT = 3800  # bytes; PATH_MAX is 4096, and the channel's own folder comes before it


class BadKey(ValueError):
    """A key cannot be a file of the channel; the text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """An object and its name below the channel's folder, not yet checked. A name that is empty or ends in
    "/" is a folder ("directory marker")."""

    key: str
    size: int
    path: str


def split_uri(uri: str) -> tuple[str, str]:
    """The bucket and the key of s3://BUCKET/KEY."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def request_of(operation: str, uri: str) -> tuple[str, str]:
    """What a call about s3://BUCKET/KEY asks: the method, and the URL as `s3://…`, encoded."""
    bucket, key = split_uri(uri)
    if operation == "ListObjectsV2":
        return "GET", f"s3://{bucket}?list-type=2&prefix={quote(key)}"
    method = {"PutObject": "PUT", "HeadObject": "HEAD"}.get(operation, "GET")
    return method, f"s3://{bucket}/{quote(key)}"


def under(key: str, prefix: str) -> str:
    """The local name of an object found under a prefix.

    Below a folder "data/" (or "data") it is the rest of the key; when the prefix ends within a name
    ("data/part", key "data/part-0") or is the whole key, it is what follows the prefix's last "/"."""
    if prefix and not prefix.endswith("/"):
        if key.startswith(prefix + "/"):
            return key[len(prefix) + 1 :]
        return key[prefix.rfind("/") + 1 :]
    return key[len(prefix) :]


def shard(objects: Sequence[Object], instance: int, instances: int) -> list[Object]:
    """ShardedByS3Key: the objects sorted by key are dealt out in turn, the i-th to instance i mod n (choice
    of ours: AWS only says that each instance gets about 1/n). Folders go to every instance."""
    files = [each for each in objects if not _is_folder(each)]
    mine = {each.key for each in files[instance::instances]}
    return [each for each in objects if _is_folder(each) or each.key in mine]


def _is_folder(each: Object) -> bool:
    return each.path == "" or each.path.endswith("/")


def plan_files(objects: Sequence[Object]) -> tuple[list[tuple[Object, str]], list[str]]:
    """Which files and which folders (parents first) the channel gets. Raises BadKey."""
    files: dict[str, Object] = {}
    folders: dict[str, Object] = {}
    for each in objects:
        path = each.path[:-1] if _is_folder(each) and each.path else each.path
        if not path:
            continue
        _check(each.key, path)
        parts = path.split("/")
        if not _is_folder(each):
            if path in files:
                raise BadKey(f"The keys {files[path].key!r} and {each.key!r} are one file")
            files[path] = each
            parts = parts[:-1]
        for depth in range(1, len(parts) + 1):
            folders.setdefault("/".join(parts[:depth]), each)
    for path in files.keys() & folders.keys():
        raise BadKey(
            f"The key {files[path].key!r} is a file, and {folders[path].key!r} needs a folder of that name"
        )
    return [(each, path) for path, each in files.items()], sorted(folders)


def _check(key: str, path: str) -> None:
    shown = repr(key if len(key) <= 200 else key[:200] + "…")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise BadKey(f"The key {shown} is not UTF-8") from None
    if length > PATH_LIMIT:
        raise BadKey(f"The key {shown} is too long for a path ({length} bytes)")
    if "\0" in path:
        raise BadKey(f"The key {shown} has a NUL character")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise BadKey(f"The key {shown} has the path segment {part!r}, which is not allowed")
        if len(part.encode()) > NAME_LIMIT:
            raise BadKey(f"The key {shown} has a path segment longer than {NAME_LIMIT} bytes")
