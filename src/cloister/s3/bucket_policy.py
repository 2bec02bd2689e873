"""What a bucket's policy may say: S3 refuses one that names another bucket, or an action that is not its own
or applies to nothing that its statement names. Pure.

AWS: "Actions, resources, and condition keys for Amazon S3" (Service Authorization Reference); the sentences
are those of PutBucketPolicy.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace

from cloister.iam import policy as iam_policy
from cloister.iam.conditions import Condition
from cloister.iam.policy import Policy, Statement
from cloister.wire.errors import AwsError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: actions on objects
OBJECT = _names(
    """
    AbortMultipartUpload BypassGovernanceRetention DeleteObject DeleteObjectTagging DeleteObjectVersion
    DeleteObjectVersionTagging GetObject GetObjectAcl GetObjectAttributes GetObjectLegalHold
    GetObjectRetention GetObjectTagging GetObjectTorrent GetObjectVersion GetObjectVersionAcl
    GetObjectVersionAttributes GetObjectVersionForReplication GetObjectVersionTagging GetObjectVersionTorrent
    InitiateReplication ListMultipartUploadParts ObjectOwnerOverrideToBucketOwner PutObject PutObjectAcl
    PutObjectLegalHold PutObjectRetention PutObjectTagging PutObjectVersionAcl PutObjectVersionTagging
    ReplicateDelete ReplicateObject ReplicateTags RestoreObject UpdateObjectEncryption
    """
)
#: actions on buckets
BUCKET = _names(
    """
    CreateBucket CreateBucketMetadataTableConfiguration DeleteBucket DeleteBucketMetadataTableConfiguration
    DeleteBucketPolicy DeleteBucketWebsite GetAccelerateConfiguration GetAnalyticsConfiguration GetBucketAbac
    GetBucketAcl GetBucketCORS GetBucketLocation GetBucketLogging GetBucketMetadataTableConfiguration
    GetBucketNotification GetBucketObjectLockConfiguration GetBucketOwnershipControls GetBucketPolicy
    GetBucketPolicyStatus GetBucketPublicAccessBlock GetBucketRequestPayment GetBucketTagging
    GetBucketVersioning GetBucketWebsite GetEncryptionConfiguration GetIntelligentTieringConfiguration
    GetInventoryConfiguration GetLifecycleConfiguration GetMetricsConfiguration GetReplicationConfiguration
    ListBucket ListBucketMultipartUploads ListBucketVersions ListTagsForResource PutAccelerateConfiguration
    PutAnalyticsConfiguration PutBucketAbac PutBucketAcl PutBucketCORS PutBucketLogging PutBucketNotification
    PutBucketObjectLockConfiguration PutBucketOwnershipControls PutBucketPolicy PutBucketPublicAccessBlock
    PutBucketRequestPayment PutBucketTagging PutBucketVersioning PutBucketWebsite PutEncryptionConfiguration
    PutIntelligentTieringConfiguration PutInventoryConfiguration PutLifecycleConfiguration
    PutMetricsConfiguration PutReplicationConfiguration TagResource UntagResource
    UpdateBucketMetadataInventoryTableConfiguration UpdateBucketMetadataJournalTableConfiguration
    """
)
#: actions on what no bucket's policy can name: the account, access points, jobs, lenses, grants
ELSEWHERE = _names(
    """
    AssociateAccessGrantsIdentityCenter CreateAccessGrant CreateAccessGrantsInstance
    CreateAccessGrantsLocation CreateAccessPoint CreateAccessPointForObjectLambda CreateJob
    CreateMultiRegionAccessPoint CreateStorageLensGroup DeleteAccessGrant DeleteAccessGrantsInstance
    DeleteAccessGrantsInstanceResourcePolicy DeleteAccessGrantsLocation DeleteAccessPoint
    DeleteAccessPointForObjectLambda DeleteAccessPointPolicy DeleteAccessPointPolicyForObjectLambda
    DeleteJobTagging DeleteMultiRegionAccessPoint DeleteStorageLensConfiguration
    DeleteStorageLensConfigurationTagging DeleteStorageLensGroup DescribeJob
    DescribeMultiRegionAccessPointOperation DissociateAccessGrantsIdentityCenter GetAccessGrant
    GetAccessGrantsInstance GetAccessGrantsInstanceForPrefix GetAccessGrantsInstanceResourcePolicy
    GetAccessGrantsLocation GetAccessPoint GetAccessPointConfigurationForObjectLambda
    GetAccessPointForObjectLambda GetAccessPointPolicy GetAccessPointPolicyForObjectLambda
    GetAccessPointPolicyStatus GetAccessPointPolicyStatusForObjectLambda GetAccountPublicAccessBlock
    GetDataAccess GetJobTagging GetMultiRegionAccessPoint GetMultiRegionAccessPointPolicy
    GetMultiRegionAccessPointPolicyStatus GetMultiRegionAccessPointRoutes GetStorageLensConfiguration
    GetStorageLensConfigurationTagging GetStorageLensDashboard GetStorageLensGroup ListAccessGrants
    ListAccessGrantsInstances ListAccessGrantsLocations ListAccessPoints ListAccessPointsForObjectLambda
    ListAllMyBuckets ListCallerAccessGrants ListJobs ListMultiRegionAccessPoints
    ListStorageLensConfigurations ListStorageLensGroups PauseReplication
    PutAccessGrantsInstanceResourcePolicy PutAccessPointConfigurationForObjectLambda PutAccessPointPolicy
    PutAccessPointPolicyForObjectLambda PutAccessPointPublicAccessBlock PutAccountPublicAccessBlock
    PutJobTagging PutMultiRegionAccessPointPolicy PutStorageLensConfiguration
    PutStorageLensConfigurationTagging SubmitMultiRegionAccessPointRoutes UpdateAccessGrantsLocation
    UpdateJobPriority UpdateJobStatus UpdateStorageLensGroup
    """
)


def parse(text: str, bucket: str) -> Policy:
    """Raises AwsError MalformedPolicy."""
    parsed = iam_policy.parse(text, "resource")
    for statement in parsed.statements:
        _check(statement, f"arn:aws:s3:::{bucket}")
    return parsed


#: keys that limit a statement for everybody to somebody, if they are compared with fixed values
_LIMITING = frozenset(
    {
        *("aws:sourceip", "aws:sourcearn", "aws:sourcevpc", "aws:sourcevpce", "aws:sourceowner"),
        *("aws:sourceaccount", "aws:userid", "aws:principalorgid", "aws:principalaccount"),
        *("aws:principalarn", "s3:dataaccesspointarn", "s3:dataaccesspointaccount"),
    }
)


_COMPARING = ("StringEquals", "StringEqualsIgnoreCase", "StringLike", "IpAddress", "ArnEquals", "ArnLike")


def is_public(policy: Policy) -> bool:
    """AWS (S3 user guide, "Blocking public access", "The meaning of public"): a statement for everybody that
    no condition on who or from where limits to fixed values; a block of addresses above /8 is none."""
    return any(
        statement.effect == "Allow"
        and _for_everybody(statement)
        and not any(_limits(condition) for condition in statement.conditions)
        for statement in policy.statements
    )


def _for_everybody(statement: Statement) -> bool:
    return statement.not_principal or any(value == "*" for _, value in statement.principals or ())


def _limits(condition: Condition) -> bool:
    sure = not (condition.negated or condition.if_exists or condition.quantifier == "all")
    return (
        sure
        and condition.key in _LIMITING
        and condition.operator in _COMPARING
        and not any(_is_broad(condition.operator, value) for value in condition.values)
    )


def _is_broad(operator: str, value: str) -> bool:
    if operator != "IpAddress":
        return any(mark in value for mark in ("*", "?", "${"))
    bits = value.partition("/")[2]
    return ":" not in value and bits.isdigit() and int(bits) < 8


def without_the_public(policy: Policy) -> Policy:
    """What is left of a public policy for who is not of the owner's account: what it denies."""
    return replace(policy, statements=tuple(each for each in policy.statements if each.effect == "Deny"))


def _check(statement: Statement, own: str) -> None:
    resources = statement.resources or ()
    for resource in resources:
        if not _matches(resource.partition("/")[0], own):
            raise AwsError("MalformedPolicy", "Policy has invalid resource", Detail=resource[:500])
    #: kinds of what is named
    objects = any("/" in each or each.endswith("*") for each in resources)
    buckets = any("/" not in each for each in resources)
    for action in statement.actions:
        named = _named(action)
        if not named:
            raise AwsError("MalformedPolicy", "Policy has invalid action", Detail=action[:500])
        applies = (objects and named & OBJECT) or (buckets and named & BUCKET)
        if not (statement.not_action or statement.not_resource or applies):
            raise AwsError(
                "MalformedPolicy",
                "Action does not apply to any resource(s) in statement",
                Detail=action[:500],
            )


def _named(action: str) -> frozenset[str]:
    """The actions of S3 that a pattern names."""
    if action == "*":
        return OBJECT | BUCKET
    service, _, pattern = action.partition(":")
    if service.lower() != "s3":
        return frozenset()
    return frozenset(each for each in OBJECT | BUCKET | ELSEWHERE if _matches(pattern.lower(), each.lower()))


def _matches(pattern: str, text: str) -> bool:
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))
