"""What the pages say to type in a project runs, in their order, on a tiny model in place of the default's."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import tiny
import yaml_params
from doc_pages import ROOT, blocks, commands
from ruamel.yaml import YAML

PAGES = (
    "README.md",
    "docs/start/install.md",
    "docs/start/pipeline.md",
    "docs/evaluation.md",
    "docs/guides/which_to_ship.md",
    "docs/guides/publish.md",
    "docs/zero_shot.md",
    "docs/flows.md",
)
PROGRAMS = ("zpruner", "dvc", "python -m flows.pipeline")
ONE_MODEL = ("zpruner prune", "zpruner evaluate", "zpruner pack")
"""What test_doc_runs.py runs."""
ELSEWHERE = ("--share",)  # tests/flows/test_share.py


def typed(page: str) -> list[str]:
    """The commands of a page that need a project and nothing else; of a changed params.yaml those before the change."""
    found = []
    for block in blocks(ROOT / page):
        for words in commands(block) if block.language in ("bash", "console", "sh") else ():
            line = shlex.join(words)
            if line.startswith("cp docs/profiles"):
                return found
            if line.startswith(PROGRAMS) and not line.startswith(ONE_MODEL) and not {*words} & {*ELSEWHERE}:
                found.append(line)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with those labels of the default job that pages name, run and committed."""
    root = tiny.make_project(tmp_path_factory.mktemp("pages") / "project")
    shipped = yaml_params.shipped()
    params = tiny.PARAMS | {"packed": shipped["packed"]}
    params["methods"] = {label: shipped["methods"][label] for label in ("wanda", "zpruner", "best")}
    params["sparsities"] = {label: shipped["sparsities"][label] for label in ("s50", "s24")}
    yaml = YAML()
    yaml.default_flow_style = False  # as it is shipped: `dvc exp run -S` writes it anew in its own style
    yaml.dump(params, root / "params.yaml")
    assert tiny.repro(root)[-1] == "report"
    tiny.run(["git", "add", "."], root)
    tiny.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "results"], root)
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_project_run(page: str, project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(project, tmp_path / "project", symlinks=True)
    found = typed(page)
    assert found
    for line in found:
        done = tiny.run(["bash", "-c", line], root, check=False, PATH=tiny.warm_path())
        assert not done.returncode, f"{line}\n{done.stdout}\n{done.stderr}"
