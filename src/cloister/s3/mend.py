"""What a crash may leave between the resources and the object store, which no transaction joins.

A bucket is made in the store first and recorded then: one that was not recorded is nobody's, and found
there by the next CreateBucket. It is deleted from the store first, too, which alone knows that it is empty:
one that is recorded and not in the store was being deleted, and is made again, empty as it was.
"""

from __future__ import annotations

import logging

from cloister.s3 import address, buckets
from cloister.s3.backend import Backend
from cloister.s3.model import Bucket
from cloister.world import World

log = logging.getLogger(__name__)


async def mend(world: World, backend: Backend) -> None:
    """Let the store have every bucket that there is. Raises AwsError ServiceUnavailable."""
    wanted = {bucket.name for bucket in world.all(Bucket)}
    if not wanted:
        return
    async with await backend.request("GET", "/") as answer:
        listed = buckets.parse_xml(await answer.read())
    for name in sorted(wanted - {each.text for each in listed.iter("Name")}):
        log.warning("the object store has no bucket %s: it was being deleted, and is made again", name)
        async with await backend.request("PUT", address.encode_path(name)) as made:
            if made.status not in (200, 409):
                log.error("the object store answered %s to PUT %s", made.status, name)
