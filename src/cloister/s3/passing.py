"""What of a request passes to the backend, and what of its answer comes back. Names are in lower case."""

from __future__ import annotations

from collections.abc import Mapping

#: request headers that the backend gets, beside x-amz-meta-* and x-amz-copy-source-if-*
UP = frozenset(
    {
        *("content-type", "cache-control", "content-disposition", "content-language", "expires"),
        *("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
        *("x-amz-metadata-directive", "x-amz-tagging-directive", "x-amz-tagging"),
        *("x-amz-copy-source-range", "x-amz-website-redirect-location"),
    }
)
#: x-amz-* request headers that the door itself reads, or that change nothing here: the rest is refused
HARMLESS = frozenset(
    {
        *("x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-user-agent"),
        *("x-amz-decoded-content-length", "x-amz-trailer", "x-amz-api-version"),
        *("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner", "x-amz-request-payer"),
        *("x-amz-copy-source", "x-amz-acl", "x-amz-bucket-object-lock-enabled"),
        # AWS asks for the first to lock oneself out; the second only adds to a listing what no object has.
        *("x-amz-confirm-remove-self-bucket-access", "x-amz-optional-object-attributes"),
    }
)
#: beginnings of such names. Of x-amz-copy-source-*, only the conditions: its keys for encryption are refused
HARMLESS_FAMILIES = ("x-amz-meta-", "x-amz-checksum-", "x-amz-sdk-", "x-amz-grant-", "x-amz-copy-source-if-")
#: headers that are done as they say with one value only, which is also what happens without them
ONLY = {
    "x-amz-server-side-encryption": "AES256",
    "x-amz-server-side-encryption-bucket-key-enabled": "false",
    "x-amz-storage-class": "STANDARD",
    "x-amz-object-ownership": "BucketOwnerEnforced",
}
#: response headers that are the backend's own affair
DOWN_DROPPED = frozenset(
    {
        *(
            "server",
            "date",
            "connection",
            "keep-alive",
            "transfer-encoding",
            "x-amz-request-id",
            "x-amz-id-2",
        ),
        *("content-length", "access-control-allow-origin", "access-control-expose-headers", "vary"),
        *("access-control-allow-methods", "access-control-allow-headers", "access-control-allow-credentials"),
    }
)
#: query parameters that belong to the signature or override response headers (handled by the backend)
UNSENT_QUERY = frozenset(
    {
        *("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders"),
        *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Content-Sha256", "x-id", "versionId"),
    }
)


def refused(headers: Mapping[str, str]) -> str | None:
    """The first header that asks for what is not done here, as the answer names it: nothing that changes what
    happens is dropped in silence."""
    for name, value in headers.items():
        if not name.startswith("x-amz-"):
            continue
        if name in ONLY:
            if value != ONLY[name]:
                return f"{name}: {value[:50]}"
        elif name not in HARMLESS and name not in UP and not name.startswith(HARMLESS_FAMILIES):
            return name[:100]
    return None
