"""What the pages say to type in a project runs, in their order, in a tiny one whose pipeline has run."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import tiny
from doc_pages import ROOT, blocks, commands
from ruamel.yaml import YAML

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("finished_project")]
PAGES = (
    "README.md",
    "docs/start/pipeline.md",
    "docs/guides/which_to_ship.md",
    "docs/guides/publish.md",
    "docs/flows.md",
)
OURS = {"zpruner": {"validate", "advise", "export", "methods", "kernels", "doctor"}, "dvc": {"repro", "metrics", "exp"}}
FLOW = ["python", "-m", "flows.pipeline"]
LABELS = {"best": "wanda"}
"""The labels of the pages -> those of the tiny project."""


def typed(page: str) -> list[list[str]]:
    """The commands of a page that need a project and nothing else; into a new folder each, where they write one."""
    found = []
    for block in blocks(ROOT / page):
        if block.language not in ("bash", "console"):
            continue
        for index, words in enumerate(commands(block)):
            ours = len(words) > 1 and words[1] in OURS.get(words[0], ())
            if ours or (words[:3] == FLOW and "--share" not in words):
                words = [LABELS.get(word, f"{word}{index}" if word == "RELEASE" else word) for word in words]
                found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_in_their_order(page: str, finished_project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(finished_project, tmp_path / "project", symlinks=True)
    # Lines, as in the params.yaml that is shipped: braces need quotes, which DVC's `-S` drops.
    params = tiny.read_params(root)
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    tiny.run(["git", "add", "."], root)
    tiny.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "results"], root)
    found = typed(page)
    assert found
    for words in found:
        # Stages in the warm worker, as under `make repro`: an import of torch for each would be most of the time.
        done = tiny.run(words, root, check=False, PATH=tiny.warm_path(), PREFECT_HOME=str(tmp_path / "prefect"))
        said = f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert "Traceback" not in said
    if any("--temp" in words for words in found):
        assert tiny.run(["git", "status", "--porcelain", "params.yaml"], root).stdout == "", "it left the tree alone"
