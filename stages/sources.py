"""Sources: what model and texts come from, where DVC sees it change.

DVC watches files, and a source is a string. So a local source is linked to below data/sources, which DVC follows: size
and time first, the hash where they differ. For anything else a file says what is fetched, with the commit that a name
on the hub stood for when it was first looked up: the same one from then on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from stages._deciding import sources_of
from stages._project import Project, Root, main
from zpruner.artifacts.files import atomic_file
from zpruner.errors import SourceError, UnknownNameError, did_you_mean
from zpruner.runtime.plain_json import read_json
from zpruner.settings.texts import SELF
from zpruner.sources import HubRef, LocalPath, content_sha256, hub_name, parse_source, resolve_source

KINDS = ("model", "calibration", "evaluation", "search")
_NOTE = 10_000
"""More bytes than a note has."""


def run(names: Annotated[list[str], typer.Argument(help=f"Of {', '.join(KINDS)}.")], root: Root = Path()) -> None:
    """Write data/sources/NAME; a folder with a file for each of several sources.

    Args:
        names: what is fetched.
        root: the project folder.
    """
    project = Project.open(root)
    for name in names:
        if name not in KINDS:
            raise UnknownNameError("sources", f"'{name}'", "what is fetched", did_you_mean(name, KINDS))
        place = project.sources(name)
        seen = [(source, _seen(project, name, source)) for source in sources_of(project.params, name)]
        if not (name == "calibration" and project.params.calibration.mixed):
            _show(place, *seen[0], root)
            continue
        _clear(place)
        for index, (source, found) in enumerate(seen):
            _show(place / str(index), source, found, root)


def _seen(project: Project, name: str, source: str) -> Path | str:
    """Return the path of a local source from the project folder; of another what is fetched.

    Raises:
        SourceError: a path at which there is nothing; as `resolve_source`.
    """
    if (path := local_path(project, source)) is None:
        return fetched_source(project, name, source)
    if (project.root / path).exists():
        return path
    raise SourceError(
        f"source of {name}",
        f"no file or folder {project.root / path}",
        "one that is here",
        "Correct params.yaml; `dvc repro --downstream calibrate` continues with what was fetched from it.",
    )


def _show(place: Path, source: str, found: Path | str, root: Path) -> None:
    if isinstance(found, Path):
        _link(place, found, root)
    else:
        _note(place, source, found)


def local_path(project: Project, source: str) -> Path | None:
    """Return the path of a local source from the project folder; None for what comes from elsewhere."""
    if source == SELF:
        return None
    parsed = parse_source(source)
    if not isinstance(parsed, LocalPath):
        return None
    return parsed.path if (project.root / parsed.path).exists() or hub_name(source) is None else None


def fetched_source(project: Project, name: str, source: str) -> str:
    """Return a source as it is fetched: a local path below the project folder, a name on the hub with its commit.

    The commit is the one of data/sources, where it speaks of this source.

    Args:
        project: the project.
        name: what is fetched.
        source: its source, or one of several.

    Raises:
        SourceError: as `resolve_source`.
    """
    if source == SELF:
        return source
    place = project.sources(name)
    for file in sorted(place.iterdir()) if place.is_dir() and not place.is_symlink() else [place]:
        if not file.is_symlink() and file.is_file() and file.stat().st_size < _NOTE:
            try:
                note = read_json(file)
            except ValueError:
                note = None
            if isinstance(note, dict) and note.get("given") == source and _stands_for(source, note.get("source")):
                return str(note["source"])
    return resolve_source(source, "model" if name == "model" else "dataset", project.root)


def _stands_for(source: str, noted: object) -> bool:
    """Return whether a note says what it may of a source: the same, or a commit of the repository that it names."""
    named = hub_name(source)
    return noted == source or (
        named is not None
        and isinstance(noted, str)
        and isinstance(ref := parse_source(noted), HubRef)
        and (ref.repo, ref.is_pinned) == (named[0], True)
    )


def content_of(project: Project, source: str) -> str:
    """Return the hash of a local source, so that a changed one is fetched anew; empty for what comes from elsewhere."""
    path = local_path(project, source)
    if path is None or not (project.root / path).exists():
        return ""
    return content_sha256(project.root / path, project.downloads / "hashes")


def _link(place: Path, path: Path, root: Path) -> None:
    """Link to a local source, given from the project folder: relative where it is, for the project may be moved."""
    _clear(place)
    place.symlink_to(path if path.is_absolute() else os.path.relpath(root.resolve() / path, place.parent.resolve()))


def _note(place: Path, given: str, source: str) -> None:
    if place.is_symlink() or place.is_dir():
        _clear(place)
    with atomic_file(place) as file:
        file.write(f"{json.dumps({'given': given, 'source': source}, indent=1)}\n".encode())


def _clear(place: Path) -> None:
    """Remove a link (never what it points to), or what a copied project has in its place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


if __name__ == "__main__":
    main(run)
