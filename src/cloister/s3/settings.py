"""Settings of a bucket that are kept as their documents, or have their default only. Each answer takes an
`Ask`, as in `buckets.py`.

What a setting asks for is done (CORS, lifecycle), is so already (AES256, versioning suspended) or is refused
by its name; one that says nothing changes nothing. AWS: "Amazon S3 API Reference", the operations' pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

from cloister.s3 import cors, lifecycle
from cloister.s3.buckets import XMLNS, Answer, Ask, malformed, parse_xml
from cloister.wire.errors import AwsError

Answering = Callable[[Ask], Answer]
MOST = 64 << 10
_MINIMUM = "x-amz-transition-default-minimum-object-size"


def _xml(text: str, **headers: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return 200, {"Content-Type": "application/xml", **headers}, body


def _kept(ask: Ask, name: str) -> str | None:
    return ask.bucket.settings.get(name)


def _keep(ask: Ask, name: str, document: str | None) -> None:
    bucket = ask.bucket
    settings = {each: text for each, text in bucket.settings.items() if each != name}
    if document is not None:
        settings[name] = document
    with ask.engine.transaction() as tx:
        tx.put(replace(bucket, settings=settings))


def written(element: ElementTree.Element) -> str:
    """The document of a parsed body, in S3's namespace."""
    return ElementTree.tostring(element, encoding="unicode").replace(
        f"<{element.tag}", f"<{element.tag} {XMLNS}", 1
    )


def _refuse(what: str) -> AwsError:
    return AwsError("NotImplemented", f"Cloister does not implement {what[:100]}.", 501)


def _absent(ask: Ask, code: str, message: str) -> AwsError:
    return AwsError(code, message, 404, BucketName=ask.bucket.name)


def _root(ask: Ask, tag: str) -> ElementTree.Element:
    _ = ask.bucket
    root = parse_xml(ask.body)
    if root.tag != tag:
        raise malformed()
    return root


# -- encryption ---------------------------------------------------------------------------------------------

_AES = (
    "<Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm>"
    "</ApplyServerSideEncryptionByDefault><BucketKeyEnabled>false</BucketKeyEnabled></Rule>"
)


def get_encryption(ask: Ask) -> Answer:
    """AWS: every bucket has AES256, "Amazon S3 managed keys", by default."""
    root = "ServerSideEncryptionConfiguration"
    return _xml(_kept(ask, "encryption") or f"<{root} {XMLNS}>{_AES}</{root}>")


def put_encryption(ask: Ask) -> Answer:
    root = _root(ask, "ServerSideEncryptionConfiguration")
    rules = root.findall("Rule")
    if len(rules) != 1:
        raise malformed()
    default = rules[0].find("ApplyServerSideEncryptionByDefault")
    algorithm = "" if default is None else (default.findtext("SSEAlgorithm") or "").strip()
    if algorithm in ("aws:kms", "aws:kms:dsse"):
        raise _refuse(f"SSEAlgorithm {algorithm}, only AES256")
    if default is not None and algorithm != "AES256":
        raise malformed()
    if default is not None and (default.findtext("KMSMasterKeyID") or "").strip():
        raise AwsError(
            "InvalidArgument",
            "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
            ArgumentName="ApplyServerSideEncryptionByDefault",
        )
    _keep(ask, "encryption", written(root))
    return 200, {}, b""


# -- versioning ---------------------------------------------------------------------------------------------


def get_versioning(ask: Ask) -> Answer:
    return _xml(_kept(ask, "versioning") or f"<VersioningConfiguration {XMLNS}/>")


def put_versioning(ask: Ask) -> Answer:
    root = _root(ask, "VersioningConfiguration")
    status = (root.findtext("Status") or "").strip()
    if status == "Enabled":
        raise _refuse("versioning: Status Enabled")
    if (root.findtext("MfaDelete") or "").strip() == "Enabled":
        raise _refuse("MfaDelete")
    if status != "Suspended":
        raise AwsError(
            "IllegalVersioningConfigurationException",
            "The Versioning element must be specified",
        )
    _keep(
        ask,
        "versioning",
        f"<VersioningConfiguration {XMLNS}><Status>Suspended</Status></VersioningConfiguration>",
    )
    return 200, {}, b""


# -- CORS, lifecycle ----------------------------------------------------------------------------------------


def get_cors(ask: Ask) -> Answer:
    found = _kept(ask, "cors")
    if found is None:
        raise _absent(ask, "NoSuchCORSConfiguration", "The CORS configuration does not exist")
    return _xml(found)


def put_cors(ask: Ask) -> Answer:
    root = _root(ask, "CORSConfiguration")
    if len(ask.body) > MOST:
        raise malformed()
    cors.parse(ask.body)
    _keep(ask, "cors", written(root))
    return 200, {}, b""


