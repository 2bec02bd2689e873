"""What an S3 request is: operation, the IAM actions it needs on which resources, its condition keys. Pure.

AWS: "Amazon S3 API Reference" (operations) and "Actions, resources, and condition keys for Amazon S3"
(Service Authorization Reference), "Required permissions for Amazon S3 API operations".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote, unquote_plus

from cloister.s3 import sse
from cloister.wire.errors import AwsError

#: (method, level, sub-resource) -> (operation, action without "s3:"). Level: service, bucket, key.
_TABLE: dict[tuple[str, str, str], tuple[str, str]] = {
    ("GET", "service", ""): ("ListBuckets", "ListAllMyBuckets"),
    ("PUT", "bucket", ""): ("CreateBucket", "CreateBucket"),
    ("DELETE", "bucket", ""): ("DeleteBucket", "DeleteBucket"),
    ("HEAD", "bucket", ""): ("HeadBucket", "ListBucket"),
    ("GET", "bucket", ""): ("ListObjects", "ListBucket"),
    ("GET", "bucket", "list-type"): ("ListObjectsV2", "ListBucket"),
    ("GET", "bucket", "versions"): ("ListObjectVersions", "ListBucketVersions"),
    ("GET", "bucket", "uploads"): ("ListMultipartUploads", "ListBucketMultipartUploads"),
    ("GET", "bucket", "location"): ("GetBucketLocation", "GetBucketLocation"),
    ("GET", "bucket", "policyStatus"): ("GetBucketPolicyStatus", "GetBucketPolicyStatus"),
    ("GET", "bucket", "session"): ("CreateSession", "CreateSession"),
    ("POST", "bucket", "delete"): ("DeleteObjects", "DeleteObject"),
    ("POST", "bucket", ""): ("PostObject", "PutObject"),
    ("GET", "key", ""): ("GetObject", "GetObject"),
    ("HEAD", "key", ""): ("HeadObject", "GetObject"),
    ("PUT", "key", ""): ("PutObject", "PutObject"),
    ("DELETE", "key", ""): ("DeleteObject", "DeleteObject"),
    ("GET", "key", "attributes"): ("GetObjectAttributes", "GetObjectAttributes"),
    ("GET", "key", "torrent"): ("GetObjectTorrent", "GetObjectTorrent"),
    ("GET", "key", "uploadId"): ("ListParts", "ListMultipartUploadParts"),
    ("PUT", "key", "uploadId"): ("UploadPart", "PutObject"),
    ("POST", "key", "uploads"): ("CreateMultipartUpload", "PutObject"),
    ("POST", "key", "uploadId"): ("CompleteMultipartUpload", "PutObject"),
    ("DELETE", "key", "uploadId"): ("AbortMultipartUpload", "AbortMultipartUpload"),
    ("POST", "key", "restore"): ("RestoreObject", "RestoreObject"),
    ("POST", "key", "select"): ("SelectObjectContent", "GetObject"),
    ("PUT", "key", "renameObject"): ("RenameObject", "PutObject"),
}
#: sub-resources of a bucket that are read by GET, written by PUT and, where it says so, removed by DELETE:
#: name -> (operation's noun, action's noun, what DELETE needs: None cannot be deleted)
_BUCKET_SETTINGS: dict[str, tuple[str, str, str | None]] = {
    "abac": ("BucketAbac", "BucketAbac", None),
    "accelerate": ("BucketAccelerateConfiguration", "AccelerateConfiguration", None),
    "acl": ("BucketAcl", "BucketAcl", None),
    "analytics": ("BucketAnalyticsConfiguration", "AnalyticsConfiguration", "PutAnalyticsConfiguration"),
    "cors": ("BucketCors", "BucketCORS", "PutBucketCORS"),
    "encryption": ("BucketEncryption", "EncryptionConfiguration", "PutEncryptionConfiguration"),
    "intelligent-tiering": (
        "BucketIntelligentTieringConfiguration",
        "IntelligentTieringConfiguration",
        "PutIntelligentTieringConfiguration",
    ),
    "inventory": ("BucketInventoryConfiguration", "InventoryConfiguration", "PutInventoryConfiguration"),
    "lifecycle": ("BucketLifecycleConfiguration", "LifecycleConfiguration", "PutLifecycleConfiguration"),
    "logging": ("BucketLogging", "BucketLogging", None),
    "metrics": ("BucketMetricsConfiguration", "MetricsConfiguration", "PutMetricsConfiguration"),
    "notification": ("BucketNotificationConfiguration", "BucketNotification", None),
    "object-lock": ("ObjectLockConfiguration", "BucketObjectLockConfiguration", None),
    "ownershipControls": ("BucketOwnershipControls", "BucketOwnershipControls", "PutBucketOwnershipControls"),
    "policy": ("BucketPolicy", "BucketPolicy", "DeleteBucketPolicy"),
    "publicAccessBlock": ("PublicAccessBlock", "BucketPublicAccessBlock", "PutBucketPublicAccessBlock"),
    "replication": ("BucketReplication", "ReplicationConfiguration", "PutReplicationConfiguration"),
    "requestPayment": ("BucketRequestPayment", "BucketRequestPayment", None),
    "tagging": ("BucketTagging", "BucketTagging", "PutBucketTagging"),
    "versioning": ("BucketVersioning", "BucketVersioning", None),
    "website": ("BucketWebsite", "BucketWebsite", "DeleteBucketWebsite"),
}
#: newer ones, of which nothing is done: (sub-resource, level) -> operations by method. If they were not here,
#: what is asked of a sub-resource would be done to the bucket or the object itself.
_NOT_DONE: dict[tuple[str, str], dict[str, str]] = {
    ("annotation", "key"): {
        "GET": "GetObjectAnnotation",
        "PUT": "PutObjectAnnotation",
        "DELETE": "DeleteObjectAnnotation",
    },
    ("encryption", "key"): {"PUT": "UpdateObjectEncryption"},
    ("metadataConfiguration", "bucket"): {
        "GET": "GetBucketMetadataConfiguration",
        "POST": "CreateBucketMetadataConfiguration",
        "DELETE": "DeleteBucketMetadataConfiguration",
    },
    ("metadataTable", "bucket"): {
        "GET": "GetBucketMetadataTableConfiguration",
        "POST": "CreateBucketMetadataTableConfiguration",
        "DELETE": "DeleteBucketMetadataTableConfiguration",
    },
    ("metadataAnnotationTable", "bucket"): {"PUT": "UpdateBucketMetadataAnnotationTableConfiguration"},
    ("metadataInventoryTable", "bucket"): {"PUT": "UpdateBucketMetadataInventoryTableConfiguration"},
    ("metadataJournalTable", "bucket"): {"PUT": "UpdateBucketMetadataJournalTableConfiguration"},
}
_KEY_SETTINGS: dict[str, tuple[str, bool]] = {  # name -> (noun, has DELETE)
    "acl": ("ObjectAcl", False),
    "legal-hold": ("ObjectLegalHold", False),
    "retention": ("ObjectRetention", False),
    "tagging": ("ObjectTagging", True),
}
for _sub, (_noun, _action, _remove) in _BUCKET_SETTINGS.items():
    _TABLE["GET", "bucket", _sub] = (f"Get{_noun}", f"Get{_action}")
    _TABLE["PUT", "bucket", _sub] = (f"Put{_noun}", f"Put{_action}")
    if _remove:
        _TABLE["DELETE", "bucket", _sub] = (f"Delete{_noun}", _remove)
for _sub, (_noun, _deletes) in _KEY_SETTINGS.items():
    _TABLE["GET", "key", _sub] = (f"Get{_noun}", f"Get{_noun}")
    _TABLE["PUT", "key", _sub] = (f"Put{_noun}", f"Put{_noun}")
    if _deletes:
        _TABLE["DELETE", "key", _sub] = (f"Delete{_noun}", f"Delete{_noun}")
for (_sub, _level), _methods in _NOT_DONE.items():
    for _method, _name in _methods.items():
        _TABLE[_method, _level, _sub] = (_name, _name)

_SUBRESOURCES = frozenset(sub for _, _, sub in _TABLE if sub)
#: with ?versionId= the action is the version's own
_VERSIONED = {
    "GetObject": "GetObjectVersion",
    "DeleteObject": "DeleteObjectVersion",
    "GetObjectAcl": "GetObjectVersionAcl",
    "PutObjectAcl": "PutObjectVersionAcl",
    "GetObjectTagging": "GetObjectVersionTagging",
    "PutObjectTagging": "PutObjectVersionTagging",
    "DeleteObjectTagging": "DeleteObjectVersionTagging",
    "GetObjectAttributes": "GetObjectVersionAttributes",
    "GetObjectTorrent": "GetObjectVersionTorrent",
}
#: answered from the World
ANSWERED = frozenset(
    {
        *("ListBuckets", "CreateBucket", "DeleteBucket", "HeadBucket", "GetBucketLocation"),
        *("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy", "GetBucketPolicyStatus"),
        *("GetBucketTagging", "PutBucketTagging", "DeleteBucketTagging"),
        *("GetBucketAcl", "PutBucketAcl", "PutObjectAcl"),
        *("GetPublicAccessBlock", "PutPublicAccessBlock", "DeletePublicAccessBlock"),
        *("GetBucketOwnershipControls", "PutBucketOwnershipControls", "DeleteBucketOwnershipControls"),
        *("GetBucketEncryption", "PutBucketEncryption", "DeleteBucketEncryption"),
        *("GetBucketVersioning", "PutBucketVersioning"),
        *("GetBucketCors", "PutBucketCors", "DeleteBucketCors"),
        *("GetBucketLifecycleConfiguration", "PutBucketLifecycleConfiguration"),
        *("DeleteBucketLifecycleConfiguration", "GetObjectLockConfiguration"),
        *("GetBucketReplication", "DeleteBucketReplication", "GetBucketWebsite", "DeleteBucketWebsite"),
        *("GetBucketLogging", "PutBucketLogging", "GetBucketAbac", "PutBucketAbac"),
        *("GetBucketRequestPayment", "PutBucketRequestPayment"),
        *("GetBucketNotificationConfiguration", "PutBucketNotificationConfiguration"),
        *("GetBucketAccelerateConfiguration", "PutBucketAccelerateConfiguration"),
        *("GetObjectLegalHold", "PutObjectLegalHold", "GetObjectRetention", "PutObjectRetention"),
        *(
            f"{verb}Bucket{kind}Configuration"
            for verb in ("Get", "Delete")
            for kind in ("Analytics", "IntelligentTiering", "Inventory", "Metrics")
        ),
    }
)
#: carried out by the backend
FORWARDED = frozenset(
    {
        *("ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads"),
        *("GetObject", "HeadObject", "PutObject", "CopyObject", "DeleteObject", "DeleteObjects"),
        *("CreateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload"),
        *("AbortMultipartUpload", "ListParts"),
        *("GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging"),
        *("GetObjectAcl", "GetObjectAttributes", "PostObject"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Need:
    """One permission that a request to S3 needs (an API call's is `services.api.Need`): action "s3:GetObject"
    on an ARN; `bucket` owns the resource, None: the account does."""

    action: str
    resource: str
    bucket: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`needs` must all be allowed. `source`: bucket, key, version of a copy's source; `of_tags` must be, too,
    if that has tags, which are copied."""

    name: str
    needs: tuple[S3Need, ...]
    source: tuple[str, str, str | None] | None = None
    of_tags: tuple[S3Need, ...] = ()


def operation(
    method: str,
    bucket: str | None,
    key: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    *,
    region: str,
    account: str,
) -> Operation:
    """What this request asks for. `query` decoded; `headers` by lower-case name; KMS keys that are named by
    their id are of `region` and `account`.

    Raises AwsError MethodNotAllowed (405), NotImplemented (501) for what exists in S3 and not here,
    InvalidArgument for a copy source that names nothing."""
    level = "service" if bucket is None else "key" if key else "bucket"
    subs = [name for name in query if name in _SUBRESOURCES and (method, level, name) in _TABLE]
    other = [name for name in query if name in _SUBRESOURCES and (method, level, name) not in _TABLE]
    if other and not subs:
        raise AwsError(
            "MethodNotAllowed",
            "The specified method is not allowed against this resource.",
            405,
            Method=method,
        )
    found = _TABLE.get((method, level, subs[0] if subs else ""))
    if found is None or len(subs) > 1:
        raise AwsError(
            "MethodNotAllowed",
            "The specified method is not allowed against this resource.",
            405,
            Method=method,
        )
    name, action = found
    source = None
    if "x-amz-copy-source" in headers and name in ("PutObject", "UploadPart"):
        name = "CopyObject" if name == "PutObject" else "UploadPartCopy"
        source = copy_source(headers["x-amz-copy-source"])
    if name not in ANSWERED and name not in FORWARDED:
        raise AwsError(
            "NotImplemented", f"A header or operation you provided implies functionality that is not "
            f"implemented: Cloister does not implement s3 {name}.", 501,
        )  # fmt: skip
    if query.get("versionId"):
        action = _VERSIONED.get(action, action)
    arn = "*" if bucket is None else f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    needs = []
    if name != "DeleteObjects":  # asked key by key
        needs.append(S3Need(action=f"s3:{action}", resource=arn, bucket=bucket))
    if name in ("PutObject", "CopyObject", "CreateMultipartUpload"):
        if "x-amz-tagging" in headers:
            needs.append(S3Need(action="s3:PutObjectTagging", resource=arn, bucket=bucket))
        if any(each == "x-amz-acl" or each.startswith("x-amz-grant-") for each in headers):
            needs.append(S3Need(action="s3:PutObjectAcl", resource=arn, bucket=bucket))
    if name in ("PutObject", "CompleteMultipartUpload") and "if-match" in headers:
        # AWS (conditional writes): who compares an object's ETag must be allowed to read it.
        needs.append(S3Need(action="s3:GetObject", resource=arn, bucket=bucket))
    if name == "GetObjectAttributes":
        wanted = "s3:GetObjectVersion" if query.get("versionId") else "s3:GetObject"
        needs.append(S3Need(action=wanted, resource=arn, bucket=bucket))
    for asked, named in sse.permissions(name, headers):
        needs.append(S3Need(action=asked, resource=sse.key_arn(named, region, account), bucket=None))
    if source is None:
        return Operation(name=name, needs=tuple(needs))
    read = S3Need(
        action="s3:GetObjectVersion" if source[2] else "s3:GetObject",
        resource=f"arn:aws:s3:::{source[0]}/{source[1]}",
        bucket=source[0],
    )
    of_tags: tuple[S3Need, ...] = ()
    if name == "CopyObject" and headers.get("x-amz-tagging-directive", "COPY").upper() != "REPLACE":
        of_tags = (
            replace(read, action=f"{read.action}Tagging"),
            S3Need(action="s3:PutObjectTagging", resource=arn, bucket=bucket),
        )
    return Operation(name=name, needs=(*needs, read), source=source, of_tags=of_tags)


def copy_source(text: str) -> tuple[str, str, str | None]:
    """x-amz-copy-source: [/]BUCKET/KEY[?versionId=…], percent-encoded."""
    path, _, query = text.partition("?")
    version = query.removeprefix("versionId=") if query.startswith("versionId=") else None
    bucket, slash, key = unquote(path.removeprefix("/")).partition("/")
    if not bucket or not slash or not key or bucket.startswith("arn:") or (query and version is None):
        raise AwsError(
            "InvalidArgument",
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            ArgumentName="x-amz-copy-source",
            ArgumentValue=text[:200],
        )
    return bucket, key, version


_FROM_QUERY = {"prefix": "s3:prefix", "delimiter": "s3:delimiter", "max-keys": "s3:max-keys",
               "versionId": "s3:VersionId"}  # fmt: skip
_FROM_HEADERS = (
    *("x-amz-acl", "x-amz-copy-source", "x-amz-metadata-directive", "x-amz-storage-class"),
    *("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"),
    *("x-amz-grant-read", "x-amz-grant-write", "x-amz-grant-read-acp", "x-amz-grant-write-acp"),
    *("x-amz-grant-full-control", "x-amz-content-sha256", "x-amz-website-redirect-location"),
)


def context(query: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, object]:
    """The condition keys that the request itself carries."""
    found: dict[str, object] = {key: query[name] for name, key in _FROM_QUERY.items() if name in query}
    found.update({f"s3:{name}": headers[name] for name in _FROM_HEADERS if name in headers})
    for name in ("if-match", "if-none-match"):
        if name in headers:
            found[f"s3:{name}"] = headers[name]
    if headers.get("referer"):
        found["aws:Referer"] = headers["referer"]
    # With ?tagging they are in the body, and a header changes nothing.
    written = "" if "tagging" in query else headers.get("x-amz-tagging", "")
    pairs = [pair.partition("=") for pair in written.split("&")]
    tags = [(unquote_plus(tag), unquote_plus(value)) for tag, equals, value in pairs if equals]
    found.update({f"s3:RequestObjectTag/{tag}": value for tag, value in tags})
    if tags:
        found["s3:RequestObjectTagKeys"] = [tag for tag, _ in tags]
    return found
