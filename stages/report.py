"""Report: table, Markdown, HTML and plot data, from the files that the other stages wrote."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import typer

from stages._deciding import instances
from stages._project import Project, Root, main
from stages._ran import computed
from zpruner.artifacts.costs import Cost
from zpruner.artifacts.work import sweep
from zpruner.report import ending, load_project, write
from zpruner.report.data import ReportData
from zpruner.settings.params import Params

ENDS_LATER = "ZPRUNER_ENDS_LATER"
"""The environment variable by which a caller of DVC says that it prints the end of the run by itself."""


def run(table: bool = False, root: Root = Path()) -> None:
    """Write data/report, and print what the run ends with.

    Args:
        table: only print it.
        root: the project folder.
    """
    project = Project.open(root)
    ran = None if table else computed(project.work_root, project.costs())
    data = read(project, ran)
    if not table:
        write(data, project.report)
        sweep(project.work_root)  # every artifact that the report rests on is stored by now
    if table or ENDS_LATER not in os.environ:
        typer.echo(ending(data, project), nl=False)


def read(project: Project, ran: frozenset[str] | None = None) -> ReportData:
    """Return what the report shows of a project: the variants listed in params.yaml and nothing else.

    Args:
        project: the project.
        ran: the cost files written since the last report; None where that does not matter.
    """
    params = project.params
    for instance in instances(params):  # a cost file that is gone would be left out in silence
        used = instance[0] != "pack" or params.packs(*instance[1:]) or params.times(*instance[1:])
        if instance[0] != "report" and used:
            Cost.read(project.cost_file(*instance), "dvc repro")
    provenance = {**_commit(project.root), "python": platform.python_version(), **_versions(params)}
    return load_project(project, params, provenance=provenance, computed=ran)


def _versions(params: Params) -> dict[str, str]:
    names = ["zpruner", "torch", "transformers"] + (["lm_eval"] if params.evaluation.zero_shot else [])
    return {name: version(name) for name in names}


def _commit(root: Path) -> dict[str, str]:
    """Return the git commit that the report was made at, and whether code or settings differ from it."""
    tracked = ("params.yaml", "dvc.yaml", "zpruner", "stages", "tasks")
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *tracked)
    except (OSError, subprocess.CalledProcessError):
        return {}  # no git, or not a repository: nothing to say
    return {"git commit": head + (", with uncommitted changes of code or settings" if changed else "")}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(run)
