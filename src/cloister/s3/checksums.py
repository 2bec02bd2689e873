"""Checksums of objects: what a client says of them, and what the store is asked to compute and keep. Pure.

AWS: "Checking object integrity in Amazon S3". The door compares a client's value while the body passes
(`wire/payload.py`); the store computes its own, keeps it and gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.wire.errors import AwsError

PREFIX = "x-amz-checksum-"
ALGORITHMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
HEADERS = frozenset(PREFIX + each.lower() for each in ALGORITHMS)
#: where an answer of the store's does not say it, its checksum is of all bytes
TYPE = PREFIX + "type"
#: AWS computes this one where a client gives none
DEFAULT = "CRC64NVME"
#: that AWS has, and the store does not
_NOT_KEPT = frozenset({"SHA512", "MD5", "XXHASH64", "XXHASH3", "XXHASH128"})
_TYPES = ("COMPOSITE", "FULL_OBJECT")
#: what of an upload in parts a type can be, where it cannot be both
_ONLY = {"SHA1": "COMPOSITE", "SHA256": "COMPOSITE", "CRC64NVME": "FULL_OBJECT"}
_NO_VALUES = frozenset({PREFIX + "algorithm", PREFIX + "mode", PREFIX + "type"})


def given(headers: Mapping[str, str]) -> tuple[str, str | None]:
    """The header or trailer that has a body's checksum, "" if there is none, and its value if it is a header.

    Raises AwsError InvalidRequest, NotImplemented for an algorithm that the store does not know."""
    trailers = [each.strip().lower() for each in headers.get("x-amz-trailer", "").split(",")]
    named = [each for each in (*headers, *trailers) if each.startswith(PREFIX) and each not in _NO_VALUES]
    for each in named:
        _check(
            each.removeprefix(PREFIX).upper(), "The algorithm type you specified in x-amz-checksum- header"
        )
    if len(set(named)) > 1:
        raise AwsError(
            "InvalidRequest",
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        )
    name = named[0] if named else ""
    told = headers.get("x-amz-sdk-checksum-algorithm", "").upper()
    if told:
        _check(told, "Value for x-amz-sdk-checksum-algorithm header")
    if told and name and told != name.removeprefix(PREFIX).upper():
        raise AwsError("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    return name, headers.get(name)


def _check(algorithm: str, what: str) -> None:
    if algorithm in _NOT_KEPT:
        raise AwsError(
            "NotImplemented",
            "A header you provided implies functionality that is not implemented: Cloister does not "
            f"implement the checksum algorithm {algorithm}.",
            501,
        )
    if algorithm not in ALGORITHMS:
        raise AwsError("InvalidRequest", f"{what} is invalid.")


def asked(operation: str, headers: Mapping[str, str], *, computes: bool) -> dict[str, str]:
    """The headers that tell the store of checksums. `computes`: it computes one that is only named to it.

    Raises as `given`."""
    if operation in ("GetObject", "HeadObject"):
        wanted = headers.get(PREFIX + "mode", "").upper() == "ENABLED"
        return {PREFIX + "mode": "ENABLED"} if wanted else {}
    if operation in ("CreateMultipartUpload", "CopyObject"):
        return _of_upload(headers)
    if operation == "CompleteMultipartUpload":
        return {
            name: value
            for name, value in headers.items()
            if name.startswith(PREFIX) or name == "x-amz-mp-object-size"
        }
    if operation not in ("PutObject", "UploadPart"):
        return {}
    name, value = given(headers)
    algorithm = name.removeprefix(PREFIX).upper() or (DEFAULT if operation == "PutObject" else "")
    found = {name: value} if value is not None and not computes else {}
    if algorithm and computes:
        found["x-amz-sdk-checksum-algorithm"] = algorithm
    return found


def refusal(headers: Mapping[str, str], refused: AwsError) -> None:
    """Of a body: what the store did not take, if it is its checksum, in AWS's words. Raises that."""
    name, _ = given(headers)
    if name and (refused.code, refused.message) == ("InvalidRequest", "Invalid Request"):
        raise AwsError(
            "InvalidRequest",
            "Checksum Type mismatch occurred, expected checksum Type: the upload's, actual checksum Type: "
            f"{name.removeprefix(PREFIX)}",
        )


def _of_upload(headers: Mapping[str, str]) -> dict[str, str]:
    algorithm = headers.get(PREFIX + "algorithm", "").upper()
    kind = headers.get(PREFIX + "type", "").upper()
    if algorithm:
        _check(algorithm, "Value for x-amz-checksum-algorithm header")
    if kind and kind not in _TYPES:
        raise AwsError("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if kind and not algorithm:
        raise AwsError(
            "InvalidRequest",
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        )
    if kind != _ONLY.get(algorithm, kind) and kind:
        raise AwsError(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
        )
    found = {PREFIX + "algorithm": algorithm, PREFIX + "type": kind}
    return {name: value for name, value in found.items() if value}
