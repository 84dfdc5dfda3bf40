"""What CONTRIBUTING and its guide add to the project passes its checks, and takes as many files as they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from doc_pages import ROOT, Block, blocks

PAGES = (ROOT / "CONTRIBUTING.md", ROOT / "docs/guides/add_parts.md")
COUNTED = {
    "method": 1,
    "solver": 1,
    "weight update": 1,
    "statistic": 2,
    "metric": 2,
    "chart": 2,
    "form of source": 2,
    "stage": 3,
    "model family": 0,
}
IN_WORDS = ("nothing", "one file", "two files", "three files")


def additions() -> dict[str, list[Block]]:
    """Kind of addition, as its heading says -> the blocks below it."""
    found: dict[str, list[Block]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for title, files, body in re.findall(r"^## An? ([\w ]+): ([\w ]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
            found[title] = [block for block in blocks(page) if block.text in body]
            assert IN_WORDS.index(files) == COUNTED[title]
    return found


def file_of(block: Block) -> str:
    return block.text.partition("\n")[0].removeprefix("# ")


def paste(block: Block, root: Path) -> None:
    """Write a new file, or change one: every place that a diff speaks of is there once."""
    path = root / file_of(block)
    if block.language == "python":
        assert not path.exists()
        path.write_text(block.text, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    for hunk in block.text.partition("@@\n")[2].split("@@\n"):
        lines = [line or " " for line in hunk.removesuffix("\n").split("\n")]
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path.name}: {old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def run(root: Path, *command: str) -> None:
    environment = tiny.environment() | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def pasted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every addition."""
    root = tmp_path_factory.mktemp("additions") / "project"
    for name in ("zpruner", "stages", "warm", "flows", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    for found in additions().values():
        for block in found:
            paste(block, root)
    return root


def test_files_are_counted() -> None:
    assert {title: len({file_of(block) for block in found}) for title, found in additions().items()} == COUNTED


def test_additions_are_well_formed_and_work(pasted: Path, tmp_path: Path) -> None:
    files = sorted(
        {file_of(block) for found in additions().values() for block in found if file_of(block) != "dvc.yaml"}
    )
    run(pasted, "-m", "ruff", "check", "--quiet", *files)
    run(pasted, "-m", "ruff", "format", "--check", "--quiet", *files)
    run(pasted, str(ROOT / "tests/docs/additions.py"), str(tmp_path))


def test_a_method_passes_the_contract_as_pasted(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for name in ("zpruner", "tests/methods", "tests/updates"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for title in ("method", "solver", "weight update"):
        paste(additions()[title][0], root)
    tests = ("tests/methods/test_method_contract.py", "tests/updates/test_updates.py")
    run(root, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", "peak or one_shot or row_by_row", *tests)


@pytest.mark.slow
def test_additions_pass_mypy_and_the_import_check(pasted: Path) -> None:
    run(pasted, "-m", "mypy", "--cache-dir", str(pasted / ".mypy_cache"))
    run(pasted, "-c", "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())")
