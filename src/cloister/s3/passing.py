"""What of a request passes to the backend, and what of its answer comes back. Names are in lower case."""

from __future__ import annotations

#: request headers that the backend gets, beside x-amz-meta-* and x-amz-copy-source-if-*
UP = frozenset(
    {
        *("content-type", "cache-control", "content-disposition", "content-language", "expires"),
        *("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
        *("x-amz-metadata-directive", "x-amz-tagging-directive", "x-amz-tagging"),
        *("x-amz-copy-source-range", "x-amz-website-redirect-location"),
    }
)
#: request headers that change what happens and that we do not do: refused by name
REFUSED = frozenset(
    {
        *("x-amz-server-side-encryption-customer-algorithm", "x-amz-server-side-encryption-aws-kms-key-id"),
        *("x-amz-object-lock-mode", "x-amz-object-lock-legal-hold", "x-amz-object-lock-retain-until-date"),
        *("x-amz-copy-source-server-side-encryption-customer-algorithm", "x-amz-write-offset-bytes"),
        "x-amz-mfa",
    }
)
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
