"""`zpruner doctor`."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Annotated

import typer

from zpruner.cli import _options as option
from zpruner.errors import InvalidSettingError, LockedError


def doctor(
    root: Annotated[Path, typer.Argument(help="The project folder.")] = Path(),
    mend: Annotated[bool, typer.Option("--mend", help="Delete what is damaged.")] = False,
    log: option.Log = None,
) -> None:
    """Verify every artifact of a project and every object of its DVC cache; exit with 1 if any is damaged.

    Files of data/ may share their bytes with DVC's cache: damage to one is damage to both, and DVC would bring it back.
    """
    from zpruner.artifacts.layout import Layout
    from zpruner.cli._examined import cache_of, damaged_artifacts, is_whole, object_of, objects
    from zpruner.runtime.progress import progress

    data = Layout(root).data
    if not data.is_dir():
        raise InvalidSettingError(str(root), "no data/ in it", "a project folder", "Name the project's folder.")
    cache = cache_of(root)
    cached = [] if cache is None else objects(cache)
    bad = [one for one in progress(cached, "DVC's cache", len(cached), "object") if not is_whole(one)]
    found = list(damaged_artifacts(data))
    if cache is not None:  # what DVC has taken over after it was damaged
        named = (object_of(cache, damage.file) for damage in found if damage.file is not None)
        bad += [one for one in dict.fromkeys(named) if one.exists() and one not in bad]
    linked = _sharing(data, bad)
    for damage in found:
        typer.echo(f"damaged: {damage.reason}")
    for one in bad:
        beside = f", which {linked[one]} shares" if one in linked else ""
        typer.echo(f"damaged: {one} of DVC's cache{beside}")
    typer.echo(f"{len(found)} damaged artifacts; {len(bad)} of {len(cached)} objects of DVC's cache damaged")
    if not found and not bad:
        return
    if not mend:
        typer.echo("Run `zpruner doctor --mend`: it deletes them, and `dvc repro` makes again what the project needs.")
        raise typer.Exit(1)
    _require_idle(data / ".work")
    for path in [*bad, *(damage.artifact for damage in found), *linked.values()]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    typer.echo("Deleted. Run `dvc repro` (and `dvc repro search/dvc.yaml` if you search) to make them again.")


def _sharing(data: Path, bad: list[Path]) -> dict[Path, Path]:
    """Return bad object -> a file below `data` that has the same bytes on disk, or is a link to it."""
    at = {(found.st_dev, found.st_ino): one for one in bad for found in [one.stat()]}
    files = [path for path in data.rglob("*") if path.is_file() and "/." not in f"/{path.relative_to(data)}"]
    pairs = [(at.get((found.st_dev, found.st_ino)), path) for path in files for found in [path.stat()]]
    return {one: path for one, path in pairs if one is not None}


def _require_idle(work_root: Path) -> None:
    """Raise LockedError while a stage runs."""
    for path in work_root.glob("*/lock"):
        with path.open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(str(path.parent), "a stage at work", "none", "Wait for it, or stop it.") from None
