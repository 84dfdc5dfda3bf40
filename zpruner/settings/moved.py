"""Keys of params.yaml that have moved: read where they lay, with one sentence that says where they lie now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpruner.errors import InvalidSettingError

_MOVED = {"model": ("machine", ("device", "streaming", "memory"))}
"""section -> the section that its keys have moved to, and those keys."""


def settle(data: Any, where: str) -> tuple[Any, str]:
    """Return parsed YAML with every moved key in its new section, and a sentence for the user; empty: nothing to move.

    Raises:
        InvalidSettingError: a key stands in its old section and the new one is there, too.
    """
    sentences = []
    for old, (new, keys) in _MOVED.items():
        section = data.get(old) if isinstance(data, Mapping) else None
        if not isinstance(section, Mapping) or not (found := [key for key in keys if key in section]):
            continue
        named = ", ".join(f"{old}.{key}" for key in found)
        if new in data:
            raise InvalidSettingError(
                where, f"{named} beside `{new}:`", f"each key once, under `{new}:`", f"Delete {named}."
            )
        data = {
            **data,
            old: {key: value for key, value in section.items() if key not in found},
            new: {key: section[key] for key in found},
        }
        sentences.append(f"{where}: move {named} to a section `{new}:` of {'its' if len(found) == 1 else 'their'} own.")
    return data, " ".join(sentences)
