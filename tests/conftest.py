"""How long the property tests run: quick and the same every time as a rule; long and at random with
CLOISTER_FUZZ=1 (`make fuzz`).

No test sets a number of examples of its own, as that would hold in both. A test whose example is dear takes a
share of the profile's: `settings(max_examples=settings.default.max_examples // 15)`.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

FUZZ = os.environ.get("CLOISTER_FUZZ") == "1"

# A deadline would measure the machine; what is slow is found by `make bench`.
settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True)
settings.register_profile(
    "fuzz", max_examples=2500, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fuzz" if FUZZ else "quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if FUZZ:  # pyproject's limit is for tests that are quick
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))
