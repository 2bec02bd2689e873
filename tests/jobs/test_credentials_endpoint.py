"""The credentials endpoint of a container."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.jobs.worlds import ROLE_ARN, role

from cloister.credentials import Credentials
from cloister.jobs import credentials_endpoint
from cloister.jobs.credentials_endpoint import CredentialsEndpoint

PATH = "/v2/credentials/secret"


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    credentials = Credentials(tmp_path)
    endpoint = CredentialsEndpoint(
        PATH, ROLE_ARN, lambda: credentials.issue(role(), "SageMaker", 3600, now=0.0)
    )
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    await endpoint.start(listener)
    yield listener.getsockname()[1]
    await endpoint.close()


async def _ask(port: int, request: bytes) -> tuple[int, dict[str, str]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


async def test_the_jobs_path_gives_the_roles_keys(port: int) -> None:
    status, body = await _ask(port, f"GET {PATH} HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n".encode())
    assert status == 200
    assert body["RoleArn"] == ROLE_ARN
    assert body["AccessKeyId"].startswith("ASIA")
    assert body["Expiration"] == "1970-01-01T01:00:00Z"
    assert body["Token"]
    assert body["SecretAccessKey"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /v2/credentials/other HTTP/1.1\r\n\r\n", 404),
        (b"GET /v2/credentials/secret/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /v2/credentials/secret HTTP/1.1\r\n\r\n", 405),
        (b"GET\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 400),
    ],
)
async def test_anything_else_gives_nothing(port: int, request_: bytes, status: int) -> None:
    found, body = await _ask(port, request_)
    assert found == status
    assert "SecretAccessKey" not in body


async def test_a_silent_client_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials_endpoint, "SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_role_that_cannot_be_assumed_any_more_gives_nothing() -> None:
    endpoint = CredentialsEndpoint(PATH, ROLE_ARN, lambda: None)
    status, body = endpoint.answer(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
    assert status.startswith("403")
    assert ROLE_ARN in body["message"]
