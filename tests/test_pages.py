"""The documentation that is made from the code is current, and leads where it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import compatibility

from cloister.jobs.lifecycle import render_mermaid

ROOT = Path(__file__).resolve().parent.parent
#: `make bench` is followed by writing it
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_compatibility_page_is_what_the_code_says() -> None:
    said = compatibility.PAGE.read_text()
    assert said == compatibility.render(), f"docs/compatibility.md is stale; run: {compatibility.COMMAND}"


def test_the_diagrams_of_a_jobs_life_are_the_tables() -> None:
    page = (ROOT / "docs" / "design" / "jobs.md").read_text()
    assert render_mermaid() in page, (
        "docs/design/jobs.md is stale; replace its diagrams by the output of: "
        ".venv/bin/python -c 'from cloister.jobs import lifecycle; print(lifecycle.render_mermaid())'"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:src|tests|scripts|bench|docs)/[\w/.-]+)`", text):
        path = ROOT / name
        assert path.exists(), f"{page.name} names {name}"
    # In these pages `vpc/model.py` is src/cloister/vpc/model.py.
    for name in re.findall(r"`([a-z_0-9]+(?:/[a-z_0-9]+)*\.py)`", text):
        if not name.startswith(("src/", "tests/", "scripts/", "bench/")):
            assert (ROOT / "src" / "cloister" / name).exists(), f"{page.name} names {name}"
