"""An HTTP request and response as values: what the wire reads from and writes to.

Nothing is decoded here: `path` and `query` are as they came, percent-encoded, because signatures cover
the bytes that were sent and not what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """`path` begins with "/"; `query` is without its "?"; `headers` keep order, case and repetition."""

    method: str
    path: str = "/"
    query: str = ""
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first header of this name, in any case; None when there is none."""
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value
        return None


@dataclass(frozen=True, slots=True)
class HttpResponse:
    status: int
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value
        return None
