"""What one door bears: its connections, and clients that do not come to the point."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from cloister.s3 import doors
from cloister.s3.certificates import Authority
from cloister.s3.door import Door

ASK = b"GET /k HTTP/1.1\r\nHost: s3\r\n\r\n"
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class _Open:
    async def handle(self, request: web.BaseRequest, origin: object) -> web.StreamResponse:
        return web.Response(body=b"ok")


def at_a_door(use: Callable[[Connect], Awaitable[Any]]) -> None:
    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        close = await doors.serve(cast(Door, _Open()), listener, None, None)
        writers: list[asyncio.StreamWriter] = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            made = await asyncio.open_connection("127.0.0.1", port)
            writers.append(made[1])
            return made

        try:
            await asyncio.wait_for(use(connect), 10)
        finally:
            for each in writers:
                each.close()
            await close()

    asyncio.run(run())


async def answer(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    streams[1].write(ASK)
    told = await streams[0].readuntil(b"\r\n\r\n")
    await streams[0].readexactly(2)  # the body
    return told


def test_a_connection_beyond_the_limit_is_told_to_slow_down_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS", 2)

    async def use(connect: Connect) -> None:
        held = [await connect(), await connect()]
        for each in held:
            assert b" 200 " in await answer(each)
        third = await connect()
        third[1].write(ASK)
        told = await third[0].read()  # to the end: the door closes it
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"<Code>SlowDown</Code>" in told
        silent = [await connect(), await connect()]
        assert await (await connect())[0].read() == b""  # at twice the limit it is cut
        for streams in (*held[:1], *silent):
            streams[1].close()
        await asyncio.sleep(0.1)
        held[1][1].close()
        await asyncio.sleep(0.1)
        assert b" 200 " in await answer(await connect())

    at_a_door(use)


def test_one_address_leaves_room_for_others_also_before_it_speaks_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doors, "OF_ONE", 3)
    context = Authority(tmp_path).server_context()

    async def run() -> None:
        plain, tls = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        ports = [each.getsockname()[1] for each in (plain, tls)]
        close = await doors.serve(cast(Door, _Open()), plain, tls, context)

        async def connect(port: int, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))

        silent = [await connect(port, "127.0.0.2") for port in (*ports, ports[1])]
        with pytest.raises(ConnectionResetError):
            await (await connect(ports[1], "127.0.0.2"))[0].read(1)
        with pytest.raises(ConnectionResetError):
            await answer(await connect(ports[0], "127.0.0.2"))
        other = await connect(ports[0], "127.0.0.3")
        assert b" 200 " in await answer(other)
        silent[1][1].close()
        await asyncio.sleep(0.2)
        again = await connect(ports[0], "127.0.0.2")
        assert b" 200 " in await answer(again)
        for _, writer in (*silent, other, again):
            writer.close()
        await close()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_client_that_drips_its_head_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEAD_SECONDS", 0.4)

    async def use(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(b"GET /k HTTP/1.1\r\nx-slow: ")
        ended = asyncio.create_task(reader.read())
        began = time.monotonic()
        while not ended.done() and time.monotonic() - began < 8:
            writer.write(b"z")
            await asyncio.wait([ended], timeout=0.1)
        assert ended.done()
        assert ended.exception() is not None or ended.result() == b""
        assert 0.3 < time.monotonic() - began < 8

    at_a_door(use)
