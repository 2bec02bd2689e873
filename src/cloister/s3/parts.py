"""CompleteMultipartUpload: the document that names the parts of an object. Pure."""

from __future__ import annotations

from cloister.s3.buckets import malformed, parse_xml
from cloister.s3.passing import MAX_PART


def check_parts(body: bytes) -> None:
    """Raises AwsError MalformedXML."""
    root = parse_xml(body)
    found = root.findall("Part")
    numbers = [(each.findtext("PartNumber") or "").strip() for each in found]
    if (
        root.tag != "CompleteMultipartUpload"
        or not 1 <= len(found) <= MAX_PART
        or not all(each.isascii() and each.isdigit() and 1 <= int(each[:9]) <= MAX_PART for each in numbers)
        or not all(each.findtext("ETag") for each in found)
    ):
        raise malformed()
