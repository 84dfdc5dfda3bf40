"""What the plan says of one stage instance: a digest of the code that it runs, and the settings that decide it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zpruner
from stages._deciding import Instance, deciding
from zpruner.artifacts.files import checksum, digest_of
from zpruner.artifacts.result_file import Result
from zpruner.errors import ArtifactError
from zpruner.settings.params import Params

PACKAGES = {name: Path(str(file)).parent for name, file in (("zpruner", zpruner.__file__), ("stages", __file__))}
"""The packages whose code is planned with: name -> folder."""
_COMMAND = "dvc repro"


class Planned(Result):
    """One file of the plan."""

    code: str
    settings: dict[str, Any]


class Sources(Result):
    """A checksum of every source file that the plan has looked at."""

    digest: str


def path_of(folder: Path, instance: Instance) -> Path:
    """Return the file of a stage instance in the plan at `folder`."""
    return folder.joinpath(*instance[:-1], f"{instance[-1]}.json")


def sources_of(folder: Path) -> Path:
    """Return the file in the plan at `folder` that says which source files it was made from."""
    return folder / "sources.json"


def source_digest() -> str:
    """Return a digest of all source files, comments included: it is quick, and says when a plan is out of date."""
    files = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]
    return digest_of([checksum(path) for path in files])


def read_planned(folder: Path, params: Params, instance: Instance) -> Planned:
    """Return what the plan at `folder` says of a stage instance.

    Raises:
        ArtifactError: no plan, a damaged one, or one of other settings or other code than today's.
    """
    path = path_of(folder, instance)
    planned = Planned.read(path, _COMMAND)
    if planned.settings != deciding(params, instance):
        raise ArtifactError(
            str(path), "a plan of other settings", "one of today's params.yaml", f"Run `{_COMMAND}`, which plans anew."
        )
    if Sources.read(sources_of(folder), _COMMAND).digest != source_digest():
        raise ArtifactError(str(path), "a plan of other code", "one of today's", f"Run `{_COMMAND}`, which plans anew.")
    return planned
