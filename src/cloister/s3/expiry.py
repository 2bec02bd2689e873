"""Carries out lifecycle rules: every hour, objects and uploads that are over by a bucket's rules are removed.

An object is removed only as it was listed (`If-Match`): one that was written over meanwhile stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from xml.etree import ElementTree

from cloister.engine import Engine
from cloister.s3 import buckets, lifecycle, listing
from cloister.s3.address import encode_path, encode_query
from cloister.s3.backend import Backend
from cloister.s3.lifecycle import Rule
from cloister.s3.model import Bucket
from cloister.wire.errors import AwsError

log = logging.getLogger(__name__)
EVERY = 3600.0


async def run(engine: Engine, backend: Backend, clock: Callable[[], float]) -> None:
    while True:
        for bucket in engine.world.all(Bucket):
            if document := bucket.settings.get("lifecycle"):
                try:
                    await carry_out(backend, bucket.name, lifecycle.parse(document.encode()), clock())
                except (AwsError, OSError) as error:
                    log.warning("the lifecycle of %s waits for an hour: %s", bucket.name, error)
        await asyncio.sleep(EVERY)


async def carry_out(backend: Backend, bucket: str, rules: tuple[Rule, ...], now: float) -> int:
    """Remove what is over; how much it was."""
    done = 0
    if any(each.days is not None or each.date is not None for each in rules):
        async for key, listed in _objects(backend, bucket):
            size, modified = int(listed.findtext("Size") or 0), _seconds(listed.findtext("LastModified"))
            over = [each for each in rules if each.ends(key, size, modified, now)]
            if over and await _has_tags(backend, bucket, key, over):
                etag = listed.findtext("ETag") or ""
                done += await _delete(backend, bucket, key, headers=(("If-Match", etag),))
    if any(each.abort_days is not None for each in rules):
        query = listing.asked_for_uploads({"uploads": ""}, backend.names)
        listed = buckets.parse_xml(await _get(backend, bucket, "", query))
        for upload in listed.findall("Upload"):
            name = backend.names.key(upload.findtext("Key") or "") or ""
            began = _seconds(upload.findtext("Initiated"))
            if name and any(each.aborts(name, began, now) for each in rules):
                which = {"uploadId": upload.findtext("UploadId") or ""}
                done += await _delete(backend, bucket, name, which)
    return done


async def _objects(backend: Backend, bucket: str) -> AsyncIterator[tuple[str, ElementTree.Element]]:
    """Every key with what the store says of it."""
    query: dict[str, str] = {}
    while True:
        asked = listing.asked("ListObjectsV2", query, backend.names)
        listed = buckets.parse_xml(await _get(backend, bucket, "", asked))
        for each in listing.objects(listed, "", backend.names):
            yield each
        answer = buckets.parse_xml(listing.answer("ListObjectsV2", query, listed, backend.names, ""))
        token = answer.findtext("NextContinuationToken")
        if not token:
            return
        query = {"continuation-token": token}


async def _has_tags(backend: Backend, bucket: str, key: str, rules: list[Rule]) -> bool:
    """Whether the object has all the tags of one of the rules."""
    if any(not each.tags for each in rules):
        return True
    tags = buckets.parse_tags(await _get(backend, bucket, key, {"tagging": ""}))
    return any(each.tags.items() <= tags.items() for each in rules)


async def _get(backend: Backend, bucket: str, key: str, query: dict[str, str]) -> bytes:
    name = backend.names.stored(key) if key else ""
    async with await backend.request("GET", encode_path(bucket, name), encode_query(query)) as answer:
        body = await answer.read()
        if answer.status != 200:
            raise AwsError("ServiceUnavailable", f"the object store answered {answer.status}", 503)
        return body


async def _delete(
    backend: Backend,
    bucket: str,
    key: str,
    query: dict[str, str] | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> int:
    path = encode_path(bucket, backend.names.stored(key))
    async with await backend.request("DELETE", path, encode_query(query or {}), headers) as answer:
        if answer.status not in (204, 404, 412):
            log.warning("%s/%s is over, and the object store answered %s", bucket, key, answer.status)
        return int(answer.status == 204)


def _seconds(text: str | None) -> float:
    return datetime.fromisoformat(text or "9999-01-01T00:00:00Z").timestamp()
