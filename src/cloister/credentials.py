"""Access keys: the root key, and session keys that need no store.

A session's claims travel sealed (AES-256-GCM) in its token; its secret is an HMAC over its access key id
and its token's bytes. Both keys are derived from `secret.key`, so sessions survive a restart and a token
that was changed, or belongs to another installation or another access key, is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister import ids
from cloister.iam.model import Principal, Role
from cloister.wire.errors import AwsError

_TOKEN_PREFIX = "IQoJclst1"  # looks like AWS's tokens; the last digit is the format's version
_SECRET_LENGTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKeys:
    """What AssumeRole returns. `expiration` is POSIX seconds."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)
    expiration: float
    principal: Principal


class Credentials:
    """`Credentials(state_dir, account)` reads or makes `root.json` and `secret.key` (both 0600).

    CLOISTER_ROOT_ACCESS_KEY_ID and CLOISTER_ROOT_SECRET_ACCESS_KEY, given together, replace the root key
    and leave the file alone."""

    def __init__(
        self, state_dir: Path, account: str = "123456789012", environ: Mapping[str, str] = os.environ
    ) -> None:
        self.account = account
        state_dir.mkdir(parents=True, exist_ok=True)
        key = _read_or_make(state_dir / "secret.key", lambda: secrets.token_bytes(32))
        if len(key) != 32:
            raise ValueError(f"{state_dir / 'secret.key'} holds {len(key)} bytes, not 32")
        self._seal = AESGCM(_derive(key, b"session token"))
        self._secret_key = _derive(key, b"session secret")
        self.root_access_key_id, self.root_secret_access_key = _root_key(state_dir, environ)

    @cached_property
    def root(self) -> Principal:
        return Principal(
            arn=f"arn:aws:iam::{self.account}:root",
            account=self.account,
            user_id=self.account,
            access_key_id=self.root_access_key_id,
        )

    def issue(
        self,
        role: Role,
        session_name: str,
        seconds: float,
        session_policies: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> SessionKeys:
        """Keys for a session of `role`, valid for `seconds` from `now` (POSIX seconds)."""
        return self._issue(
            ids.unique_id("ASIA"),
            {
                "role": role.name,
                "role_id": role.role_id,
                "path": role.path,
                "session": session_name,
                "policies": list(session_policies),
                "tags": dict(tags or {}),
                "issued": now,
                "expires": now + seconds,
            },
        )

    def issue_root_session(self, seconds: float, now: float) -> SessionKeys:
        """Temporary keys of the root user (GetSessionToken)."""
        return self._issue(ids.unique_id("ASIA"), {"issued": now, "expires": now + seconds})

    def lookup(self, access_key_id: str, token: str | None, now: float) -> tuple[str, Principal]:
        """The secret to verify a signature with, and who signs.

        Raises AwsError InvalidClientTokenId (no such key, or a token with the root's key; the wire words it
        per protocol), InvalidToken (missing, changed or someone else's token), ExpiredToken."""
        if hmac.compare_digest(access_key_id.encode(), self.root_access_key_id.encode()):
            if token:
                raise AwsError("InvalidToken", "The provided token does not belong to the access key.", 403)
            return self.root_secret_access_key, self.root
        if not access_key_id.startswith("ASIA") or not token:
            raise AwsError(
                "InvalidClientTokenId", "The security token included in the request is invalid.", 403
            )
        claims = self._open(access_key_id, token)
        principal = self._principal(access_key_id, claims)
        if principal.expires is not None and now >= principal.expires:
            raise AwsError("ExpiredToken", "The security token included in the request is expired", 403)
        return self._secret(access_key_id, token), principal

    def _issue(self, access_key_id: str, claims: dict[str, object]) -> SessionKeys:
        nonce = secrets.token_bytes(12)
        body = json.dumps(claims, separators=(",", ":")).encode()
        sealed = nonce + self._seal.encrypt(nonce, body, access_key_id.encode())
        token = _TOKEN_PREFIX + base64.b64encode(sealed).decode()
        principal = self._principal(access_key_id, claims)
        assert principal.expires is not None
        return SessionKeys(
            access_key_id=access_key_id,
            secret_access_key=self._secret(access_key_id, token),
            token=token,
            expiration=principal.expires,
            principal=principal,
        )

    def _open(self, access_key_id: str, token: str) -> dict[str, object]:
        refused = AwsError("InvalidToken", "The provided token is malformed or otherwise invalid.", 403)
        if not token.startswith(_TOKEN_PREFIX):
            raise refused
        try:
            sealed = base64.b64decode(token[len(_TOKEN_PREFIX) :].encode(), validate=True)
            # The access key id is bound in: a token opens only with the key it was issued with.
            body = self._seal.decrypt(sealed[:12], sealed[12:], access_key_id.encode())
        except (binascii.Error, InvalidTag, ValueError):
            raise refused from None
        claims: dict[str, object] = json.loads(body)
        return claims

    def _principal(self, access_key_id: str, claims: Mapping[str, object]) -> Principal:
        issued, expires = claims["issued"], claims["expires"]
        assert isinstance(issued, (int, float))
        assert isinstance(expires, (int, float))
        if "role" not in claims:
            return Principal(
                arn=f"arn:aws:iam::{self.account}:root",
                account=self.account,
                user_id=self.account,
                access_key_id=access_key_id,
                issued=issued,
                expires=expires,
            )
        role, session = str(claims["role"]), str(claims["session"])
        policies, tags = claims["policies"], claims["tags"]
        assert isinstance(policies, list)
        assert isinstance(tags, dict)
        return Principal(
            arn=f"arn:aws:sts::{self.account}:assumed-role/{role}/{session}",
            account=self.account,
            user_id=f"{claims['role_id']}:{session}",
            access_key_id=access_key_id,
            role_name=role,
            role_arn=f"arn:aws:iam::{self.account}:role{claims['path']}{role}",
            session_name=session,
            session_policies=tuple(policies),
            session_tags=tags,
            issued=issued,
            expires=expires,
        )

    def _secret(self, access_key_id: str, token: str) -> str:
        digest = hmac.new(self._secret_key, f"{access_key_id}\0{token}".encode(), hashlib.sha512).digest()
        return base64.b64encode(digest).decode()[:_SECRET_LENGTH]


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"cloister " + purpose).derive(key)


def _root_key(state_dir: Path, environ: Mapping[str, str]) -> tuple[str, str]:
    access, secret = (
        environ.get("CLOISTER_ROOT_ACCESS_KEY_ID"),
        environ.get("CLOISTER_ROOT_SECRET_ACCESS_KEY"),
    )
    if access or secret:
        if not access or not secret:
            raise ValueError(
                "CLOISTER_ROOT_ACCESS_KEY_ID and CLOISTER_ROOT_SECRET_ACCESS_KEY must be set together"
            )
        return access, secret

    def make() -> bytes:
        made = {
            "AccessKeyId": ids.unique_id("AKIA"),
            "SecretAccessKey": base64.b64encode(secrets.token_bytes(30)).decode(),
        }
        return (json.dumps(made, indent=2) + "\n").encode()

    kept = json.loads(_read_or_make(state_dir / "root.json", make))
    return str(kept["AccessKeyId"]), str(kept["SecretAccessKey"])


def _read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """The file's bytes; made whole or not at all, and by one of several starters only."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(make())
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(name, path)  # unlike rename, never replaces what another starter made
            except FileExistsError:
                pass
        finally:
            os.unlink(name)
        found = path.read_bytes()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
    return found
