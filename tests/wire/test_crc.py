"""CRCs against the check values of their catalogue."""

from __future__ import annotations

import pytest

from cloister.wire.crc import Crc32c, Crc64Nvme


@pytest.mark.parametrize(("made", "check"), [(Crc32c, "e3069283"), (Crc64Nvme, "ae8b14860a799888")])
def test_a_crc_is_what_its_catalogue_says(made: type[Crc32c | Crc64Nvme], check: str) -> None:
    crc = made()
    crc.update(b"1234")
    crc.update(memoryview(b"56789"))
    assert crc.digest().hex() == check
