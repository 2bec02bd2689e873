"""Signatures made by botocore are believed; anything changed after signing is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from cloister.wire import sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEY = "AKIAIOSFODNN7EXAMPLE"
SIGNERS: dict[str, tuple[type, type]] = {"s3": (S3SigV4Auth, S3SigV4QueryAuth)}


def signed(
    service: str,
    method: str = "POST",
    url: str = "http://localhost:4566/",
    *,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    token: str | None = None,
    presign: bool = False,
    context: dict[str, object] | None = None,
) -> HttpRequest:
    """The request as botocore signs and sends it."""
    signer = SIGNERS.get(service, (SigV4Auth, SigV4QueryAuth))[presign]
    request = AWSRequest(method, url, headers=headers or {}, data=body or None)
    request.context.update(context or {})
    signer(Credentials(KEY, SECRET, token), service, "us-east-1").add_auth(request)
    parts = urlsplit(request.url)
    pairs = [("Host", parts.netloc)]
    pairs += [(k, v.decode() if isinstance(v, bytes) else str(v)) for k, v in request.headers.items()]
    return HttpRequest(method, parts.path, parts.query, tuple(pairs), body)


def verified(request: HttpRequest, now: float | None = None, secret: str = SECRET) -> sigv4.Verified:
    signed_by = sigv4.parse_authorization(request)
    assert signed_by is not None
    assert signed_by.access_key_id == KEY
    return sigv4.verify(request, signed_by, secret, time.time() if now is None else now)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AwsError) as raised:
        call()
    return raised.value.code


def with_header(request: HttpRequest, name: str, value: str | None) -> HttpRequest:
    kept = tuple(pair for pair in request.headers if pair[0].lower() != name.lower())
    return replace(request, headers=kept if value is None else (*kept, (name, value)))


@pytest.mark.parametrize("presign", [False, True], ids=["header", "presigned"])
@pytest.mark.parametrize(
    ("service", "url"),
    [
        ("ec2", "http://localhost:4566/"),
        ("iam", "https://iam.amazonaws.com/?Action=ListRoles&Version=2010-05-08"),
        ("lambda", "http://h/2015-03-31/functions/a%3Ab/../x//y/?Marker=a%2Fb&A=%C3%A9"),
        ("s3", "http://localhost/bucket/"),
        ("s3", "http://bucket.s3.us-east-1.amazonaws.com/a/b//c/../d%20e%2Bf%C3%A9~?acl&versionId=null"),
        ("s3", "http://localhost:1/bucket?list-type=2&prefix=a%2Fb%20c&delimiter=%2F&start-after="),
        ("s3", "http://localhost/bucket/a%28b%29%27c%21d%2Ae%2Cf%3Bg%3Dh%40i%3Aj%24k%26l"),
    ],
)
def test_what_botocore_signs_is_verified(service: str, url: str, presign: bool) -> None:
    method = "GET" if "?" in url or service == "s3" else "POST"
    body = b"" if method == "GET" or presign else b"Action=DescribeVpcs"
    token = "a/session+token=="
    request = signed(service, method, url, body=body, token=token, presign=presign)
    found = verified(request)
    assert found.signed_by.token == token
    assert found.signed_by.service == service
    assert found.signed_by.mode == ("query" if presign else "header")


@pytest.mark.parametrize("service", ["ec2", "iam", "sagemaker", "s3"])
def test_anything_changed_after_signing_is_noticed(service: str) -> None:
    url = "http://localhost/bucket/key?a=1&b=2"
    request = signed(service, "POST", url, body=b"body", headers={"X-Amz-Meta-A": "1", "Content-Type": "x"})
    verified(request)
    changed = [
        replace(request, method="PUT"),
        replace(request, path="/bucket/other"),
        replace(request, query="a=1&b=3"),
        replace(request, query="a=1"),
        with_header(request, "Host", "elsewhere"),
        with_header(request, "X-Amz-Meta-A", "2"),
        with_header(request, "X-Amz-Meta-B", "added, unsigned"),
        with_header(request, "X-Amz-Target", "SageMaker.DeleteProcessingJob"),
        with_header(request, "Content-Type", "y"),
        replace(request, body=b"other body"),
    ]
    for one in changed:
        code = code_of(lambda one=one: verified(one))  # type: ignore[misc]
        assert code in {
            "SignatureDoesNotMatch",
            "InvalidSignatureException",
            "AccessDenied",
            "XAmzContentSHA256Mismatch",
        }


def test_order_and_case_of_headers_and_parameters_do_not_matter() -> None:
    request = signed("s3", "GET", "http://localhost/b?b=2&a=1", headers={"X-Amz-Meta-A": "  x   y "})
    turned = tuple((name.upper(), value) for name, value in reversed(request.headers))
    verified(replace(request, headers=turned, query="a=1&b=2"))


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("s3", "SignatureDoesNotMatch"),
        ("ec2", "SignatureDoesNotMatch"),
        ("iam", "SignatureDoesNotMatch"),
        ("sagemaker", "InvalidSignatureException"),
    ],
)
def test_a_wrong_secret_is_refused_in_the_services_words(service: str, code: str) -> None:
    request = signed(service, body=b"x")
    assert code_of(lambda: verified(request, secret="wrong")) == code


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("s3", "RequestTimeTooSkewed"),
        ("ec2", "RequestExpired"),
        ("iam", "SignatureDoesNotMatch"),
        ("sagemaker", "InvalidSignatureException"),
    ],
)
@pytest.mark.parametrize("skew", [-901, 902])
def test_fifteen_minutes_of_skew_are_the_most(service: str, code: str, skew: int) -> None:
    request = signed(service, body=b"x")
    verified(request, now=time.time() + (skew - 10 if skew > 0 else skew + 10))
    assert code_of(lambda: verified(request, now=time.time() + skew)) == code


def test_a_presigned_url_ends_when_it_says() -> None:
    request = signed("s3", "GET", "http://localhost/b/k", presign=True)
    verified(request, now=time.time() + 3590)
    assert code_of(lambda: verified(request, now=time.time() + 3610)) == "AccessDenied"
    longer = replace(request, query=request.query.replace("X-Amz-Expires=3600", "X-Amz-Expires=604801"))
    assert code_of(lambda: verified(longer)) == "AuthorizationQueryParametersError"
    changed = replace(request, query=request.query.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"))
    assert code_of(lambda: verified(changed)) == "SignatureDoesNotMatch"


def test_a_scope_for_another_service_or_region_is_refused() -> None:
    request = signed("sagemaker", body=b"{}")
    signed_by = sigv4.parse_authorization(request)
    assert signed_by is not None
    for wanted in ({"service": "logs"}, {"region": "eu-west-1"}):
        with pytest.raises(AwsError, match="Credential should be scoped"):
            sigv4.verify(request, signed_by, SECRET, time.time(), **wanted)
    sigv4.verify(request, signed_by, SECRET, time.time(), service="sagemaker", region="us-east-1")


def test_an_unsigned_body_is_only_for_s3() -> None:
    unsigned = {"payload_signing_enabled": False}
    request = signed(
        "s3",
        "PUT",
        "https://localhost/b/k",
        body=b"x",
        context=unsigned,
        headers={"Content-MD5": "nhB9nTcrtoJr2B01QqQZ1g=="},
    )
    assert request.header("x-amz-content-sha256") == sigv4.UNSIGNED_PAYLOAD
    assert verified(request).payload == sigv4.UNSIGNED_PAYLOAD
    other = signed("sagemaker", "POST", "https://localhost/", body=b"x", context=unsigned)
    assert other.header("x-amz-content-sha256") == sigv4.UNSIGNED_PAYLOAD
    assert code_of(lambda: verified(other)) == "InvalidSignatureException"


def test_s3_must_declare_its_payload() -> None:
    request = signed("s3", "PUT", "http://localhost/b/k", body=b"x")
    assert code_of(lambda: verified(with_header(request, "X-Amz-Content-SHA256", None))) == "InvalidRequest"
    odd = with_header(request, "X-Amz-Content-SHA256", "nonsense")
    assert code_of(lambda: verified(odd)) == "InvalidArgument"


@pytest.mark.parametrize(
    "value",
    [
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=AKID",
        "AWS4-HMAC-SHA256 Credential=A/20260101/r/ec2/aws4_request, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=AKID/20260101/r/ec2/aws4_request, SignedHeaders=host, Signature=abc",
        "AWS4-HMAC-SHA256 Credential=AKID/2026/r/ec2/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=AKID/20260101/r/ec2/aws4_request, SignedHeaders=x;host, Signature="
        + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=AKID/20260102/r/ec2/aws4_request, SignedHeaders=host, Signature="
        + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=AKID/20260101/r/ec2/aws4_request, Credential=B, SignedHeaders=host",
        "nonsense",
        "",
    ],
)
def test_a_malformed_authorization_is_an_incomplete_signature(value: str) -> None:
    headers = (("Host", "h"), ("X-Amz-Date", "20260101T000000Z"), ("Authorization", value))
    request = HttpRequest("POST", "/", "", headers)
    assert code_of(lambda: sigv4.parse_authorization(request)) == "IncompleteSignature"


@pytest.mark.parametrize("name", ["Authorization", "Host", "X-Amz-Date", "X-Amz-Content-SHA256"])
def test_a_header_of_the_signature_given_twice_is_refused(name: str) -> None:
    request = signed("s3", "GET", "http://localhost/b")
    twice = replace(request, headers=(*request.headers, (name.lower(), request.header(name) or "")))
    assert code_of(lambda: sigv4.parse_authorization(twice)) == "IncompleteSignature"


def test_host_must_be_signed() -> None:
    request = signed("ec2", body=b"x")
    authorization = (request.header("authorization") or "").replace("SignedHeaders=host;", "SignedHeaders=")
    assert (
        code_of(lambda: verified(with_header(request, "Authorization", authorization)))
        == "IncompleteSignature"
    )


def test_no_signature_is_anonymous_and_an_old_one_is_refused() -> None:
    assert sigv4.parse_authorization(HttpRequest("GET", "/b/k", "a=1", (("Host", "h"),))) is None
    old = HttpRequest("GET", "/b/k", "", (("Host", "h"), ("Authorization", "AWS AKID:c2ln")))
    assert code_of(lambda: sigv4.parse_authorization(old)) == "InvalidRequest"
    query = HttpRequest("GET", "/b/k", "AWSAccessKeyId=A&Signature=b&Expires=1", (("Host", "h"),))
    assert code_of(lambda: sigv4.parse_authorization(query)) == "InvalidRequest"


@pytest.mark.parametrize("service", ["s3", "sagemaker"])
def test_what_we_sign_we_believe_and_botocore_signs_the_same(service: str) -> None:
    now = time.time()
    plain = HttpRequest(
        "PUT", "/b/a%20b/c%C3%A9", "x=1&y=%2F", (("Host", "h:1"), ("Content-Type", "t")), b"body"
    )
    headers = sigv4.sign(
        plain, access_key=KEY, secret=SECRET, token="tok", region="us-east-1", service=service, now=now
    )
    request = replace(plain, headers=headers)
    verified(request, now=now)
    theirs = signed(
        service,
        "PUT",
        "http://h:1/b/a%20b/c%C3%A9?x=1&y=%2F",
        body=b"body",
        token="tok",
        headers={"Content-Type": "t"},
    )
    if theirs.header("x-amz-date") == request.header("x-amz-date"):  # else the second turned in between
        assert theirs.header("authorization") == request.header("authorization")


def test_the_documented_example_has_the_documented_signature() -> None:
    # AWS, "Authenticating Requests: Using the Authorization Header", example: GET Object
    headers = (
        ("Host", "examplebucket.s3.amazonaws.com"),
        ("Range", "bytes=0-9"),
        ("x-amz-content-sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("x-amz-date", "20130524T000000Z"),
        (
            "Authorization",
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
    )
    request = HttpRequest("GET", "/test.txt", "", headers)
    signed_by = sigv4.parse_authorization(request)
    assert signed_by is not None
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert sigv4.verify(request, signed_by, secret, signed_by.time).signed_by.region == "us-east-1"
