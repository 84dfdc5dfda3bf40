"""What can be refused at once: before torch is imported (seconds), a model loaded (minutes), or a text fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from zpruner.errors import InvalidSettingError, SourceError, UnknownNameError, did_you_mean
from zpruner.parts.names import part_names

_ROOMS = {"score": "zpruner.methods", "refine": "zpruner.masks", "update": "zpruner.updates"}
"""A key of a composition -> where its names are found."""


def check_names(given: Mapping[str, str | None], where: str = "", also: Collection[str] = ()) -> None:
    """Raise UnknownNameError for the first part of a composition whose name is not known.

    Args:
        given: `score`, `refine`, `update` -> a name, or None.
        where: what stands before the key in a message.
        also: names that `score` may have, too.
    """
    for key, name in given.items():
        known = [*part_names(_ROOMS[key]), *(also if key == "score" else ())]
        if name is not None and name not in known:
            listed = "a name that `zpruner methods` lists"
            raise UnknownNameError(f"{where}{key}", f"'{name}'", listed, did_you_mean(name, known))


def local_path(option: str, source: str | None, sha256: str | None = None) -> Path | None:
    """Return the file or folder that a source names; None where it is to be fetched.

    Raises:
        InvalidSettingError: neither a path nor the name of something to fetch, or no SHA-256.
        SourceError: a path at which there is nothing.
    """
    from zpruner.sources import LocalPath, checked_sha256, hub_name, parse_source

    if source is None:
        return None
    try:
        parsed = parse_source(source)
    except InvalidSettingError as error:
        raise InvalidSettingError(option, error.got, error.expected, error.action) from None
    checked_sha256(option, sha256)
    if not isinstance(parsed, LocalPath):
        return None
    if parsed.path.exists():
        return parsed.path
    here = parsed.path.parent
    if hub_name(source) is not None and not here.exists():  # the name of a repository
        return None
    names = [path.name for path in here.iterdir()] if here.is_dir() else []
    near = get_close_matches(parsed.path.name, names, n=1)
    action = f"Did you mean '{near[0]}'?" if near else "Check its path."
    raise SourceError(source, "no such file or folder", "one that is there", action)
