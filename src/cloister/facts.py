"""What only a look outside of the World tells of a job that is asked about: its objects, its image."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cloister.jobs.images import Images, is_in_a_registry, registry_of
from cloister.jobs.objects import split_uri
from cloister.s3 import listing
from cloister.s3.address import encode_path, encode_query
from cloister.s3.backend import Backend
from cloister.s3.buckets import parse_xml
from cloister.why.preflight import Facts
from cloister.wire.errors import AwsError

#: keys of an input that are looked at
_KEYS = 100
_LOOK_SECONDS, _CONNECT_SECONDS = 10.0, 3.0


async def facts_of(request: Mapping[str, Any], backend: Backend, images: Images) -> Facts:
    """Of a CreateProcessingJob request that is valid. What cannot be found out is left out."""
    uris = {
        (each.get("S3Input") or {}).get("S3Uri", "") for each in request.get("ProcessingInputs") or ()
    } - {""}
    listed = await asyncio.gather(*(_keys(backend, uri) for uri in uris))
    return Facts(
        keys={uri: keys for uri, keys in zip(uris, listed, strict=True) if keys is not None},
        image_trouble=await _image_trouble(images, request["AppSpecification"]["ImageUri"]),
    )


async def _keys(backend: Backend, uri: str) -> list[str] | None:
    bucket, prefix = split_uri(uri)
    query = listing.asked("ListObjectsV2", {"prefix": prefix, "max-keys": str(_KEYS)}, backend.names)
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            answer = await backend.request("GET", encode_path(bucket), encode_query(query))
            async with answer:
                if answer.status != 200:
                    return None
                listed = parse_xml(await answer.read())
    except (AwsError, OSError):
        return None
    return [key for key, _ in listing.objects(listed, prefix, backend.names)]


async def _image_trouble(images: Images, uri: str) -> str:
    """An image that is not here is pulled when a job needs it, if its registry is reached at all."""
    if await asyncio.to_thread(images.local, uri) is not None:
        return ""
    if not is_in_a_registry(uri):
        return f"{uri} is not in podman's storage, and no name of an image in a registry."
    host, port = registry_of(uri)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (TimeoutError, OSError):
        return f"{uri} is not in podman's storage, and its registry {host} is not reached from this host."
    return ""
