"""Where artifacts lie is said once in code, once in the graph, and in data/README.md for people."""

import ast
import re
from pathlib import Path

import tiny
from ruamel.yaml import YAML

from zpruner.artifacts.layout import COSTS, EVALUATION, Layout

FOLDERS = {"models", "activations", "scores", "masks", "solved", "pruned", "packed", EVALUATION, COSTS, "tokens.arrow"}


def paths_spelt(file: Path) -> set[str]:
    """Return names of artifact folders that a file joins to a path, by `/` or `joinpath`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = [node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "joinpath":
            parts = node.args
        else:
            continue
        found |= {part.value for part in parts if isinstance(part, ast.Constant) and part.value in {*FOLDERS, "data"}}
    return found


def test_no_path_of_an_artifact_is_spelt_twice():
    rooms = ("zpruner", "stages", "flows", "warm")
    files = [file for room in rooms for file in sorted((tiny.REPOSITORY / room).rglob("*.py"))]
    spelling = {file.relative_to(tiny.REPOSITORY).as_posix(): paths_spelt(file) for file in files}
    # Downloads of `zpruner prune` have a folder of models, too: it is no artifact of the pipeline.
    allowed = {"zpruner/artifacts/layout.py", "zpruner/pruning/opening.py"}
    assert not {name: found for name, found in spelling.items() if found and name not in allowed}
    assert spelling["zpruner/artifacts/layout.py"] >= {"data", "models", "masks"}


def outputs():
    for name in ("dvc.yaml", "search/dvc.yaml"):
        graph = YAML(typ="safe", pure=True).load((tiny.REPOSITORY / name).read_text(encoding="utf-8"))["stages"]
        for stage in graph.values():
            entry = stage.get("do", stage)
            for out in [*entry.get("outs", ()), *entry.get("metrics", ())]:
                yield next(iter(out)) if isinstance(out, dict) else out


def test_the_page_in_data_names_every_artifact():
    page = (tiny.REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
    named = {name.strip("/").split("/")[0] for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)}
    written = {out.removeprefix("data/").split("/")[0] for out in outputs() if not out.startswith("${")}
    assert written <= named
    assert {"models", "calibration"} <= named


def test_a_layout_is_below_its_root(tmp_path):
    layout = Layout(tmp_path)
    assert layout.evaluation("wanda", "s50") == tmp_path / "data" / "evaluation" / "wanda" / "s50.json"
    assert layout.evaluation("dense") == tmp_path / "data" / "evaluation" / "dense.json"
    assert layout.plan(search=True) == layout.search / "plan"
    assert layout.costs(search=True) == layout.search / "costs"
