"""Links of README and docs lead somewhere, and every file that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import GENERATED, PAGES, ROOT, prose

import zpruner
from zpruner.parts.names import part_names
from zpruner.pruning.presets import PRESETS

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:docs|zpruner|stages|flows|warm|benchmarks|tests|formulas|tasks|search)/[\w./-]+\.\w+)`")
HOME = re.compile(r"(?<![\w/.])((?:docs|benchmarks)/[\w./-]+\.(?:md|yaml|json|jsonl|html))\b")


def anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub and the site's generator make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found == GENERATED or found.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in {*NAMED.findall(text), *HOME.findall(text)}:
        example = "mymethod" in name or "NAME" in name
        assert example or (ROOT / name).exists(), f"{name} is not there"


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    assert {name for name in zpruner.__all__ if not re.search(rf"\b{name}\b", page)} == set()


def test_every_part_has_a_place_among_the_methods() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md") if page != GENERATED)
    rooms = ("methods", "masks", "updates", "allocations", "corrections", "tuning")
    names = {name for room in rooms for name in part_names(f"zpruner.{room}")} | set(PRESETS)
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


def test_nothing_is_described_twice() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md") if page != GENERATED)
    described = re.findall(r"^\.\. auto\w+:: (\S+)", text, re.M)
    assert sorted(described) == sorted(set(described))
