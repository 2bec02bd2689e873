"""Refusals of authentication, in the codes and words of the service that was called.

S3, EC2, the query services (iam, sts …) and the JSON services each have their own. `service` is a signing
name throughout: "s3", "ec2", "iam", "sagemaker" …
"""

from __future__ import annotations

from cloister.wire.errors import AwsError

S3_NAMES = frozenset({"s3", "s3express", "s3-outposts", "s3-object-lambda"})
QUERY_NAMES = frozenset(
    {"iam", "sts", "sqs", "sns", "ses", "rds", "cloudformation", "autoscaling", "elasticloadbalancing",
     "redshift", "elasticache", "cloudsearch", "elasticbeanstalk", "sdb"}
)  # fmt: skip

WRONG = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
    "Access Key and signing method. Consult the service documentation for details."
)


def signature_code(service: str) -> str:
    """The services that speak JSON have a code of their own."""
    known = service in S3_NAMES or service in QUERY_NAMES or service == "ec2"
    return "SignatureDoesNotMatch" if known else "InvalidSignatureException"


def invalid_key(service: str, access_key: str) -> AwsError:
    """No such access key; `service` is a signing name."""
    if service in S3_NAMES:
        return AwsError(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
            403,
            AWSAccessKeyId=access_key,
        )
    if service == "ec2":
        return AwsError("AuthFailure", "AWS was not able to validate the provided access credentials", 401)
    return AwsError(_token_code(service), "The security token included in the request is invalid.", 403)


def invalid_token(service: str) -> AwsError:
    """The session token does not belong to the access key, or is forged."""
    if service in S3_NAMES:
        return AwsError("InvalidToken", "The provided token is malformed or otherwise invalid.")
    if service == "ec2":
        return AwsError("AuthFailure", "AWS was not able to validate the provided access credentials", 401)
    return AwsError(_token_code(service), "The security token included in the request is invalid.", 403)


def expired_token(service: str) -> AwsError:
    if service in S3_NAMES:
        return AwsError("ExpiredToken", "The provided token has expired.")
    if service == "ec2":
        return AwsError("RequestExpired", "Request has expired.")
    code = "ExpiredToken" if service in QUERY_NAMES else "ExpiredTokenException"
    return AwsError(code, "The security token included in the request is expired", 403)


def of_key(service: str, error: AwsError, access_key: str) -> AwsError:
    """What a look-up of credentials (InvalidClientTokenId, InvalidToken, ExpiredToken) refused, in the
    service's words."""
    if error.code == "InvalidClientTokenId":
        return invalid_key(service, access_key)
    return expired_token(service) if error.code == "ExpiredToken" else invalid_token(service)


def missing_authentication(service: str | None) -> AwsError:
    """An anonymous request where none is allowed."""
    if service in S3_NAMES:
        return AwsError("AccessDenied", "Access Denied", 403)
    if service == "ec2":
        return AwsError("AuthFailure", "AWS was not able to validate the provided access credentials", 401)
    query = service in QUERY_NAMES
    code = "MissingAuthenticationToken" if query or service is None else "MissingAuthenticationTokenException"
    return AwsError(code, "Request is missing Authentication Token", 403)


def wrong_service(signed: str, right: str) -> AwsError:
    """A request signed for one service came to another one's endpoint; both are signing names."""
    message = f"Credential should be scoped to correct service: '{right}'. "
    return AwsError(signature_code(signed), message, 403)


def _token_code(service: str) -> str:
    return "InvalidClientTokenId" if service in QUERY_NAMES else "UnrecognizedClientException"


def content_mismatch(service: str, declared: str, actual: str) -> AwsError:
    """The body is not the one whose hash was signed."""
    if service in S3_NAMES:
        return AwsError(
            "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
            ClientComputedContentSHA256=declared,
            S3ComputedContentSHA256=actual,
        )
    return AwsError(signature_code(service), WRONG, 403)
