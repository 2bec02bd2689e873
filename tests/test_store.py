"""What the durable side of the World says when it cannot be read, and when there is no room for it."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from cloister import services
from cloister.store import Store, UnreadableState, is_full


def test_a_document_of_another_version_is_named_with_what_to_do(tmp_path: Path) -> None:
    services.load()
    store = Store(tmp_path / "world.sqlite")
    store._db.execute("INSERT INTO document (kind, key, body) VALUES ('vpc', 'vpc-1', '{\"size\": 3}')")
    with pytest.raises(UnreadableState, match=r"holds the vpc vpc-1 .* another version wrote it. Go on with"):
        store.load()
    store.close()


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "world.sqlite"
    path.write_text("not a database, but long enough to be looked at as one " * 100)
    with pytest.raises(UnreadableState, match=f"{path} cannot be read: file is not a database"):
        Store(path)


def test_a_full_disk_is_known_by_what_sqlite_and_the_kernel_say() -> None:
    full = sqlite3.connect(":memory:")
    full.execute("PRAGMA page_size = 512")
    full.execute("PRAGMA max_page_count = 3")
    full.execute("CREATE TABLE t (x)")
    with pytest.raises(sqlite3.OperationalError) as told:
        full.execute("INSERT INTO t VALUES (?)", ("x" * 10_000,))
    full.close()
    assert is_full(told.value)
    assert is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_full(OSError(errno.EPERM, "no"))
