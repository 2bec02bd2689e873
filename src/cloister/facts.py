"""What only a look outside of the World tells of a job that is asked about: its objects, its image."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cloister.jobs.image_look import look
from cloister.jobs.images import Images, is_in_a_registry, registry_of
from cloister.jobs.model import CONFIG_PATH, OUTPUT_PATH
from cloister.jobs.objects import split_uri
from cloister.s3 import listing
from cloister.s3.address import encode_path, encode_query
from cloister.s3.backend import Backend
from cloister.s3.buckets import parse_xml
from cloister.why.preflight import Facts, ImageFacts
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
        image=await _image(images, request),
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


async def _image(images: Images, request: Mapping[str, Any]) -> ImageFacts:
    """An image that is not here is pulled when a job needs it, if its registry is reached at all."""
    app = request["AppSpecification"]
    uri = app["ImageUri"]
    image = await asyncio.to_thread(images.local, uri)
    if image is not None:
        found = await asyncio.to_thread(
            look,
            image,
            app.get("ContainerEntrypoint") or (),
            app.get("ContainerArguments") or (),
            request.get("Environment") or {},
            _mounted(request),
        )
        return ImageFacts(seen=found.seen, command_trouble=found.trouble)
    if not is_in_a_registry(uri):
        return ImageFacts(trouble=f"{uri} is not in podman's storage, and no name of an image in a registry.")
    host, port = registry_of(uri)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (TimeoutError, OSError):
        said = f"{uri} is not in podman's storage, and its registry {host} is not reached from this host."
        return ImageFacts(trouble=said)
    return ImageFacts(
        seen=f"{uri} is not in podman's storage, and will be pulled: {host} is reached. Not looked at: "
        "whether it has the image, also for this machine, and what that can start. After `podman pull` it is."
    )


def _mounted(request: Mapping[str, Any]) -> list[str]:
    """Where the platform puts files of its own over an image's."""
    channels = [each.get("S3Input") or {} for each in request.get("ProcessingInputs") or ()]
    outputs = (request.get("ProcessingOutputConfig") or {}).get("Outputs") or ()
    channels += [each.get("S3Output") or {} for each in outputs]
    return [CONFIG_PATH, OUTPUT_PATH, *(each["LocalPath"] for each in channels if each.get("LocalPath"))]
