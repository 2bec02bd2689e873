"""IPsec by the kernel, through its XFRM netlink: states (keys of one direction) and policies (what must go by
them). ESP in tunnel mode with AES-256-GCM (RFC 4106), between the ends of the packets themselves.

Who reads states reads keys: the kernel asks for CAP_NET_ADMIN in the user namespace that owns the network
namespace, for reading too. A container's user namespace is a child of that one.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from cloister.kernel import syscalls
from cloister.kernel.netlink import Message, Netlink, attribute, unpack

#: how far behind the newest a packet may be
WINDOW = 1024

_PROTOCOL = 6  # NETLINK_XFRM
_ACQUIRE_AND_EXPIRE = 0b11  # the groups
# message types and attributes (linux/xfrm.h)
_NEWSA, _DELSA, _GETSA, _NEWPOLICY, _ACQUIRE, _EXPIRE, _FLUSHSA, _FLUSHPOLICY = 16, 17, 18, 19, 23, 24, 28, 29
_A_TEMPLATE, _A_AEAD, _A_REPLAY = 5, 18, 23
_CREATE, _EXCL = 0x400, 0x200
_IN, _OUT = 0, 1
_ESP, _TUNNEL = 50, 1
_ALLOW = 0
_ALL = 0xFFFFFFFF
_FOREVER = (1 << 64) - 1
_REQUEST_ID = 1  # ties states to policies
_IP_XFRM_POLICY, _SO_ATTACH_FILTER = 17, 26

_ID = struct.Struct("=16s4sBxxx")
#: target, source, their ports and masks, family, both lengths, protocol, link, user
_SELECTOR = struct.Struct("=16s16sHHHHHBBBxxxiI")
#: soft and hard limits of bytes and of packets, and of seconds since added and since used
_LIMITS = struct.Struct("=8Q")
_CURRENT = bytes(32)
_STATE_END = struct.Struct("=12xIIHBBB7x")  # number, request id, family, mode, window, flags
_STATE_ID = struct.Struct("=16s4sHBx")
_POLICY_END = struct.Struct("=IIBBBB4x")  # priority, index, direction, action, flags, share
_TEMPLATE = struct.Struct("=24sHxx16sIBBBxIII")
_AEAD = struct.Struct("=64sII")
_REPLAY = struct.Struct("=6I")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`key` is 32 bytes of key and 4 of salt; somebody else `sent` so many packets with it. After the soft
    seconds or packets the kernel asks for another (`Events`); after the hard ones it is gone, and what needs
    it is lost."""

    source: str
    target: str
    spi: int
    key: bytes
    sent: int = 0
    soft_seconds: int = 0
    hard_seconds: int = 0
    soft_packets: int = _FOREVER


class Xfrm(Netlink):
    """A socket of the namespace of the thread that makes it."""

    def __init__(self) -> None:
        super().__init__(_PROTOCOL)


