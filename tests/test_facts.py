"""What only a look outside of the World tells of a job that is asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tests.s3.conftest import Site, bucket, site

from cloister.facts import facts_of
from cloister.jobs.images import Image, ImageConfig, Images

__all__ = ["bucket", "site"]  # fixtures


class _NoImages:
    def local(self, uri: str) -> Image:
        return Image(name=uri, digest="sha256:0", layers=(), config=ImageConfig())


def test_the_objects_of_an_input_are_found_by_the_names_that_their_store_gave_them(
    site: Site, bucket: Callable[[], str]
) -> None:
    name, s3 = bucket(), site.client()
    for key in ("data/2024/part-00.csv", "data/[1]", "other"):
        s3.put_object(Bucket=name, Key=key, Body=b"x")
    uris = [f"s3://{name}/data/", f"s3://{name}/none", f"s3://{name}-missing/"]
    request: dict[str, Any] = {
        "AppSpecification": {"ImageUri": "cloister/host"},
        "ProcessingInputs": [{"S3Input": {"S3Uri": uri}} for uri in uris],
    }
    found = site.run(facts_of(request, site.backend, cast(Images, _NoImages())))
    assert found.keys == {uris[0]: ["data/2024/part-00.csv", "data/[1]"], uris[1]: []}
