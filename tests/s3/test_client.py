"""The door's own HTTP client, against servers that answer well, badly, early, late or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cloister.s3 import client as client_module
from cloister.s3.client import BodyFailed, Client, to_socket

HOST = (("Host", "store"),)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def talking_to(folder: Path, serve: Serve) -> AsyncIterator[Client]:
    serving: set[asyncio.Task[None]] = set()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    path = str(folder / "s")
    server = await asyncio.start_unix_server(once, path)
    client = Client(to_socket(path))
    try:
        yield client
    finally:
        await client.close()
        server.close()
        for each in serving:
            each.cancel()
        await asyncio.wait_for(asyncio.gather(*serving), 5)


def always(answer: bytes, *, close: bool = False) -> Serve:
    """The same bytes for every request without a body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return serve


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
    ],
)
async def test_answers_of_every_framing_are_read_and_leave_the_connection_to_the_next(
    tmp_path: Path, answer: bytes, body: bytes
) -> None:
    async with talking_to(tmp_path, always(answer)) as client:
        transports = set()
        for _ in range(3):
            async with await client.request("GET", "/", HOST) as got:
                assert await got.read() == body
                assert "A" not in got.headers
                transports.add(got.transport)
        assert len(transports) == 1


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async with talking_to(tmp_path, always(b"HTTP/1.1 200 OK\r\n\r\nabc", close=True)) as client:
        for _ in range(2):
            async with await client.request("GET", "/", HOST) as got:
                assert await got.read() == b"abc"


async def test_the_answer_to_a_head_has_no_body_whatever_length_it_tells(tmp_path: Path) -> None:
    async with talking_to(tmp_path, always(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as client:
        for _ in range(2):
            async with await client.request("HEAD", "/", HOST) as got:
                assert (await got.read(), got.headers["content-length"]) == (b"", "9")


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb",
        b"",
    ],
)
async def test_half_an_answer_or_none_is_an_error_and_never_a_short_body(
    tmp_path: Path, answer: bytes
) -> None:
    async with talking_to(tmp_path, always(answer, close=True)) as client:
        with pytest.raises(OSError):
            async with await client.request("GET", "/", HOST) as got:
                await got.read()


async def test_a_kept_connection_that_the_server_closed_is_not_the_callers_affair(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
    async with talking_to(tmp_path, always(answer, close=True)) as client:
        for method in ("GET", "PUT", "DELETE"):
            async with await client.request(method, "/", HOST) as got:
                assert await got.read() == b"a"


async def test_a_post_is_not_sent_again_when_nobody_knows_whether_it_was_done(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        seen.append(await reader.readuntil(b"\r\n\r\n"))

    async with talking_to(tmp_path, serve) as client:
        (await client.request("POST", "/1", HOST)).release()
        with pytest.raises(ConnectionError):
            await client.request("POST", "/2", HOST)
    assert [each.split()[1] for each in seen] == [b"/1", b"/2"]


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65536


async def test_a_refusal_that_comes_before_the_whole_body_was_sent_is_the_answer(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async with talking_to(tmp_path, serve) as client:
        length = (("Content-Length", str(1 << 40)),)
        async with await client.request("PUT", "/", (*HOST, *length), _endless()) as got:
            assert (got.status, await got.read()) == (403, b"no")


async def test_a_body_that_breaks_off_is_told_by_its_own_reason_and_the_server_never_has_it_whole(
    tmp_path: Path,
) -> None:
    ends: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        ends.append(await reader.read())

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError("a wrong checksum")

    async with talking_to(tmp_path, serve) as client:
        with pytest.raises(BodyFailed) as failed:
            await client.request("PUT", "/", (*HOST, ("Content-Length", "8")), broken())
        assert str(failed.value.reason) == "a wrong checksum"
        await asyncio.sleep(0.05)
    assert ends in ([b"half"], [])  # not at all when the connection was cut at once


@pytest.mark.parametrize("hangs", ["with the head", "in the body", "in what we send"])
async def test_a_server_that_moves_no_byte_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    monkeypatch.setattr(client_module, "STALLED", 0.2)
    monkeypatch.setattr(client_module, "LOOK", 0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if hangs == "in the body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
        await asyncio.sleep(5)

    body = _endless() if hangs == "in what we send" else None
    headers = (*HOST, ("Content-Length", str(1 << 40))) if body else HOST
    async with talking_to(tmp_path, serve) as client:
        with pytest.raises(TimeoutError):
            async with await client.request("PUT", "/", headers, body) as got:
                await got.read()


async def test_a_client_that_pauses_its_upload_is_not_the_servers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STALLED", 0.1)
    monkeypatch.setattr(client_module, "LOOK", 0.02)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + await reader.readexactly(4))

    async def slow() -> AsyncIterator[bytes]:
        yield b"ab"
        await asyncio.sleep(0.4)
        yield b"cd"

    async with (
        talking_to(tmp_path, serve) as client,
        await client.request("PUT", "/", (*HOST, ("Content-Length", "4")), slow()) as got,
    ):
        assert await got.read() == b"abcd"


async def test_an_answer_that_nobody_takes_is_not_gathered_in_memory(tmp_path: Path) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
        for _ in range(64):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            sent += 1

    async with talking_to(tmp_path, serve) as client, await client.request("GET", "/", HOST) as got:
        await asyncio.sleep(0.3)
        assert sent < 8
        assert len(b"".join([piece async for piece in got.pieces()])) == 64 << 20


async def test_what_would_be_a_second_line_of_the_head_is_never_sent(tmp_path: Path) -> None:
    async with talking_to(tmp_path, always(b"")) as client:
        for target, name, value in (
            ("/ HTTP/1.1\r\nA: b", "n", "v"),
            ("/", "n", "v\r\nA: b"),
            ("/", "n\n", "v"),
            ("/", "n", "v\0"),
        ):
            with pytest.raises(ValueError):
                await client.request("GET", target, (*HOST, (name, value)))


async def test_more_requests_than_connections_wait_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECTIONS", 2)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
    async with talking_to(tmp_path, always(answer)) as client:
        held = [await client.request("GET", "/", HOST) for _ in range(2)]
        third = asyncio.create_task(client.request("GET", "/", HOST))
        await asyncio.sleep(0.05)
        assert not third.done()
        held[0].release()
        (await asyncio.wait_for(third, 1)).release()
        held[1].release()


async def test_a_cancelled_request_leaves_its_place_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECTIONS", 1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /slow"):
            await asyncio.sleep(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with talking_to(tmp_path, serve) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.request("GET", "/slow", HOST)
        (await asyncio.wait_for(client.request("GET", "/", HOST), 1)).release()
