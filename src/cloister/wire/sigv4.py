"""AWS Signature Version 4, both ways: who signed a request and whether it is true; and signing our own.

AWS: "Signature Version 4 signing process" (General Reference) and "Authenticating Requests (AWS Signature
Version 4)" (S3 API Reference). S3 differs: its paths are encoded once and not normalised, and the payload's
hash is declared in a header that must be there.

    signed_by = parse_authorization(request)             None: anonymous. AwsError: malformed
    verified = verify(request, signed_by, secret, now)   AwsError: wrong, expired, not covering what it must
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cloister.wire.canonical import (
    ALGORITHM,
    STREAMING,
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED_PAYLOAD,
    canonical_request,
    header_map,
    hmac_hex,
    signing_key,
    string_to_sign,
    write_stamp,
)
from cloister.wire.denials import (
    S3_NAMES,
    WRONG,
    content_mismatch,
    expired_token,
    invalid_key,
    invalid_token,
    missing_authentication,
    signature_code,
)
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest
from cloister.wire.payload import ChunkDecoder, PlainDecoder, decoder

__all__ = [
    "ALGORITHM",
    "STREAMING",
    "STREAMING_SIGNED",
    "STREAMING_SIGNED_TRAILER",
    "STREAMING_UNSIGNED_TRAILER",
    "UNSIGNED_PAYLOAD",
    "ChunkDecoder",
    "PlainDecoder",
    "SignedBy",
    "Verified",
    "decoder",
    "expired_token",
    "invalid_key",
    "invalid_token",
    "missing_authentication",
    "parse_authorization",
    "sign",
    "signing_key",
    "verify",
]

MAX_SKEW_SECONDS = 900
MAX_EXPIRES_SECONDS = 604_800

_STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_CREDENTIAL = re.compile(
    r"([A-Za-z0-9]{3,128})/(\d{8})/([a-zA-Z0-9*-]{1,64})/([a-zA-Z0-9.-]{1,64})/aws4_request"
)
#: headers of which a second one would make it ambiguous what was signed
_SINGLE = ("authorization", "host", "x-amz-date", "date", "x-amz-content-sha256", "x-amz-security-token")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBy:
    """What a request says about its signature. Nothing of it is true before `verify`."""

    access_key_id: str
    token: str | None
    #: the time of signing, as it was written (20260102T030405Z) and as seconds since 1970
    stamp: str
    time: float
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    #: "header", or "query" for a presigned URL
    mode: str
    #: a presigned URL's life in seconds
    expires: int | None = None

    @property
    def scope(self) -> str:
        return f"{self.stamp[:8]}/{self.region}/{self.service}/aws4_request"

    @property
    def is_s3(self) -> bool:
        return self.service in S3_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A signature found true. `payload` is the declared hash: 64 hex digits, or one of the constants here.

    With `verify(…, streamed=True)` the body is not checked yet: `payload.decoder` does that."""

    signed_by: SignedBy
    payload: str
    signing_key: bytes

    @property
    def is_chunked(self) -> bool:
        return self.payload in STREAMING


# -- reading what a request claims ------------------------------------------------------------------------


def parse_authorization(request: HttpRequest) -> SignedBy | None:
    """The claim of a header or of a presigned URL; None when the request is anonymous.

    Raises AwsError: IncompleteSignature (S3: AuthorizationHeaderMalformed,
    AuthorizationQueryParametersError), InvalidRequest for other signing schemes and for both at once."""
    headers = header_map(request.headers)
    for name in _SINGLE:
        if len(headers.get(name, ())) > 1:
            raise AwsError("IncompleteSignature", f"The request has more than one {name} header.")
    in_query = "X-Amz-Signature=" in request.query or "X-Amz-Algorithm=" in request.query
    authorization = headers.get("authorization")
    if authorization is not None:
        if in_query:
            raise AwsError(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter or the "
                "Authorization header should be specified",
            )
        return _from_header(headers, authorization[0])
    if in_query:
        return _from_query(request)
    if re.search(r"(^|&)(AWSAccessKeyId|Signature)=", request.query):
        raise _unsupported()
    return None


def _unsupported() -> AwsError:
    return AwsError(
        "InvalidRequest",
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )


