"""Plan: the code and the settings that decide each stage instance, so that DVC runs again what a change reaches.

One file per instance: a digest of every function that it can run (comments and docstrings left out) and its settings.
Every other stage has its own file as a dependency. It is cheap, and runs after any change of code or settings.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Mapping
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
from zpruner.pruning.compose import compose_all
from zpruner.settings.params import Params
from zpruner.settings.reading import read_params_with_advice


def run(
    root: Root = Path(),
    search: Annotated[bool, typer.Option(help="Plan the search, apart from the pipeline.")] = False,
) -> None:
    """Write data/plan and data/packages, or data/search/plan.

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
    if not search:
        _link(project.packages, _packages(params))


def _code(params: Params, instance: Instance) -> str:
    """Return the digest of what a stage instance runs: its stage, and the parts of its composition."""
    kinds = [type(part) for part in parts(params, instance)]
    starts = [(f"stages.{instance[0]}", "run"), *((kind.__module__, kind.__qualname__) for kind in kinds)]
    packages = dict(PACKAGES)
    for kind in kinds:
        packages |= _package_of(kind)
    return _parsed(tuple(packages.items())).digest(*starts)


def _packages(params: Params) -> dict[str, Path]:
    """Return the packages of other distributions that parts come from: name -> folder, or file of a module."""
    kinds = {type(part) for instance in instances(params) for part in parts(params, instance)}
    found = {name: path for kind in kinds for name, path in _package_of(kind).items()}
    return {name: found[name] for name in sorted(found) if name not in PACKAGES}


def _link(place: Path, packages: Mapping[str, Path]) -> None:
    """Make `place` a folder of links to the packages' source files, where DVC sees them change.

    File by file, since DVC follows no link to a folder within one.
    """
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, path in packages.items():
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            link = place / name / (file.relative_to(path) if path.is_dir() else file.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


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
