"""The one error that crosses the wire.

AwsError(code, message, status)
 └─ raised anywhere below the wire; rendered in the protocol of the call by `wire`.
Nothing else is meant to reach a client: any other exception is a defect and becomes InternalFailure.
"""

from __future__ import annotations


class AwsError(Exception):
    """An AWS error: `code` as AWS spells it, `message` one sentence that names the offending value.

    `status` is the HTTP status. `fields` are further members of the error's shape (S3's BucketName …)."""

    def __init__(self, code: str, message: str, status: int = 400, **fields: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.fields = fields
