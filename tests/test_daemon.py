"""What the daemon does before anything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cloister import services
from cloister.daemon import seed
from cloister.engine import Engine
from cloister.options import Options
from cloister.store import Store
from cloister.vpc.model import Vpc

_SCRIPT = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
from cloister.daemon import take_all_files
take_all_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""


def test_a_soft_limit_of_open_files_is_no_limit() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_an_account_is_seeded_once_also_when_its_first_start_was_cut_off(tmp_path: Path) -> None:
    services.load()
    engine = Engine(Store(tmp_path / "world.sqlite"))
    seed(tmp_path, engine, Options())
    (tmp_path / "seeded").unlink()  # killed before it was said
    seed(tmp_path, engine, Options())
    assert engine.world.count(Vpc) == 1
    with engine.transaction() as tx:
        for vpc in list(tx.all(Vpc)):
            tx.delete(Vpc, vpc.vpc_id)
    seed(tmp_path, engine, Options())
    assert engine.world.count(Vpc) == 0
