"""Plan: the code and the settings that decide each stage instance, so that DVC runs again what a change reaches.

One file per instance: a digest of every function that it can run (comments and docstrings left out) and its settings.
Every other stage has its own file as a dependency. It is cheap, and runs after any change of code or settings.
"""

from __future__ import annotations

import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from stages._code import Code
from stages._deciding import Instance, deciding, instances, parts, search_instances
from stages._plan import PACKAGES, Planned, Sources, path_of, source_digest, sources_of
from stages._project import Project, Root, main, say
from zpruner.artifacts.files import digest_of
from zpruner.artifacts.work import Work
from zpruner.errors import SourceError
from zpruner.pruning.composition import compose_all
from zpruner.settings.params import Params
from zpruner.settings.reading import read_params_with_advice


def run(
    root: Root = Path(),
    search: Annotated[bool, typer.Option(help="Plan the search, apart from the pipeline.")] = False,
) -> None:
    """Write data/plan, or data/search/plan.

    Args:
        root: the project folder.
        search: plan the stages of the search instead of the pipeline's.
    """
    project = Project.open(root)
    params, advice = read_params_with_advice(root / "params.yaml")
    if advice:
        say(advice)
    compose_all(params)  # an unknown name or hyper-parameter is told before a long run, not after
    labels = ("plan", "search") if search else ("plan",)
    key = {"sources": source_digest(), "settings": params.model_dump(mode="json")}
    with Work(project.work_root, "-".join(labels), digest_of(key)) as work:
        for instance in search_instances() if search else instances(params):
            code = _code(params, instance)
            Planned(code=code, settings=deciding(params, instance)).write(path_of(work.files, instance))
        Sources(digest=source_digest()).write(sources_of(work.files))
        work.publish(project.plan(search))


def _code(params: Params, instance: Instance) -> str:
    """Return the digest of what a stage instance runs: its stage, and the parts of its composition."""
    starts = [(f"stages.{instance[0]}", "run")]
    packages = dict(PACKAGES)
    for part in parts(params, instance):
        kind = type(part)
        starts.append((kind.__module__, kind.__qualname__))
        packages |= _package_of(kind)
    return _parsed(tuple(packages.items())).digest(*starts)


@cache
def _parsed(packages: tuple[tuple[str, Path], ...]) -> Code:
    return Code(dict(packages))


def _package_of(kind: type) -> dict[str, Path]:
    """Return the top-level package or module that another distribution's part comes from, and where it lies."""
    name = kind.__module__.split(".")[0]
    file = getattr(sys.modules[name], "__file__", None) or inspect.getsourcefile(kind)
    if file is None:
        raise SourceError(f"{kind.__module__}.{kind.__qualname__}", "no source file", "Python source", "Install it.")
    path = Path(file)
    return {name: path.parent if path.name == "__init__.py" else path}


if __name__ == "__main__":
    main(run)
