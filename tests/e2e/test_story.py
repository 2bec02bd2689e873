"""The README's story, as a user runs it."""

from __future__ import annotations

import json

import pytest
from tests.e2e.conftest import Cloister

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(150)
def test_the_demo_holds_every_step_and_leaves_cloister_running(cloister: Cloister) -> None:
    told = json.loads(cloister.command("demo", "--json", check=False))
    assert told["failed"] is None, "\n".join([*told["lines"], told["failed"]])
    text = "\n".join(told["lines"])
    assert "equal to the same figures computed directly, for 16 carriers" in text
    assert cloister.running().pid > 0


def test_the_environment_a_user_evaluates_names_the_endpoint_and_the_ca(cloister: Cloister) -> None:
    variables = json.loads(cloister.command("env", "--json"))
    assert variables["AWS_ENDPOINT_URL"] == f"https://127.0.0.1:{cloister.port}"
    assert variables["AWS_CA_BUNDLE"].endswith("bundle.pem")
    assert f"export AWS_ENDPOINT_URL={variables['AWS_ENDPOINT_URL']}" in cloister.command("env")


def test_status_tells_resources_and_problems_for_machines(cloister: Cloister) -> None:
    status = json.loads(cloister.command("status", "--json"))
    assert status["up"] is True
    assert status["problem"] is None
    assert status["resources"]["VPCs"] >= 1