class Events:
    """What the kernel tells of states that it wants, in the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL)
        self._socket.bind((0, _ACQUIRE_AND_EXPIRE))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Iterator[str]:
        """Targets of packets for which there is no state, or one that is worn."""
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # more than it could keep: the kernel tells again
                continue
            for kind, _, _, body in unpack(data):
                if kind in (_ACQUIRE, _EXPIRE):
                    yield socket.inet_ntoa(body[:4] if kind == _ACQUIRE else body[_SELECTOR.size :][:4])


def states() -> list[tuple[str, int, int]]:
    """The target, SPI and packets of every state of the namespace of this thread."""
    here = Xfrm()
    try:
        found = here.dump(_GETSA, b"")
    finally:
        here.close()
    return [
        (
            socket.inet_ntoa(body[56:60]),
            *struct.unpack_from("!I", body, 72),
            *struct.unpack_from("=Q", body, 168),
        )
        for body in found
    ]


def add_state(state: State) -> Message:
    replay = _REPLAY.pack(WINDOW // 32, state.sent, 0, 0, 0, WINDOW)
    limits = _LIMITS.pack(
        _FOREVER, _FOREVER, state.soft_packets, _FOREVER, state.soft_seconds, state.hard_seconds, 0, 0
    )
    body = (
        _SELECTOR.pack(b"", b"", 0, 0, 0, 0, socket.AF_INET, 0, 0, 0, 0, 0)
        + _ID.pack(_address(state.target), _number(state.spi), _ESP)
        + _address(state.source).ljust(16, b"\0")
        + limits
        + _CURRENT
        + _STATE_END.pack(0, _REQUEST_ID, socket.AF_INET, _TUNNEL, 0, 0)
        + attribute(
            _A_AEAD, _AEAD.pack(b"rfc4106(gcm(aes))", 8 * len(state.key), 128) + state.key
        )
        + attribute(_A_REPLAY, replay + bytes(WINDOW // 8))
    )  # fmt: skip
    return Message(type=_NEWSA, flags=_CREATE | _EXCL, body=body, what=f"add a state for {state.target}")


def delete_state(target: str, spi: int) -> Message:
    return Message(
        type=_DELSA,
        flags=0,
        body=_STATE_ID.pack(_address(target), _number(spi), socket.AF_INET, _ESP),
        what=f"delete a state for {target}",
        ignore=(errno.ESRCH,),
    )


def add_policies(own: str, peer: str, link: int) -> list[Message]:
    """What goes from `own` to `peer` by this link, and what comes from it by any, must go by states."""
    found = []
    for direction, source, target, by in ((_OUT, own, peer, link), (_IN, peer, own, 0)):
        template = _TEMPLATE.pack(
            _ID.pack(_address(target), b"", _ESP),
            socket.AF_INET, _address(source), _REQUEST_ID, _TUNNEL, 0, 0, _ALL, _ALL, _ALL,
        )  # fmt: skip
        selector = _SELECTOR.pack(
            _address(target), _address(source), 0, 0, 0, 0, socket.AF_INET, 32, 32, 0, by, 0
        )
        found.append(
            Message(
                type=_NEWPOLICY,
                flags=_CREATE | _EXCL,
                body=_policy(selector, direction) + attribute(_A_TEMPLATE, template),
                what=f"add a policy from {source} to {target}",
            )
        )
    return found


def flush() -> list[Message]:
    """Of the namespace. What had to go by states may go without them: no route may lead it out."""
    nothing = (errno.ESRCH,)
    return [
        Message(type=_FLUSHPOLICY, flags=0, body=b"", what="flush policies", ignore=nothing),
        Message(type=_FLUSHSA, flags=0, body=b"\0", what="flush states", ignore=nothing),
    ]


def exempt(own: socket.socket) -> None:
    """A socket that no policy is for: that of who makes the states."""
    selector = _SELECTOR.pack(b"", b"", 0, 0, 0, 0, socket.AF_INET, 0, 0, 0, 0, 0)
    for direction in (_IN, _OUT):
        own.setsockopt(socket.IPPROTO_IP, _IP_XFRM_POLICY, _policy(selector, direction))


def without(own: socket.socket, spis: list[int]) -> None:
    """Have a raw socket for ESP not see the packets of these states."""
    # by classic BPF: x is the length of the IP header, a is the SPI; ret 0 takes nothing of a packet
    code = [(0xB1, 0, 0, 0), (0x40, 0, 0, 0)]
    for spi in spis:
        code += [(0x15, 0, 1, spi), (0x06, 0, 0, 0)]
    code.append((0x06, 0, 0, _ALL))
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    own.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(text)))


def trouble() -> str:
    """Why the kernel cannot do this, found by trying in a namespace of its own; "" when it can."""
    found = ["the trial did not end"]

    def attempt() -> None:
        here = None
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            here = Xfrm()
            here.send([add_state(State(source="10.0.0.1", target="10.0.0.2", spi=256, key=bytes(36)))])
            found[0] = ""
        except OSError as error:
            found[0] = (error.strerror or str(error)).removeprefix("add a state for 10.0.0.2: ")
        finally:
            if here is not None:
                with suppress(OSError):
                    here.close()

    thread = threading.Thread(target=attempt, name="esp trial")
    thread.start()
    thread.join()
    return found[0]


def _policy(selector: bytes, direction: int) -> bytes:
    limits = _LIMITS.pack(_FOREVER, _FOREVER, _FOREVER, _FOREVER, 0, 0, 0, 0)
    return selector + limits + _CURRENT + _POLICY_END.pack(0, 0, direction, _ALLOW, 0, 0)


def _address(address: str) -> bytes:
    return socket.inet_aton(address)


def _number(spi: int) -> bytes:
    return struct.pack("!I", spi)
