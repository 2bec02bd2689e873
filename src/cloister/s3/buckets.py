"""Bucket operations answered from the World. Each takes an `Ask` and returns (status, headers, XML body).

AWS: "Amazon S3 API Reference", the operations of the same names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from cloister.engine import Engine
from cloister.iam import policy as iam_policy
from cloister.s3 import bucket_policy
from cloister.s3.address import check_bucket_name
from cloister.s3.model import Bucket
from cloister.wire.errors import AwsError

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    engine: Engine
    account: str
    region: str
    name: str | None
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def bucket(self) -> Bucket:
        return existing(self.engine, self.name)


def existing(engine: Engine, name: str | None) -> Bucket:
    found = engine.world.get(Bucket, name)
    if found is None:
        raise AwsError("NoSuchBucket", "The specified bucket does not exist", 404, BucketName=name or "")
    return found


def canonical_user(account: str) -> str:
    """The canonical user id of an account: 64 hex digits, ours to choose."""
    return hashlib.sha256(f"cloister canonical user {account}".encode()).hexdigest()


def _xml(text: str, status: int = 200) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return status, {"Content-Type": "application/xml"}, body


def _empty(status: int = 200, **headers: str) -> Answer:
    return status, headers, b""


def malformed() -> AwsError:
    return AwsError(
        "MalformedXML",
        "The XML you provided was not well-formed or did not validate against our published schema",
    )


def parse_xml(body: bytes) -> ElementTree.Element:
    """The body's root, tags without their namespace. Raises AwsError MalformedXML; no DTD is accepted."""
    try:
        text = body.decode()  # in another encoding, as in those with zeros, a DTD would not be seen here
        if "\0" in text or "<!" in text.replace("<![CDATA[", "").replace("<!--", ""):
            raise malformed()
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        raise malformed() from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


# -- buckets ----------------------------------------------------------------------------------------------


def list_buckets(ask: Ask) -> Answer:
    limit = ask.query.get("max-buckets", "10000")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 5 and 1 <= int(limit) <= 10000):
        raise AwsError(
            "InvalidArgument", "Argument max-buckets must be an integer between 1 and 10000",
            ArgumentName="max-buckets", ArgumentValue=limit[:50],
        )  # fmt: skip
    prefix, after = ask.query.get("prefix", ""), ask.query.get("continuation-token", "")
    found = sorted(
        (each for each in ask.engine.world.all(Bucket) if each.name.startswith(prefix) and each.name > after),
        key=lambda each: each.name,
    )
    if wanted := ask.query.get("bucket-region"):
        found = [each for each in found if each.region == wanted]
    page = found[: int(limit)]
    rows = "".join(
        f"<Bucket><Name>{escape(each.name)}</Name><CreationDate>{_iso(each.created)}</CreationDate>"
        f"<BucketRegion>{each.region}</BucketRegion></Bucket>"
        for each in page
    )
    more = f"<ContinuationToken>{escape(page[-1].name)}</ContinuationToken>" if len(page) < len(found) else ""
    shown = f"<Prefix>{escape(prefix)}</Prefix>" if prefix else ""
    return _xml(
        f"<ListAllMyBucketsResult {XMLNS}><Owner><ID>{canonical_user(ask.account)}</ID></Owner>"
        f"<Buckets>{rows}</Buckets>{more}{shown}</ListAllMyBucketsResult>"
    )


def check_create(ask: Ask) -> Bucket | None:
    """What CreateBucket demands before anything is made; the bucket when it is there and it is fine so."""
    assert ask.name is not None
    check_bucket_name(ask.name)
    if ask.headers.get("x-amz-bucket-object-lock-enabled", "").lower() == "true":
        _refuse_header("x-amz-bucket-object-lock-enabled")
    if ask.headers.get("x-amz-acl", "private") != "private" or any(
        name.startswith("x-amz-grant-") for name in ask.headers
    ):
        raise AwsError(
            "InvalidBucketAclWithObjectOwnership",
            "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
        )
    wanted = ""
    if ask.body.strip():
        root = parse_xml(ask.body)
        if root.tag != "CreateBucketConfiguration":
            raise malformed()
        wanted = (root.findtext("LocationConstraint") or "").strip()
    if wanted == "EU":
        wanted = "eu-west-1"
    if ask.region == "us-east-1":
        if wanted == "us-east-1":
            raise AwsError(
                "InvalidLocationConstraint",
                "The specified location-constraint is not valid",
                LocationConstraint=wanted,
            )
    elif not wanted:
        raise AwsError(
            "IllegalLocationConstraintException",
            "The unspecified location constraint is incompatible for the region specific endpoint this "
            "request was sent to.",
        )
    if wanted not in ("", ask.region):
        raise AwsError(
            "IllegalLocationConstraintException",
            f"The {wanted} location constraint is incompatible for the region specific endpoint this request "
            "was sent to.",
        )
    found = ask.engine.world.get(Bucket, ask.name)
    if found is not None and ask.region != "us-east-1":
        raise AwsError(
            "BucketAlreadyOwnedByYou",
            "Your previous request to create the named bucket succeeded and you already own it.",
            409,
            BucketName=ask.name,
        )
    return found


