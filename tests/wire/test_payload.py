"""Streamed bodies: whatever the cuts, the right ones come out whole and a changed byte is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import zlib
from dataclasses import replace

import pytest
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum
from hypothesis import given
from hypothesis import strategies as st

from cloister.wire import canonical, payload, sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest

KEY = canonical.signing_key("secret", "20130524", "us-east-1", "s3")
SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
STAMP = "20130524T000000Z"


def verified(mode: str, key: bytes = KEY, seed: str = SEED) -> sigv4.Verified:
    signed_by = sigv4.SignedBy(
        access_key_id="AKID",
        token=None,
        stamp=STAMP,
        time=0,
        region="us-east-1",
        service="s3",
        signed_headers=("host",),
        signature=seed,
        mode="header",
    )
    return sigv4.Verified(signed_by=signed_by, payload=mode, signing_key=key)


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def encode(data: bytes, mode: str, size: int = 7, trailers: dict[str, str] | None = None) -> bytes:
    """The body as an SDK sends it, written from the S3 API Reference."""
    scope = "20130524/us-east-1/s3/aws4_request"
    previous = SEED
    out = []
    signing = mode != sigv4.STREAMING_UNSIGNED_TRAILER

    def sign(*lines: str) -> str:
        return hmac.new(KEY, "\n".join(lines).encode(), "sha256").hexdigest()

    for at in [*range(0, len(data), size), len(data)]:
        chunk = data[at : at + size]
        header = f"{len(chunk):x}"
        if signing:
            empty, digest = hashlib.sha256().hexdigest(), hashlib.sha256(chunk).hexdigest()
            previous = sign("AWS4-HMAC-SHA256-PAYLOAD", STAMP, scope, previous, empty, digest)
            header += f";chunk-signature={previous}"
        out.append(header.encode() + b"\r\n" + chunk + (b"\r\n" if chunk else b""))
    if mode != sigv4.STREAMING_SIGNED and trailers:
        lines = "".join(f"{name}:{value}\n" for name, value in trailers.items())
        out.append(lines.replace("\n", "\r\n").encode())
        if signing:
            digest = hashlib.sha256(lines.encode()).hexdigest()
            signature = sign("AWS4-HMAC-SHA256-TRAILER", STAMP, scope, previous, digest)
            out.append(f"x-amz-trailer-signature:{signature}\r\n".encode())
    out.append(b"\r\n")
    return b"".join(out)


def decode(decoder: payload.Decoder, body: bytes, cut: int = 1 << 20) -> bytes:
    out = b"".join(
        bytes(piece) for at in range(0, len(body), cut) for piece in decoder.feed(body[at : at + cut])
    )
    decoder.finish()
    return out


def attempt(decoder: payload.Decoder, body: bytes) -> tuple[str | None, bytes]:
    """The error's code, or the content."""
    try:
        return None, decode(decoder, body)
    except AwsError as error:
        return error.code, b""


def decoder_for(mode: str, data: bytes) -> payload.ChunkDecoder:
    names = () if mode == sigv4.STREAMING_SIGNED else ("x-amz-checksum-crc32",)
    return payload.ChunkDecoder(verified(mode), decoded_length=len(data), trailers=names)


MODES = sorted(sigv4.STREAMING)


@given(st.sampled_from(MODES), st.binary(max_size=60), st.integers(1, 30), st.integers(1, 40))
def test_chunks_come_out_whole_however_they_are_cut(mode: str, data: bytes, size: int, cut: int) -> None:
    body = encode(data, mode, size, {"x-amz-checksum-crc32": crc32(data)})
    assert decode(decoder_for(mode, data), body, cut) == data


@given(st.sampled_from(MODES), st.data())
def test_no_byte_can_be_changed_removed_or_added(mode: str, data: st.DataObject) -> None:
    content = b"the object's own bytes, all of them"
    body = encode(content, mode, 9, {"x-amz-checksum-crc32": crc32(content)})
    at = data.draw(st.integers(0, len(body) - 1))
    change = data.draw(st.sampled_from(["flip", "remove", "add", "cut"]))
    if change == "flip":
        bad = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    elif change == "remove":
        bad = body[:at] + body[at + 1 :]
    elif change == "add":
        bad = body[:at] + b"7" + body[at:]
    else:
        bad = body[:at]
    # Another case of a hexadecimal digit is the same message in other bytes: then the content is the same.
    code, out = attempt(decoder_for(mode, content), bad)
    if code is None:
        assert out == content
    else:
        assert code in {
            "SignatureDoesNotMatch",
            "IncompleteBody",
            "InvalidRequest",
            "MalformedTrailerError",
            "BadDigest",
        }


def test_the_documented_chunks_have_the_documented_signatures() -> None:
    # AWS, "Transferring Payload in Multiple Chunks": 66560 bytes of "a" in chunks of 64 KiB and 1 KiB
    key = canonical.signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1", "s3")
    body = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
    )
    decoder = payload.ChunkDecoder(verified(sigv4.STREAMING_SIGNED, key), decoded_length=66560)
    assert decode(decoder, body, 10_000) == b"a" * 66560


def test_more_or_less_than_was_declared_is_incomplete() -> None:
    data = b"12345678"
    body = encode(data, sigv4.STREAMING_SIGNED)
    for length in (7, 9):
        decoder = payload.ChunkDecoder(verified(sigv4.STREAMING_SIGNED), decoded_length=length)
        with pytest.raises(AwsError, match="IncompleteBody"):
            decode(decoder, body)


