"""http://169.254.170.2 of one container: gives the job's execution role's keys to whoever knows the path.

The socket is opened inside the container's network namespace, so nobody else can reach it. AWS: "Container
credential provider" (SDKs reference guide): GET of AWS_CONTAINER_CREDENTIALS_RELATIVE_URI.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from datetime import UTC, datetime

from cloister.credentials import SessionKeys

log = logging.getLogger(__name__)

MAX_REQUEST = 8192
SECONDS = 5.0
#: a container may hold as many connections open as it likes, but not of ours
MAX_CONNECTIONS = 64

#: the keys to give, or None when the role cannot be assumed any more
Issue = Callable[[], SessionKeys | None]


class CredentialsEndpoint:
    """Serves until `close`."""

    def __init__(self, path: str, role_arn: str, issue: Issue) -> None:
        self._path, self._role_arn, self._issue = path, role_arn, issue
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, listener: socket.socket) -> None:
        """`listener` is bound already, in the container's namespace."""
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=MAX_REQUEST)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > MAX_CONNECTIONS:
                return
            async with asyncio.timeout(SECONDS):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                    status, body = self.answer(head)
                except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
                    status, body = "400 Bad Request", {"code": "BadRequest", "message": "not a request"}
                payload = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode()
                    + payload
                )
                await writer.drain()
        except (TimeoutError, ConnectionError):
            pass
        except Exception:
            log.exception("the credentials endpoint failed on a request")
        finally:
            self._open -= 1
            writer.close()

    def answer(self, head: bytes) -> tuple[str, dict[str, str]]:
        """Status and body for a request's head."""
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return "400 Bad Request", {"code": "BadRequest", "message": "not an HTTP/1 request"}
        method, target, _ = words
        if method != b"GET":
            return "405 Method Not Allowed", {"code": "MethodNotAllowed", "message": "only GET is answered"}
        if target != self._path.encode():
            return "404 Not Found", {"code": "NotFound", "message": "no credentials at this path"}
        keys = self._issue()
        if keys is None:
            return "403 Forbidden", {
                "code": "AccessDenied",
                "message": f"SageMaker was unable to assume the role '{self._role_arn}'",
            }
        return "200 OK", {
            "RoleArn": self._role_arn,
            "AccessKeyId": keys.access_key_id,
            "SecretAccessKey": keys.secret_access_key,
            "Token": keys.token,
            "Expiration": datetime.fromtimestamp(keys.expiration, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
