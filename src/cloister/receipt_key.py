"""The key that receipts are signed with (`why/receipt.py`)."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


def signing_key(state: Path) -> Ed25519PrivateKey:
    """The installation's key for receipts, made when it is first asked for."""
    path = state / "receipt.key"
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    found = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(found, Ed25519PrivateKey)
    return found