def get_lifecycle(ask: Ask) -> Answer:
    found = _kept(ask, "lifecycle")
    if found is None:
        raise _absent(ask, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist")
    return _xml(found, **{_MINIMUM: "all_storage_classes_128K"})


def put_lifecycle(ask: Ask) -> Answer:
    """Rules without an id get one, as in AWS."""
    root = _root(ask, "LifecycleConfiguration")
    lifecycle.parse(ask.body)
    for number, rule in enumerate(root.findall("Rule"), 1):
        if not (rule.findtext("ID") or "").strip():
            for empty in rule.findall("ID"):
                rule.remove(empty)
            named = ElementTree.Element("ID")
            named.text = f"rule-{number}"
            rule.insert(0, named)
    _keep(ask, "lifecycle", written(root))
    return 200, {_MINIMUM: "all_storage_classes_128K"}, b""


# -- what has its default only ------------------------------------------------------------------------------


def _default(text: str) -> Answering:
    def answer(ask: Ask) -> Answer:
        _ = ask.bucket
        return _xml(text)

    return answer


def _never(code: str, message: str) -> Answering:
    def answer(ask: Ask) -> Answer:
        raise _absent(ask, code, message)

    return answer


def _unlocked(ask: Ask) -> Answer:
    """Of objects in a bucket without object lock, as all are."""
    _ = ask.bucket
    raise AwsError("InvalidRequest", "Bucket is missing Object Lock Configuration")


def _delete(name: str) -> Answering:
    """AWS: deleting what is not set is no error. What is never kept is never set."""

    def answer(ask: Ask) -> Answer:
        if name in ask.bucket.settings:
            _keep(ask, name, None)
        return 204, {}, b""

    return answer


def _only(tag: str, member: str = "", *values: str) -> Answering:
    """A document that says nothing, or in its member what is so anyway."""

    def answer(ask: Ask) -> Answer:
        root = _root(ask, tag)
        for each in root:
            if each.tag != member or (each.text or "").strip() not in values:
                raise _refuse(f"{each.tag} {(each.text or '').strip()} of {tag}".replace("  ", " "))
        return 200, {}, b""

    return answer


def _configurations(kind: str) -> dict[str, Answering]:
    """Configurations that have ids, of which there are none."""
    one = _never("NoSuchConfiguration", "The specified configuration does not exist.")
    root = f"List{kind}ConfigurationsResult"
    none = _default(f"<{root} {XMLNS}><IsTruncated>false</IsTruncated></{root}>")

    def get(ask: Ask) -> Answer:
        return one(ask) if "id" in ask.query else none(ask)

    return {f"GetBucket{kind}Configuration": get, f"DeleteBucket{kind}Configuration": one}


ANSWERS: dict[str, Answering] = {
    "GetBucketEncryption": get_encryption,
    "PutBucketEncryption": put_encryption,
    "DeleteBucketEncryption": _delete("encryption"),
    "GetBucketVersioning": get_versioning,
    "PutBucketVersioning": put_versioning,
    "GetBucketCors": get_cors,
    "PutBucketCors": put_cors,
    "DeleteBucketCors": _delete("cors"),
    "GetBucketLifecycleConfiguration": get_lifecycle,
    "PutBucketLifecycleConfiguration": put_lifecycle,
    "DeleteBucketLifecycleConfiguration": _delete("lifecycle"),
    "GetBucketReplication": _never(
        "ReplicationConfigurationNotFoundError", "The replication configuration was not found"
    ),
    "DeleteBucketReplication": _delete("replication"),
    "GetBucketWebsite": _never(
        "NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration"
    ),
    "DeleteBucketWebsite": _delete("website"),
    "GetObjectLockConfiguration": _never(
        "ObjectLockConfigurationNotFoundError", "Object Lock configuration does not exist for this bucket"
    ),
    "GetBucketLogging": _default(f"<BucketLoggingStatus {XMLNS}/>"),
    "PutBucketLogging": _only("BucketLoggingStatus"),
    "GetBucketRequestPayment": _default(
        f"<RequestPaymentConfiguration {XMLNS}><Payer>BucketOwner</Payer></RequestPaymentConfiguration>"
    ),
    "PutBucketRequestPayment": _only("RequestPaymentConfiguration", "Payer", "BucketOwner"),
    "GetBucketNotificationConfiguration": _default(f"<NotificationConfiguration {XMLNS}/>"),
    "PutBucketNotificationConfiguration": _only("NotificationConfiguration"),
    "GetBucketAccelerateConfiguration": _default(f"<AccelerateConfiguration {XMLNS}/>"),
    "PutBucketAccelerateConfiguration": _only("AccelerateConfiguration", "Status", "Suspended"),
    "GetBucketAbac": _default(f"<AbacStatus {XMLNS}><Status>Disabled</Status></AbacStatus>"),
    "PutBucketAbac": _only("AbacStatus", "Status", "Disabled"),
    "GetObjectLegalHold": _unlocked,
    "PutObjectLegalHold": _unlocked,
    "GetObjectRetention": _unlocked,
    "PutObjectRetention": _unlocked,
    "DeleteBucketOwnershipControls": _delete("ownership"),
    **_configurations("Analytics"),
    **_configurations("IntelligentTiering"),
    **_configurations("Inventory"),
    **_configurations("Metrics"),
}
