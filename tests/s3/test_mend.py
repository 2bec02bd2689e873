"""What a kill between the object store's answer and the record leaves, as the next start finds it."""

from __future__ import annotations

from collections.abc import Callable

from tests.s3.conftest import Site

from cloister.s3.mend import mend


def test_a_bucket_whose_deletion_was_cut_off_is_there_and_whole(
    site: Site, bucket: Callable[[], str]
) -> None:
    cut, whole = bucket(), bucket()
    s3 = site.client()
    s3.put_object(Bucket=whole, Key="kept", Body=b"x")

    async def cut_off() -> None:
        async with await site.backend.request("DELETE", f"/{cut}") as answer:
            assert answer.status == 204

    site.run(cut_off())
    site.run(mend(site.engine.world, site.backend))
    s3.put_object(Bucket=cut, Key="a", Body=b"y")
    assert s3.get_object(Bucket=cut, Key="a")["Body"].read() == b"y"
    assert s3.get_object(Bucket=whole, Key="kept")["Body"].read() == b"x"
    s3.delete_object(Bucket=cut, Key="a")
    s3.delete_bucket(Bucket=cut)