def _from_header(headers: dict[str, list[str]], authorization: str) -> SignedBy:
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme != ALGORITHM:
        if scheme in ("AWS", "AWS4-ECDSA-P256-SHA256", "Bearer", "Basic"):
            raise _unsupported()
        raise AwsError(
            "IncompleteSignature", f"Authorization header requires '{ALGORITHM}', not '{scheme[:50]}'."
        )
    fields: dict[str, str] = {}
    for part in rest.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or key in fields:
            raise AwsError(
                "IncompleteSignature",
                f"Invalid key=value pair in Authorization header: '{part.strip()[:200]}'.",
            )
        fields[key] = value
    is_s3 = "/s3/" in fields.get("Credential", "")
    for key in ("Credential", "SignedHeaders", "Signature"):
        if not fields.get(key):
            raise _malformed(is_s3, f"Authorization header requires '{key}' parameter.")
    date = headers.get("x-amz-date") or headers.get("date")
    if date is None:
        if is_s3:
            raise AwsError(
                "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header", 403
            )
        raise _malformed(
            is_s3, "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
        )
    return _signed_by(
        is_s3=is_s3,
        credential=fields["Credential"],
        stamp=date[0].strip(),
        signed_headers=fields["SignedHeaders"],
        signature=fields["Signature"],
        token=(headers.get("x-amz-security-token") or [None])[0],  # type: ignore[list-item]
        mode="header",
        expires=None,
    )


