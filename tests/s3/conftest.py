"""A real door over a real SeaweedFS, reached by real boto3 over loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.iam.model import Role
from cloister.s3.backend import Backend, SeaweedFS
from cloister.s3.certificates import Authority
from cloister.s3.door import Door
from cloister.s3.doors import serve
from cloister.store import Store
from cloister.vpc.model import VpcEndpoint

REGION, ACCOUNT = "us-east-1", "123456789012"
ALLOW_ALL = '{"Statement":[{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}'
ENDPOINT = "vpce-0aaaaaaaaaaaaaaaa"


class Site:
    """The door in a loop of its own: `port` from outside any VPC, `vpc_port` through the endpoint. `backend`
    holds the objects; SeaweedFS by default."""

    def __init__(self, state: Path, backend: Backend | None = None) -> None:
        self.state = state
        self.backend = backend or SeaweedFS(state)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.authority = Authority(state)
        self.credentials = Credentials(state, ACCOUNT)
        self.run(self._start())

    async def _start(self) -> None:
        self.store = Store(self.state / "world.sqlite")
        self.engine = Engine(self.store)
        await self.backend.start()
        self.door = Door(self.engine, self.credentials, self.backend, region=REGION, account=ACCOUNT)
        sockets = []
        for _ in range(4):
            made = socket.socket()
            made.bind(("127.0.0.1", 0))
            sockets.append(made)
        self.port, self.tls_port, self.vpc_port, self.vpc_tls_port = (
            each.getsockname()[1] for each in sockets
        )
        context = self.authority.server_context()
        self.closers = [
            await serve(self.door, sockets[0], sockets[1], context),
            await serve(self.door, sockets[2], sockets[3], context, ENDPOINT, "vpc-0aaaaaaaaaaaaaaaa"),
        ]

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def put(self, *docs: object) -> None:
        async def change() -> None:
            with self.engine.transaction() as tx:
                for doc in docs:
                    tx.put(doc)

        self.run(change())

    def stop(self) -> None:
        async def end() -> None:
            for close in self.closers:
                await close()
            await self.backend.stop()
            self.store.close()

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    def endpoint_policy(self, policy: str) -> None:
        self.put(
            VpcEndpoint(
                endpoint_id=ENDPOINT,
                vpc_id="vpc-0aaaaaaaaaaaaaaaa",
                service_name=f"com.amazonaws.{REGION}.s3",
                policy=policy,
                created=0.0,
            )
        )

    def client(
        self, keys: tuple[str, str, str | None] | None = None, *, vpc: bool = False, **config: Any
    ) -> Any:
        access, secret, token = keys or (
            self.credentials.root_access_key_id, self.credentials.root_secret_access_key, None,
        )  # fmt: skip
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.vpc_port if vpc else self.port}",
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            aws_session_token=token,
            region_name=REGION,
            config=Config(retries={"max_attempts": 0}, **config),
        )

    def role(self, name: str, policy: str | None) -> tuple[str, str, str | None]:
        role = Role(
            name=name,
            role_id="AROA" + name.upper().ljust(16, "X")[:16],
            trust_policy="{}",
            created=0.0,
            inline_policies={"p": policy} if policy else {},
        )
        self.put(role)
        keys = self.credentials.issue(role, "session", 3600, now=self.engine.clock())
        return keys.access_key_id, keys.secret_access_key, keys.token


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("s3"))
    made.endpoint_policy(ALLOW_ALL)
    yield made
    made.stop()


@pytest.fixture
def bucket(site: Site) -> Iterator[Callable[[], str]]:
    import uuid

    made: list[str] = []

    def make() -> str:
        name = f"b-{uuid.uuid4().hex[:16]}"
        site.client().create_bucket(Bucket=name)
        made.append(name)
        return name

    yield make
    site.endpoint_policy(ALLOW_ALL)
