"""nftables through libnftables (from Ubuntu 22.04's 1.0.2 on), by ctypes: no process per change.

One `Nft` is one libnftables context. It opens its netlink socket when it is made, so make it inside the
network namespace it is for (`Namespaces.call(name, Nft)`); after that it may be used from any thread.
One `run` is one transaction: all of its commands take effect at once, or none does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import threading
from typing import Any

from cloister.kernel.netlink import Netlink, attributes

SONAME = "libnftables.so.1"
_NETLINK_NETFILTER = 12

_NFT_CTX_DEFAULT = 0
_NFT_CTX_OUTPUT_JSON = 1 << 4

# libnftables keeps process-wide state (its scanner, a cache of interface names): one command at a time.
_lock = threading.Lock()
_library: ctypes.CDLL | None = None

# libnftables waits for its socket with select(2), which knows descriptors below 1024 only: with another the
# C library ends the process. So numbers are held for it, from when there are few others.
_SELECT = 1024
_HELD = 160
_held: list[int] = []


class NftError(RuntimeError):
    """libnftables refused a transaction; the text is its explanation. Nothing of it took effect."""


def library() -> ctypes.CDLL:
    """The loaded library; OSError when it is not installed (Debian: libnftables1)."""
    global _library
    if _library is None:
        lib = ctypes.CDLL(SONAME)
        lib.nft_ctx_new.restype = ctypes.c_void_p
        lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        lib.nft_ctx_free.restype = None
        lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
            getattr(lib, name).restype = ctypes.c_int
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]
            getattr(lib, name).restype = ctypes.c_char_p
        lib.nft_ctx_output_set_flags.restype = None
        lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        lib.nft_run_cmd_from_buffer.restype = ctypes.c_int
        lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        _library = lib
    return _library


def _hold() -> None:
    """Hold the lowest numbers that are free, as far as `select` knows them."""
    while len(_held) < _HELD:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if null >= _SELECT:
            os.close(null)
            return
        _held.append(null)


def _new_context(lib: ctypes.CDLL) -> int | None:
    """A context whose socket has a number that `select` knows, as long as one can be had."""
    _hold()
    while True:
        number = _held.pop() if _held else None
        if number is not None:
            os.close(number)
        context: int | None = lib.nft_ctx_new(_NFT_CTX_DEFAULT)
        # Taken is the lowest number: this one, a lower one, or, if another thread was quicker, any.
        if number is None or not context or _is_free(number) or _is_nftables(number):
            _hold()
            return context
        lib.nft_ctx_free(context)


def _is_free(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _is_nftables(number: int) -> bool:
    with contextlib.suppress(OSError):
        found = socket.socket(fileno=number)
        try:
            return found.family == socket.AF_NETLINK and found.proto == _NETLINK_NETFILTER
        finally:
            found.detach()
    return False


class Nft:
    """A libnftables context, bound to the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._lib = library()
        with _lock:
            self._context = _new_context(self._lib)
            if not self._context:
                raise NftError("libnftables cannot open its netlink socket here")
            self._lib.nft_ctx_buffer_output(self._context)
            self._lib.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Apply these commands as one transaction and return what they print."""
        return self._run(commands, 0)

    def query(self, commands: str) -> list[dict[str, Any]]:
        """`list …` in libnftables' JSON schema, without the metainfo entry."""
        text = self._run(commands, _NFT_CTX_OUTPUT_JSON)
        found: list[dict[str, Any]] = json.loads(text)["nftables"] if text.strip() else []
        return [entry for entry in found if "metainfo" not in entry]

    def _run(self, commands: str, flags: int) -> str:
        with _lock:
            if not self._context:
                raise NftError("this libnftables context is closed")
            self._lib.nft_ctx_output_set_flags(self._context, flags)
            failed = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
            output: bytes = self._lib.nft_ctx_get_output_buffer(self._context) or b""
            error: bytes = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftError(_shorten(error.decode(errors="replace")) or "libnftables refused without a reason")
        return output.decode(errors="replace")

    def close(self) -> None:
        with _lock:
            context, self._context = self._context, None
            if context:
                self._lib.nft_ctx_free(context)
                _hold()

    def __del__(self) -> None:
        # Not `close`: the collector may run while this thread holds the lock.
        if getattr(self, "_context", None):
            self._lib.nft_ctx_free(self._context)


class Generation:
    """How often the ruleset of a network namespace was changed by anybody; of the thread's that makes it."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETLINK_NETFILTER)

    def read(self) -> int:
        head = struct.pack("=BBH", 0, 0, 0)
        answer = self._netlink.ask(10 << 8 | 16, head)  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
        return int.from_bytes(attributes(answer, len(head))[1], "big")

    def close(self) -> None:
        self._netlink.close()


def _shorten(text: str) -> str:
    """libnftables repeats the whole line that it refused, and underlines the culprit: of a long line, keep
    300 characters around the culprit."""
    lines = text.rstrip().splitlines()
    kept: list[str] = []
    for i, line in enumerate(lines):
        mark = lines[i + 1].find("^") if i + 1 < len(lines) else -1
        if len(line) <= 600:
            kept.append(line)
        elif set(line) <= {" ", "^", "~"}:
            continue
        else:
            start = max(0, mark - 100)
            kept.append(f"… {line[start : start + 300]} …")
    return "\n".join(kept[:20])
