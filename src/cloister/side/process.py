"""moto as a process of its own: started when first called, in a namespace without any way out or in.

Only the dispatcher speaks to it, after it has authenticated and authorised a call. What moto gets is written
anew from the parameters that were decided on: nothing else that a client sent (headers, paths, repeated
members) reaches it. moto keeps everything in memory: it lives as long as Cloister is up, survives a daemon
that dies, and is gone after `cloister down`.

Measured (2 cores): ready in 0.4 s, 75 MB resident, 180 MB when all its services were called.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import aiohttp
import botocore.session
from botocore.model import ServiceModel
from botocore.serialize import create_serializer

from cloister.kernel.rtnl import Rtnl, set_up
from cloister.vpc.interface_endpoints import SERVICES
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpResponse

log = logging.getLogger(__name__)

NAMESPACE = "side"
PORT = 5000
START_SECONDS = 120.0
_LOOPBACK = 1  # the index of lo in every namespace
_HOSTS = {each.service: each.host for each in SERVICES.values()}
#: the program: moto's server, without a line in its log for every request
_SERVE = "import logging; logging.getLogger('werkzeug').setLevel('ERROR'); import moto.server as m; m.main()"
#: headers of moto's answers that reach the client
_PASSED = ("x-amz-crc32", "x-amzn-errortype", "x-amzn-requestid")

Params = Mapping[str, Any]


class Netns(Protocol):
    """The part of kernel.netns.Namespaces that is needed here."""

    def exists(self, name: str) -> bool: ...
    def create(self, name: str) -> None: ...
    def call(self, name: str, function: Any) -> Any: ...
    def path(self, name: str) -> Path: ...
    def socket(self, name: str, family: int, kind: int, proto: int = 0) -> socket.socket: ...


class SideServices:
    """`call` has moto carry out a call that was decided on; `arns` asks it what names mean."""

    def __init__(self, state: Path, namespaces: Netns, *, account: str, region: str) -> None:
        self._folder = state / "side"
        self._namespaces = namespaces
        self.account = account
        self.region = region
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None

    async def stop(self) -> None:
        """End the process if it is our own child; one of an earlier daemon ends with the holder."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it has nothing to save
            await process.wait()

    async def call(
        self, service: str, operation: str, params: Params, protocol: str = "json"
    ) -> HttpResponse:
        """The answer of moto, an error or not, in a protocol that the service speaks.
        Raises NotImplemented, ServiceUnavailable."""
        headers, body = _written(service, operation, params, self.region, protocol)
        status, answered, text = await self._send(headers, body)
        if status >= 500 and not text.lstrip().startswith((b"{", b"<ErrorResponse")):
            # moto writes a page for what it does not have, and for what it stumbled over
            log.warning("moto could not carry out %s:%s (status %s)", service, operation, status)
            message = f"Cloister does not implement this request of {service}:{operation}."
            raise AwsError("NotImplemented", message, 501)
        if service == "sqs":  # queues are called by the name that was used to make them
            host = f"{_HOSTS[service]}.{self.region}.amazonaws.com".encode()
            text = text.replace(b"http://" + host, b"https://" + host)
        passed = [(name, answered[name]) for name in _PASSED if name in answered]
        return HttpResponse(status, (("Content-Type", _content_type(service, protocol)), *passed), text)

    async def arns(self, service: str, names: list[str]) -> dict[str, str]:
        """The ARNs of secrets or keys by what a caller calls them; one that does not exist has none."""
        operation, member = {
            "secretsmanager": ("DescribeSecret", "SecretId"),
            "kms": ("DescribeKey", "KeyId"),
        }.get(service, ("", ""))
        found: dict[str, str] = {}
        for name in dict.fromkeys(names):
            answer = await self.call(service, operation, {member: name})
            if answer.status == 200:
                described = json.loads(answer.body)
                found[name] = str(described.get("KeyMetadata", {}).get("Arn") or described["ARN"])
        return found

    # -- the process --------------------------------------------------------------------------------

    async def _send(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        for again in (False, True):
            if self._session is None or again:
                await self._start()
            assert self._session is not None
            try:
                async with self._session.post(
                    f"http://127.0.0.1:{PORT}/",
                    data=body,
                    headers=headers,
                    skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                ) as answer:
                    answered = {name.lower(): value for name, value in answer.headers.items()}
                    return answer.status, answered, await answer.read()
            except aiohttp.ClientConnectorError:
                log.info("moto does not answer: starting it")
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("moto broke off: %s", error)
                break
        raise AwsError("ServiceUnavailable", "The service does not answer. Please try again.", 503)

    async def _start(self) -> None:
        """moto is there when this returns: an earlier daemon's, or a new one. Raises ServiceUnavailable."""
        async with self._starting:
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=32, socket_factory=self._socket, force_close=True),
                    timeout=aiohttp.ClientTimeout(total=60),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                )
            if not self._namespaces.exists(NAMESPACE):
                self._namespaces.create(NAMESPACE)
            await asyncio.to_thread(self._namespaces.call, NAMESPACE, _loopback_up)
            if await self._answers():
                return
            self._process = await self._spawn()
            deadline = time.monotonic() + START_SECONDS
            while not await self._answers():
                if self._process.returncode is not None or time.monotonic() > deadline:
                    log.error("moto does not start: see %s", self._folder / "moto.log")
                    raise AwsError("ServiceUnavailable", "The service does not start. Please try again.", 503)
                await asyncio.sleep(0.05)
            log.info("started moto (pid %s)", self._process.pid)

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        where = str(self._namespaces.path(NAMESPACE))
        # It reads what jobs send: no capability, and no way to get one.
        argv = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        argv += [sys.executable, "-I", "-c", _SERVE, "--host", "127.0.0.1", "--port", str(PORT)]
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder),
            "MOTO_ACCOUNT_ID": self.account,
            "AWS_DEFAULT_REGION": self.region,
        }
        with (self._folder / "moto.log").open("wb") as written:
            return await asyncio.create_subprocess_exec(
                *("nsenter", f"--net={where}", *argv),
                cwd=self._folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )

    async def _answers(self) -> bool:
        """Whether something listens. Only we put processes into the namespace."""
        with self._socket((socket.AF_INET, socket.SOCK_STREAM, 0)) as one:
            one.setblocking(False)
            try:
                async with asyncio.timeout(2):
                    await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", PORT))
            except OSError:  # TimeoutError is one
                return False
        return True

    def _socket(self, info: Any) -> socket.socket:
        made = self._namespaces.socket(NAMESPACE, info[0], info[1], info[2])
        if info[1] == socket.SOCK_STREAM:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def _loopback_up() -> None:
    """In the namespace of the thread."""
    here = Rtnl()
    try:
        here.send([set_up(_LOOPBACK)])
    finally:
        here.close()


@cache
def _model(service: str) -> ServiceModel:
    return botocore.session.get_session().get_service_model(service)


def _content_type(service: str, protocol: str) -> str:
    """moto calls everything HTML."""
    version = _model(service).metadata.get("jsonVersion", "1.0")
    return f"application/x-amz-json-{version}" if protocol == "json" else "text/xml"


def _written(
    service: str, operation: str, params: Params, region: str, protocol: str
) -> tuple[dict[str, str], bytes]:
    """Headers and body of a call as moto reads it. What tells service, account and Region is ours alone."""
    model = _model(service)
    serializer = create_serializer(protocol, include_validation=False)
    request = serializer.serialize_to_request(dict(params), model.operation_model(operation))
    body = request["body"]
    if isinstance(body, dict):
        body = urlencode(body).encode()
    scope = f"CLOISTER/20260101/{region}/{model.signing_name}/aws4_request"
    headers = {
        **request["headers"],
        "Host": f"{_HOSTS[service]}.{region}.amazonaws.com",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
    }
    return headers, body if isinstance(body, bytes) else body.encode()
