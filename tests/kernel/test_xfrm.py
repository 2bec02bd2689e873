"""The messages for the kernel's IPsec are laid out as it expects; what it can is found by trying."""

from __future__ import annotations

import socket
import struct

from cloister.kernel import xfrm
from cloister.kernel.netlink import attributes

_STATE = xfrm.State(source="10.0.0.4", target="10.0.0.5", spi=0x1234, key=bytes(range(36)), sent=1)


def test_a_state_carries_its_ends_its_key_and_how_far_it_was_used() -> None:
    body = xfrm.add_state(_STATE).body
    assert socket.inet_ntoa(body[56:60]) == "10.0.0.5"
    assert body[72:77] == struct.pack("!IB", 0x1234, 50)
    assert socket.inet_ntoa(body[80:84]) == "10.0.0.4"
    found = attributes(body, 224)  # sizeof(struct xfrm_usersa_info)
    assert set(found) == {18, 23}
    assert found[18][:17] == b"rfc4106(gcm(aes))"
    assert found[18][64:] == struct.pack("=II", 288, 128) + _STATE.key
    assert struct.unpack_from("=6I", found[23]) == (32, 1, 0, 0, 0, 1024)
    assert len(found[23]) == 24 + 4 * 32


def test_policies_are_of_one_link_outwards_and_of_all_inwards() -> None:
    out, back = xfrm.add_policies("10.0.0.4", "10.0.0.5", 7)
    for message, link, direction in ((out, 7, 1), (back, 0, 0)):
        assert struct.unpack_from("=i", message.body, 48) == (link,)
        assert message.body[160:162] == bytes([direction, 0])
        assert len(attributes(message.body, 168)[5]) == 64  # sizeof(struct xfrm_user_tmpl)


def test_what_the_kernel_cannot_is_said_in_its_words() -> None:
    trouble = xfrm.trouble()
    assert trouble == xfrm.trouble()
    assert "10.0.0" not in trouble
