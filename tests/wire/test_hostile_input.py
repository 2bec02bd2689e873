"""Whatever bytes come in, the answer is an AwsError in some protocol and never another exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.wire.generate import request_of

from cloister.wire import payload, protocol, sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

SEEDS = [
    request_of("ec2", "DescribeVpcs", {"Filters": [{"Name": "vpc-id", "Values": ["a"]}], "MaxResults": 5}),
    request_of("iam", "CreateRole", {"RoleName": "r", "AssumeRolePolicyDocument": "{}"}),
    request_of("sagemaker", "AddTags", {"ResourceArn": "arn:a", "Tags": [{"Key": "k", "Value": "v"}]}),
    request_of("logs", "PutLogEvents", {"logGroupName": "g", "logStreamName": "s", "logEvents": []}),
    request_of(
        "s3", "PutBucketTagging", {"Bucket": "b", "Tagging": {"TagSet": [{"Key": "k", "Value": "v"}]}}
    ),
    request_of("s3", "GetObject", {"Bucket": "b", "Key": "a/b", "Range": "bytes=0-1"}),
]
NOISE = [
    "\x00",
    "%",
    "%zz",
    "%ff",
    "é",
    "\udcff",
    "&",
    "=",
    "[",
    "{",
    "<",
    "<!DOCTYPE a>",
    "9" * 30,
    "../",
    ".1.",
    "/",
]


@st.composite
def mutated(draw: st.DrawFn) -> HttpRequest:
    seed = draw(st.sampled_from(SEEDS))

    def change(text: str) -> str:
        if not draw(st.booleans()):
            return text
        at = draw(st.integers(0, len(text)))
        end = draw(st.integers(at, min(len(text), at + 8)))
        return text[:at] + draw(st.sampled_from(["", *NOISE])) + text[end:]

    extra = (("X-Amz-Date", "20260101T000000Z"), ("X-Amz-Content-SHA256", "UNSIGNED-PAYLOAD"))
    headers = tuple((change(name), change(value)) for name, value in (*seed.headers, *extra))
    body = change(seed.body.decode()).encode("utf-8", "surrogateescape")
    return HttpRequest(seed.method, "/" + change(seed.path[1:]), change(seed.query), headers, body)


def refusal(call: Callable[[], object]) -> AwsError | None:
    try:
        call()
    except AwsError as error:
        return error
    return None


@settings(suppress_health_check=list(HealthCheck))
@given(mutated())
def test_hostile_requests_are_refused_cleanly(request_: HttpRequest) -> None:
    error = refusal(lambda: protocol.parse(protocol.identify(request_), request_))
    if error is not None:
        answer = protocol.render_error(protocol.guess(request_), error, "rid")
        assert answer.status >= 400
        assert len(error.message) < 4000

    def authenticate() -> None:
        signed_by = sigv4.parse_authorization(request_)
        if signed_by is not None:
            every = tuple(sorted({name.lower() for name, _ in request_.headers}))
            sigv4.verify(request_, replace(signed_by, signed_headers=every), "secret", signed_by.time)

    error = refusal(authenticate)
    assert error is None or len(error.message) < 4000


SIGNED_BY = sigv4.SignedBy(
    access_key_id="A", token=None, stamp="20260101T000000Z", time=0, region="r", service="s3",
    signed_headers=("host",), signature="0" * 64, mode="header",
)  # fmt: skip


@given(
    st.sampled_from(sorted(sigv4.STREAMING)),
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [b"0\r\n", b"\r\n", b"5\r\nabcde\r\n", b"ffffffffffffffff\r\n", b"a:b\r\n", b"-1\r\n"]
            ),
        ),
        max_size=8,
    ),
)
def test_hostile_chunks_are_refused_cleanly(mode: str, pieces: list[bytes]) -> None:
    verified = sigv4.Verified(signed_by=SIGNED_BY, payload=mode, signing_key=b"k")
    decoder = payload.ChunkDecoder(verified, decoded_length=5, trailers=("x-amz-checksum-crc32",))

    def run() -> None:
        for piece in pieces:
            decoder.feed(piece)
        decoder.finish()

    error = refusal(run)
    assert error is None or error.status in (400, 403)
