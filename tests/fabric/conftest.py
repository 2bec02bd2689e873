"""Tests of the kernel room change mounts and namespaces: they run in a throw-away world, or not at all.

python -m cloister.kernel.holder --exec pytest tests/fabric
"""

from __future__ import annotations

import os

import pytest

from cloister.kernel.holder import WORLD_VARIABLE


@pytest.fixture(autouse=True)
def _inside_a_private_world(request: pytest.FixtureRequest) -> None:
    if request.path.name.startswith("test_kernel_") and not os.environ.get(WORLD_VARIABLE):
        pytest.fail("run it inside a world: python -m cloister.kernel.holder --exec pytest tests/fabric")