def _from_query(request: HttpRequest) -> SignedBy:
    found: dict[str, str] = {}
    for part in request.query.split("&"):
        key, _, value = part.partition("=")
        if key.startswith("X-Amz-"):
            if key in found:
                raise AwsError("IncompleteSignature", f"The request has more than one {key[:60]} parameter.")
            found[key] = unquote_to_bytes(value).decode("utf-8", "replace")
    is_s3 = "/s3/" in found.get("X-Amz-Credential", "")
    code = "AuthorizationQueryParametersError" if is_s3 else "IncompleteSignature"
    if found.get("X-Amz-Algorithm") != ALGORITHM:
        raise AwsError(code, f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    names = ["X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"]
    for key in [*names, "X-Amz-Expires"] if is_s3 else names:
        if not found.get(key):
            raise AwsError(
                code,
                "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
                "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters; "
                f"{key} is missing.",
            )
    expires_text = found.get("X-Amz-Expires", str(MAX_SKEW_SECONDS))
    if not (expires_text.isascii() and expires_text.isdigit() and len(expires_text) <= 9):
        raise AwsError(code, "X-Amz-Expires should be a number")
    expires = int(expires_text)
    if expires > MAX_EXPIRES_SECONDS:
        raise AwsError(
            code,
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must "
            f"be less than {MAX_EXPIRES_SECONDS} seconds",
        )
    return _signed_by(
        is_s3=is_s3,
        credential=found["X-Amz-Credential"],
        stamp=found["X-Amz-Date"],
        signed_headers=found["X-Amz-SignedHeaders"],
        signature=found["X-Amz-Signature"],
        token=found.get("X-Amz-Security-Token"),
        mode="query",
        expires=expires,
    )


def _signed_by(
    *,
    is_s3: bool,
    credential: str,
    stamp: str,
    signed_headers: str,
    signature: str,
    token: str | None,
    mode: str,
    expires: int | None,
) -> SignedBy:
    scope = _CREDENTIAL.fullmatch(credential)
    if scope is None:
        raise _malformed(
            is_s3,
            "The Credential must be '<access-key>/YYYYMMDD/REGION/SERVICE/aws4_request', "
            f"not '{credential[:200]}'.",
        )
    access_key_id, day, region, service = scope.groups()
    stamp, time = _read_stamp(stamp, is_s3)
    if stamp[:8] != day:
        raise _malformed(
            is_s3,
            f"Date in Credential scope does not match the date of the request: '{day}' is not '{stamp[:8]}'.",
        )
    names = tuple(signed_headers.split(";"))
    if not all(names) or list(names) != sorted(set(names)) or signed_headers != signed_headers.lower():
        raise _malformed(is_s3, "SignedHeaders must be lower case, sorted and without repetition.")
    if not _HEX64.fullmatch(signature):
        raise _malformed(is_s3, f"The Signature must be 64 hexadecimal digits, not '{signature[:100]}'.")
    return SignedBy(
        access_key_id=access_key_id,
        token=token,
        stamp=stamp,
        time=time,
        region=region,
        service=service,
        signed_headers=names,
        signature=signature,
        mode=mode,
        expires=expires,
    )


def _malformed(is_s3: bool, message: str) -> AwsError:
    if is_s3:
        return AwsError("AuthorizationHeaderMalformed", f"The authorization header is malformed; {message}")
    return AwsError("IncompleteSignature", message)


@lru_cache(maxsize=256)
def _read_stamp(text: str, is_s3: bool) -> tuple[str, float]:
    match = _STAMP.fullmatch(text)
    try:
        if match:
            year, month, day, hour, minute, second = map(int, match.groups())
            return text, datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
        when = parsedate_to_datetime(text)
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        return when.strftime("%Y%m%dT%H%M%SZ"), when.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        raise _malformed(
            is_s3,
            f"Date must be in ISO-8601 'basic format'. Got '{text[:100]}'. See http://en.wikipedia.org/wiki/ISO_8601",
        ) from None


# -- verifying --------------------------------------------------------------------------------------------


def verify(
    request: HttpRequest,
    signed_by: SignedBy,
    secret: str,
    now: float,
    *,
    service: str | None = None,
    region: str | None = None,
    body_sha256: str | None = None,
    streamed: bool = False,
) -> Verified:
    """Whether the holder of `secret` signed this request, now, with everything that must be covered.

    `service` and `region`: what the scope must name, when the caller knows. `body_sha256`: the body's hash
    in hex when it is known; computed from `request.body` otherwise. `streamed`: the body comes later and
    the caller puts it through `payload.decoder`; only for S3. Raises AwsError with the service's codes.
    """
    _check_scope(signed_by, service, region)
    _check_time(signed_by, now)
    headers = header_map(request.headers)
    _check_coverage(signed_by, headers)
    payload = _declared_payload(signed_by, headers)
    if not (streamed and signed_by.is_s3):
        actual = body_sha256 or hashlib.sha256(request.body).hexdigest()
        payload = _check_body(signed_by, payload, actual, request.body)
    assert payload is not None  # S3 always declares one
    key = signing_key(secret, signed_by.stamp[:8], signed_by.region, signed_by.service)
    try:
        canonical = canonical_request(
            request.method,
            request.path,
            _query_to_sign(request, signed_by),
            headers,
            signed_by.signed_headers,
            payload,
            is_s3=signed_by.is_s3,
        )
        text = string_to_sign(signed_by.stamp, signed_by.scope, canonical)
    except UnicodeError:
        raise AwsError("InvalidURI", "The request's path, query and headers must be UTF-8.") from None
    if not hmac.compare_digest(hmac_hex(key, text), signed_by.signature):
        raise _wrong_signature(signed_by, text, canonical)
    return Verified(signed_by=signed_by, payload=payload, signing_key=key)


def _check_scope(signed_by: SignedBy, service: str | None, region: str | None) -> None:
    if service is not None and signed_by.service != service:
        message = f"Credential should be scoped to correct service: '{service}'."
    elif region is not None and signed_by.region != region:
        message = f"Credential should be scoped to a valid region, not '{signed_by.region}'."
        if signed_by.is_s3:
            message = f"the region '{signed_by.region}' is wrong; expecting '{region}'"
            raise AwsError(
                "AuthorizationHeaderMalformed",
                f"The authorization header is malformed; {message}",
                Region=region,
            )
    else:
        return
    raise AwsError(signature_code(signed_by.service), message, 403)


def _check_time(signed_by: SignedBy, now: float) -> None:
    age = now - signed_by.time
    server = write_stamp(now)
    if signed_by.mode == "query":
        expires = signed_by.expires or 0
        if age > expires:
            if signed_by.is_s3:
                raise AwsError(
                    "AccessDenied",
                    "Request has expired",
                    403,
                    **{
                        "X-Amz-Expires": str(expires),
                        "Expires": _iso(signed_by.time + expires),
                        "ServerTime": _iso(now),
                    },
                )
            raise _expired(
                signed_by, f"Signature expired: {signed_by.stamp} and {expires} s are past; now {server}"
            )
        if age >= -MAX_SKEW_SECONDS:
            return
    elif abs(age) <= MAX_SKEW_SECONDS:
        return
    if signed_by.is_s3:
        raise AwsError(
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            403,
            RequestTime=signed_by.stamp,
            ServerTime=_iso(now),
            MaxAllowedSkewMilliseconds=str(MAX_SKEW_SECONDS * 1000),
        )
    if age > 0:
        limit = write_stamp(now - MAX_SKEW_SECONDS)
        message = f"Signature expired: {signed_by.stamp} is now earlier than {limit} ({server} - 15 min.)"
    else:
        limit = write_stamp(now + MAX_SKEW_SECONDS)
        message = (
            f"Signature not yet current: {signed_by.stamp} is still later than {limit} ({server} + 15 min.)"
        )
    raise _expired(signed_by, message)


def _expired(signed_by: SignedBy, message: str) -> AwsError:
    if signed_by.service == "ec2":
        return AwsError("RequestExpired", f"Request has expired. {message}")
    return AwsError(signature_code(signed_by.service), message, 403)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_coverage(signed_by: SignedBy, headers: dict[str, list[str]]) -> None:
    """`host` and every x-amz-* header sent must be signed, and every signed header must be there."""
    signed = signed_by.signed_headers
    if "host" not in signed or "host" not in headers:
        raise _malformed(signed_by.is_s3, "'Host' must be a 'SignedHeader' in the AWS Authorization.")
    uncovered = [name for name in headers if name.startswith("x-amz-") and name not in signed]
    if uncovered:
        if signed_by.is_s3:
            raise AwsError(
                "AccessDenied",
                "There were headers present in the request which were not signed",
                403,
                HeadersNotSigned=", ".join(sorted(uncovered)),
            )
        raise AwsError(
            signature_code(signed_by.service),
            f"'{sorted(uncovered)[0]}' must be a 'SignedHeader' in the AWS Authorization.",
            403,
        )


def _declared_payload(signed_by: SignedBy, headers: dict[str, list[str]]) -> str | None:
    declared = headers.get("x-amz-content-sha256")
    if declared is None:
        if not signed_by.is_s3:
            return None
        if signed_by.mode == "query":
            return UNSIGNED_PAYLOAD
        raise AwsError("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    value = declared[0].strip()
    if _HEX64.fullmatch(value) or (signed_by.is_s3 and (value == UNSIGNED_PAYLOAD or value in STREAMING)):
        return value
    if signed_by.is_s3:
        raise AwsError(
            "InvalidArgument",
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid "
            "sha256 value.",
            ArgumentName="x-amz-content-sha256",
            ArgumentValue=value[:200],
        )
    # Only S3 takes bodies that the signature does not cover.
    raise AwsError(
        signature_code(signed_by.service),
        f"x-amz-content-sha256 must be a sha256 value, not '{value[:100]}'.",
        403,
    )


def _check_body(signed_by: SignedBy, declared: str | None, actual: str, body: bytes) -> str:
    """The hash that the signature must cover, when the whole body is at hand."""
    if declared is None:
        return actual
    if not _HEX64.fullmatch(declared):
        if declared in STREAMING and body:
            raise AwsError("NotImplemented", "A chunked payload must be streamed to be verified.", 501)
        return declared
    if not hmac.compare_digest(declared, actual):
        raise content_mismatch(signed_by.service, declared, actual)
    return declared


def _query_to_sign(request: HttpRequest, signed_by: SignedBy) -> str:
    if signed_by.mode == "header":
        return request.query
    return "&".join(part for part in request.query.split("&") if not part.startswith("X-Amz-Signature="))


def _wrong_signature(signed_by: SignedBy, text: str, canonical: str) -> AwsError:
    if not signed_by.is_s3:
        return AwsError(signature_code(signed_by.service), WRONG, 403)
    return AwsError(
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. Check your key and "
        "signing method.",
        403,
        AWSAccessKeyId=signed_by.access_key_id,
        StringToSign=text,
        SignatureProvided=signed_by.signature,
        CanonicalRequest=canonical,
    )


# -- signing ----------------------------------------------------------------------------------------------


def sign(
    request: HttpRequest,
    *,
    access_key: str,
    secret: str,
    token: str | None = None,
    region: str,
    service: str,
    now: float,
    payload_hash: str | None = None,
) -> tuple[tuple[str, str], ...]:
    """The request's headers with x-amz-date, token, content hash (S3) and Authorization; all are signed.

    `request` must have a Host header. `payload_hash`: hex or one of this module's constants; computed from
    the body when None."""
    stamp = write_stamp(now)
    is_s3 = service in S3_NAMES
    payload = payload_hash or hashlib.sha256(request.body).hexdigest()
    dropped = ("authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256")
    kept = [pair for pair in request.headers if pair[0].lower() not in dropped]
    kept.append(("x-amz-date", stamp))
    if token:
        kept.append(("x-amz-security-token", token))
    if is_s3 or payload_hash is not None:
        kept.append(("x-amz-content-sha256", payload))
    headers = header_map(kept)
    unsigned = (
        "connection",
        "user-agent",
        "expect",
        "transfer-encoding",
        "keep-alive",
        "te",
        "x-amzn-trace-id",
    )
    names = sorted(name for name in headers if name not in unsigned)
    canonical = canonical_request(
        request.method, request.path, request.query, headers, names, payload, is_s3=is_s3
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    key = signing_key(secret, stamp[:8], region, service)
    signature = hmac_hex(key, string_to_sign(stamp, scope, canonical))
    value = (
        f"{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return (*kept, ("Authorization", value))
