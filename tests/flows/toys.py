"""Small DVC projects whose stages do what params.yaml says, without models."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tiny
from ruamel.yaml import YAML

GRAPH = """
stages:
  base:
    cmd: python -m stages.work base
    deps: [stages/work.py]
    params: [base]
    outs: [out/base.txt]
  part:
    foreach: ${parts}
    do:
      cmd: python -m stages.work part --method ${item}
      deps: [stages/work.py, out/base.txt]
      params: ["part.${item}"]
      outs: ["out/part/${item}.txt"]
  last:
    cmd: python -m stages.work last
    deps: [stages/work.py, out/part]
    params: [last]
    outs: [out/page]
    metrics: [out/last.json]
plots:
  - Lengths:
      template: linear
      x: {out/page/points.json: part}
      y: {out/page/points.json: length}
"""
WORK = '''
"""A stage that does what params.yaml says and keeps a journal of its runs."""
import json, os, pathlib, sys, time

stage, label = sys.argv[1], (sys.argv[3] if len(sys.argv) > 3 else None)
params = json.loads(pathlib.Path("params.yaml").read_text())
todo = params[stage] if label is None else params[stage][label]
name = stage if label is None else f"{stage}@{label}"

def note(what):
    with open("journal.jsonl", "a") as file:
        facts = {"name": name, "what": what, "time": time.time()}
        facts |= {"divisor": os.environ.get("ZPRUNER_BATCH_DIVISOR")}
        file.write(json.dumps(facts) + "\\n")

def begun():
    entries = [json.loads(line) for line in open("journal.jsonl")]
    return sum(entry["what"] == "start" and entry["name"].startswith("part@") for entry in entries)

note("start")
deadline = time.monotonic() + 60
while begun() < todo.get("meet", 0):  # together with others, or not at all
    if time.monotonic() > deadline:
        sys.exit("alone")
    time.sleep(0.01)
earlier = sum(json.loads(line)["name"] == name for line in open("journal.jsonl")) - 1
if "fail" in todo and earlier < todo.get("times", 99):
    sys.exit(todo["fail"])
time.sleep(todo.get("sleep", 0))
text = f"{name} {todo['value']}\\n"
if stage == "base":
    pathlib.Path("out").mkdir(exist_ok=True)
    pathlib.Path("out/base.txt").write_text(text)
elif stage == "part":
    pathlib.Path("out/part").mkdir(exist_ok=True)
    pathlib.Path(f"out/part/{label}.txt").write_text(text + pathlib.Path("out/base.txt").read_text())
else:
    pathlib.Path("out/page").mkdir(parents=True, exist_ok=True)
    whole = "".join(path.read_text() for path in sorted(pathlib.Path("out/part").glob("*.txt")))
    pathlib.Path("out/page/report.md").write_text("# " + whole + "\\n## More\\n")
    points = [{"series": "all", "part": i, "length": len(text)} for i, text in enumerate(whole.split())]
    pathlib.Path("out/page/points.json").write_text(json.dumps(points))
    pathlib.Path("out/last.json").write_text(json.dumps({"perplexity": float(len(whole)), "text": "x"}))
print("a line of", name, flush=True)
note("end")
'''


@dataclass(frozen=True)
class Toy:
    """A DVC project whose stages do what params.yaml says."""

    root: Path

    @property
    def params(self) -> dict[str, Any]:
        """The settings."""
        return json.loads((self.root / "params.yaml").read_text(encoding="utf-8"))

    def change(self, *path: str, **values: object) -> None:
        """Change the settings of a stage or instance."""
        params = self.params
        node = params
        for key in path:
            node = node[key]
        node |= values
        (self.root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")

    def journal(self) -> list[dict[str, Any]]:
        """What the stages noted."""
        path = self.root / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def runs(self) -> list[str]:
        """The instances that were started, in order."""
        return [entry["name"] for entry in self.journal() if entry["what"] == "start"]


def make_toy(root: Path, parts: int = 3) -> Toy:
    """Make a git and DVC project."""
    labels = [f"p{i}" for i in range(parts)]
    params = {
        "model": {"source": "hf:someone/toy-1b@main"},
        "parts": labels,
        "base": {"value": 1},
        "part": {label: {"value": 1} for label in labels},
        "last": {"value": 1},
    }
    (root / "stages").mkdir(parents=True)
    (root / "stages" / "__init__.py").write_text("")
    (root / "stages" / "work.py").write_text(WORK)
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text(json.dumps(params))
    (root / ".dvcignore").write_text(".gitignore\n__pycache__\n")
    (root / ".gitignore").write_text("__pycache__\n/journal.jsonl\n/.zpruner/\n")
    for name in (".git", ".dvc"):
        shutil.copytree(_empty() / name, root / name)
    return Toy(root)


@cache
def _empty() -> Path:
    """Return a git and DVC project with nothing in it, made once."""
    folder = Path(tempfile.mkdtemp(prefix="zpruner-test-toy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny.run(["git", "init", "-q"], folder)
    tiny.run(["dvc", "init", "-q"], folder)
    shutil.copy(tiny.REPOSITORY / ".dvc" / "config", folder / ".dvc" / "config")
    return folder


def commit(root: Path) -> None:
    """Commit everything that git does not ignore."""
    tiny.run(["git", "add", "."], root)
    tiny.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "state"], root)


def lock(root: Path) -> dict[str, Any]:
    """Return dvc.lock as data."""
    stages: dict[str, Any] = YAML(typ="safe").load(root / "dvc.lock")["stages"]
    return {name: stages[name] for name in sorted(stages)}
