"""A large object over TLS is sealed by a thread: whole, and its connection goes on."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.s3 import splice
from cloister.s3.client import Client, to_url

BODY = random.Random(7).randbytes(splice.LEAST + 12_345)
GET = b"GET /large HTTP/1.1\r\nHost: s3\r\n\r\n"


def _context(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "both.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextlib.asynccontextmanager
async def _front(folder: Path, used: list[bool]) -> AsyncIterator[int]:
    """The port of a TLS server that passes on a large object with `splice.send`."""

    async def store(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=BODY)

    async def serve(handler: web.Server, context: ssl.SSLContext | None) -> tuple[web.ServerRunner, int]:
        runner = web.ServerRunner(handler, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return runner, runner.addresses[0][1]

    stores, behind = await serve(web.Server(store), None)
    client = Client(to_url(f"http://127.0.0.1:{behind}"))

    async def pass_on(request: web.BaseRequest) -> web.StreamResponse:
        async with await client.request("GET", "/", (("Host", "store"),)) as answer:
            response = web.StreamResponse()
            response.content_length = len(BODY)
            await response.prepare(request)
            used.append(await splice.send(request, response, answer, len(BODY)))
            await response.write_eof()
            return response

    fronts, port = await serve(web.Server(pass_on), _context(folder))
    try:
        yield port
    finally:
        await fronts.cleanup()
        await client.close()
        await stores.cleanup()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", port, ssl=trusting)


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return await reader.readexactly(len(BODY))


async def test_a_large_object_over_tls_is_whole_and_what_the_client_sends_meanwhile_is_answered_after_it(
    tmp_path: Path,
) -> None:
    used: list[bool] = []
    async with asyncio.timeout(30), _front(tmp_path, used) as port:
        reader, writer = await _connect(port)
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        begun = await reader.readexactly(1 << 20)
        writer.write(GET + GET)  # the thread still seals
        await writer.drain()
        assert begun + await reader.readexactly(len(BODY) - len(begun)) == BODY
        assert await _answer(reader) == BODY
        assert await _answer(reader) == BODY
        writer.write(GET)
        assert await _answer(reader) == BODY
        writer.close()
    assert used == [True] * 4


async def test_a_client_that_hangs_up_in_the_middle_ends_the_copy(tmp_path: Path) -> None:
    used: list[bool] = []
    async with asyncio.timeout(30), _front(tmp_path, used) as port:
        reader, writer = await _connect(port)
        writer.write(GET)
        await reader.readexactly(100_000)
        writer.transport.abort()
        for _ in range(splice.COPIES + 1):  # a copy that was not let go would be missing at the end
            reader, writer = await _connect(port)
            writer.write(GET)
            await reader.readexactly(1000)
            writer.transport.abort()
            await asyncio.sleep(0.01)
        reader, writer = await _connect(port)
        writer.write(GET)
        assert await _answer(reader) == BODY
        writer.close()
    assert used[-1] is True


def test_asyncio_still_has_what_the_fast_way_needs() -> None:
    """Private names: a Python that renames them makes TLS slow, not wrong; this says so."""
    import inspect
    from asyncio import sslproto

    source = inspect.getsource(sslproto.SSLProtocol)
    assert "self._outgoing" in source
    assert "self._transport" in source
    assert hasattr(sslproto._SSLProtocolTransport, "pause_reading")  # type: ignore[attr-defined]