def created(ask: Ask) -> Answer:
    """Record the bucket (the backend has it); the same answer when it was there before."""
    assert ask.name is not None
    with ask.engine.transaction() as tx:
        if tx.get(Bucket, ask.name) is None:
            tx.put(
                Bucket(
                    name=ask.name,
                    owner_account=ask.account,
                    region=ask.region,
                    created=ask.engine.clock(),
                    tags=_tags(parse_xml(ask.body).find("Tags")) if ask.body.strip() else {},
                )
            )
    return _empty(Location=f"/{ask.name}")


def deleted(ask: Ask) -> Answer:
    with ask.engine.transaction() as tx:
        tx.delete(Bucket, ask.bucket.name)
    return _empty(204)


def head_bucket(ask: Ask) -> Answer:
    return 200, {"x-amz-bucket-region": ask.bucket.region, "x-amz-access-point-alias": "false"}, b""


def location(ask: Ask) -> Answer:
    region = ask.bucket.region
    if region == "us-east-1":  # AWS: "Buckets in Region us-east-1 have a LocationConstraint of null."
        return _xml(f"<LocationConstraint {XMLNS}/>")
    return _xml(f"<LocationConstraint {XMLNS}>{region}</LocationConstraint>")


def _keep(ask: Ask, **changes: Any) -> None:
    bucket = ask.bucket
    with ask.engine.transaction() as tx:
        tx.put(replace(bucket, **changes))


# -- policy -----------------------------------------------------------------------------------------------


def get_policy(ask: Ask) -> Answer:
    text = _policy_of(ask)
    return 200, {"Content-Type": "application/json"}, text.encode()


def _policy_of(ask: Ask) -> str:
    text = ask.bucket.policy
    if text is None:
        raise AwsError(
            "NoSuchBucketPolicy", "The bucket policy does not exist", 404, BucketName=ask.name or ""
        )
    return text


def put_policy(ask: Ask) -> Answer:
    bucket = ask.bucket
    try:
        text = ask.body.decode("utf-8")
    except UnicodeDecodeError:
        raise AwsError("MalformedPolicy", "Policies must be valid UTF-8.") from None
    parsed = bucket_policy.parse(text, bucket.name)
    if bucket.blocks("BlockPublicPolicy") and bucket_policy.is_public(parsed):
        raise AwsError(
            "AccessDenied",
            f"The policy of {bucket.name} is not put because public policies are blocked by the "
            "BlockPublicPolicy block public access setting.",
            403,
        )
    _keep(ask, policy=text)
    return _empty(204)


def delete_policy(ask: Ask) -> Answer:
    _keep(ask, policy=None)
    return _empty(204)


def policy_status(ask: Ask) -> Answer:
    public = bucket_policy.is_public(iam_policy.parse(_policy_of(ask), "resource"))
    return _xml(f"<PolicyStatus {XMLNS}><IsPublic>{str(public).lower()}</IsPublic></PolicyStatus>")


# -- public access ------------------------------------------------------------------------------------------

_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


def get_public_access_block(ask: Ask) -> Answer:
    found = ask.bucket.public_access_block
    if found is None:
        raise AwsError(
            "NoSuchPublicAccessBlockConfiguration",
            "The public access block configuration was not found",
            404,
            BucketName=ask.bucket.name,
        )
    rows = "".join(f"<{name}>{str(found.get(name, False)).lower()}</{name}>" for name in _BLOCKS)
    return _xml(f"<PublicAccessBlockConfiguration {XMLNS}>{rows}</PublicAccessBlockConfiguration>")


def put_public_access_block(ask: Ask) -> Answer:
    """Two of the four change nothing: there are no ACLs."""
    root = parse_xml(ask.body)
    given = {each.tag: (each.text or "").strip().lower() for each in root}
    if (
        root.tag != "PublicAccessBlockConfiguration"
        or not set(given) <= set(_BLOCKS)
        or not set(given.values()) <= {"true", "false"}
    ):
        raise malformed()
    _keep(ask, public_access_block={name: given.get(name) == "true" for name in _BLOCKS})
    return _empty()


def delete_public_access_block(ask: Ask) -> Answer:
    _keep(ask, public_access_block=None)
    return _empty(204)


def put_acl(ask: Ask) -> NoReturn:
    raise AwsError("AccessControlListNotSupported", "The bucket does not allow ACLs")