def test_an_announced_trailer_must_come_and_others_must_not() -> None:
    data, mode = b"abc", sigv4.STREAMING_UNSIGNED_TRAILER
    with pytest.raises(AwsError, match="announced"):
        decode(decoder_for(mode, data), encode(data, mode))
    with pytest.raises(AwsError, match="announced"):
        decode(decoder_for(mode, data), encode(data, mode, trailers={"x-amz-meta-evil": "1"}))
    with pytest.raises(AwsError, match="BadDigest"):
        decode(decoder_for(mode, data), encode(data, mode, trailers={"x-amz-checksum-crc32": crc32(b"abd")}))


def test_an_endless_chunk_header_is_refused_early() -> None:
    decoder = decoder_for(sigv4.STREAMING_SIGNED, b"")
    for _ in range(10):
        assert decoder.feed(b"0" * 100) == []
    with pytest.raises(AwsError, match="longer than"):
        decoder.feed(b"0" * 100)


def put(body: bytes, **headers: str) -> HttpRequest:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return HttpRequest("PUT", "/b/k", "", (("Host", "h"), ("Content-Length", str(len(body))), *pairs))


@pytest.mark.parametrize(
    ("header", "good", "code"),
    [
        ("x_amz_checksum_crc32", crc32(b"body"), "BadDigest"),
        ("x_amz_checksum_sha1", base64.b64encode(hashlib.sha1(b"body").digest()).decode(), "BadDigest"),
        ("x_amz_checksum_sha256", base64.b64encode(hashlib.sha256(b"body").digest()).decode(), "BadDigest"),
        ("Content_MD5", base64.b64encode(hashlib.md5(b"body").digest()).decode(), "BadDigest"),
    ],
)
def test_a_plain_body_is_held_to_its_checksum(header: str, good: str, code: str) -> None:
    unsigned = verified(sigv4.UNSIGNED_PAYLOAD)
    assert decode(payload.decoder(put(b"body", **{header: good}), unsigned), b"body") == b"body"
    with pytest.raises(AwsError, match=code):
        decode(payload.decoder(put(b"bodx", **{header: good}), unsigned), b"bodx")


def test_a_plain_body_is_held_to_its_signed_hash_and_length() -> None:
    hashed = verified(hashlib.sha256(b"body").hexdigest())
    assert decode(payload.decoder(put(b"body"), hashed), b"body", 1) == b"body"
    with pytest.raises(AwsError, match="XAmzContentSHA256Mismatch"):
        decode(payload.decoder(put(b"bodx"), hashed), b"bodx")
    with pytest.raises(AwsError, match="IncompleteBody"):
        decode(payload.decoder(put(b"body"), hashed), b"bod")


def test_checksums_we_do_not_compute_are_named() -> None:
    decoder = payload.decoder(put(b"x", x_amz_checksum_xxhash64="abc="), verified(sigv4.UNSIGNED_PAYLOAD))
    assert decoder.unchecked == {"x-amz-checksum-xxhash64": "abc="}
    assert payload.is_unknown("x-amz-checksum-xxhash64")
    assert not payload.is_unknown("x-amz-checksum-type")


@pytest.mark.parametrize(
    ("name", "value"), [("crc32", "y/Q5Jg=="), ("crc32c", "4waSgw=="), ("crc64nvme", "rosUhgp5mIg=")]
)
def test_each_crc_is_computed_piece_by_piece(name: str, value: str) -> None:
    """The values are those of the catalogue of CRCs for 123456789."""

    def checked(content: bytes) -> bytes:
        request = put(content, **{f"x_amz_checksum_{name}": value})
        return decode(payload.decoder(request, verified(sigv4.UNSIGNED_PAYLOAD)), content, 2)

    assert checked(b"123456789") == b"123456789"
    with pytest.raises(AwsError, match=f"The {name.upper()} you specified did not match"):
        checked(b"123456780")


def test_a_botocore_upload_with_a_trailer_goes_all_the_way() -> None:
    content = bytes(range(256)) * 9000
    body = AwsChunkedWrapper(
        io.BytesIO(content),
        checksum_cls=Crc32Checksum,
        checksum_name="x-amz-checksum-crc32",
        chunk_size=1 << 20,
    ).read()
    plain = HttpRequest(
        "PUT",
        "/bucket/key",
        "",
        (
            ("Host", "localhost"),
            ("Content-Encoding", "aws-chunked"),
            ("X-Amz-Trailer", "x-amz-checksum-crc32"),
            ("X-Amz-Decoded-Content-Length", str(len(content))),
        ),
    )
    headers = sigv4.sign(
        plain,
        access_key="AKID",
        secret="secret",
        region="us-east-1",
        service="s3",
        now=0,
        payload_hash=sigv4.STREAMING_UNSIGNED_TRAILER,
    )
    request = replace(plain, headers=headers)
    signed_by = sigv4.parse_authorization(request)
    assert signed_by is not None
    checked = sigv4.verify(request, signed_by, "secret", 0, streamed=True)
    decoder = payload.decoder(request, checked)
    assert decode(decoder, body, 65_000) == content
    assert decoder.trailers == {"x-amz-checksum-crc32": crc32(content)}


def test_a_chunked_request_must_say_how_long_it_is() -> None:
    with pytest.raises(AwsError, match="MissingContentLength"):
        payload.decoder(put(b""), verified(sigv4.STREAMING_SIGNED))
    with pytest.raises(AwsError, match="InvalidArgument"):
        payload.decoder(put(b"", X_Amz_Decoded_Content_Length="-1"), verified(sigv4.STREAMING_SIGNED))