def put_ownership_controls(ask: Ask) -> Answer:
    """BucketOwnerEnforced is what every bucket has."""
    root = parse_xml(ask.body)
    wanted = [each.findtext("ObjectOwnership") or "" for each in root.findall("Rule")]
    if root.tag != "OwnershipControls" or len(wanted) != 1:
        raise malformed()
    if wanted != ["BucketOwnerEnforced"]:
        raise AwsError(
            "NotImplemented",
            f"Cloister does not implement ObjectOwnership {wanted[0][:50]}, only BucketOwnerEnforced.",
            501,
        )
    return _empty()


# -- tags -------------------------------------------------------------------------------------------------


def get_tags(ask: Ask) -> Answer:
    tags = ask.bucket.tags
    if not tags:
        raise AwsError("NoSuchTagSet", "The TagSet does not exist", 404, BucketName=ask.name or "")
    rows = "".join(
        f"<Tag><Key>{escape(key)}</Key><Value>{escape(value)}</Value></Tag>" for key, value in tags.items()
    )
    return _xml(f"<Tagging {XMLNS}><TagSet>{rows}</TagSet></Tagging>")


def put_tags(ask: Ask) -> Answer:
    _keep(ask, tags=parse_tags(ask.body))
    return _empty(204)


def delete_tags(ask: Ask) -> Answer:
    _keep(ask, tags={})
    return _empty(204)


def parse_tags(body: bytes) -> dict[str, str]:
    """The tags of a Tagging document."""
    return _tags(parse_xml(body).find("TagSet"))


def _tags(found: ElementTree.Element | None) -> dict[str, str]:
    tags: dict[str, str] = {}
    for tag in () if found is None else found.findall("Tag"):
        key, value = tag.findtext("Key") or "", tag.findtext("Value") or ""
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.lower().startswith("aws:"):
            raise AwsError("InvalidTag", "The TagKey you have provided is invalid", TagKey=key[:128])
        if key in tags:
            raise AwsError("InvalidTag", "Cannot provide multiple Tags with the same key", TagKey=key)
        tags[key] = value
    if len(tags) > 50:
        raise AwsError("BadRequest", "Bucket tag count cannot be greater than 50")
    return tags


# -- access control lists: there are none ------------------------------------------------


def acl(ask: Ask) -> Answer:
    return 200, {"Content-Type": "application/xml"}, access_control(ask.bucket.owner_account)


def access_control(account: str) -> bytes:
    """Of what `account` owns: a bucket or an object."""
    owner = canonical_user(account)
    return _xml(
        f"<AccessControlPolicy {XMLNS}><Owner><ID>{owner}</ID></Owner><AccessControlList><Grant>"
        f'<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser">'
        f"<ID>{owner}</ID></Grantee><Permission>FULL_CONTROL</Permission></Grant></AccessControlList>"
        "</AccessControlPolicy>"
    )[2]


def _default(text: str) -> Callable[[Ask], Answer]:
    def answer(ask: Ask) -> Answer:
        _ = ask.bucket
        return _xml(text)

    return answer


def _refuse_header(name: str) -> NoReturn:
    raise AwsError(
        "NotImplemented",
        f"A header you provided implies functionality that is not implemented: {name}",
        501,
        Header=name,
    )


ANSWERS: dict[str, Callable[[Ask], Answer]] = {
    "ListBuckets": list_buckets,
    "HeadBucket": head_bucket,
    "GetBucketLocation": location,
    "GetBucketPolicy": get_policy,
    "PutBucketPolicy": put_policy,
    "DeleteBucketPolicy": delete_policy,
    "GetBucketPolicyStatus": policy_status,
    "GetBucketTagging": get_tags,
    "PutBucketTagging": put_tags,
    "DeleteBucketTagging": delete_tags,
    "GetBucketAcl": acl,
    "PutBucketAcl": put_acl,
    "PutObjectAcl": put_acl,
    "GetPublicAccessBlock": get_public_access_block,
    "PutPublicAccessBlock": put_public_access_block,
    "DeletePublicAccessBlock": delete_public_access_block,
    "PutBucketOwnershipControls": put_ownership_controls,
    "GetBucketOwnershipControls": _default(
        f"<OwnershipControls {XMLNS}><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>"
        "</OwnershipControls>"
    ),
}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def error_xml(error: AwsError, resource: str, request_id: str, host_id: str) -> bytes:
    fields: dict[str, Any] = {"Code": error.code, "Message": error.message, **error.fields}
    rows = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in fields.items())
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{rows}<Resource>{escape(resource)}</Resource>'
        f"<RequestId>{request_id}</RequestId><HostId>{host_id}</HostId></Error>"
    ).encode("utf-8", "replace")
