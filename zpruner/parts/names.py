"""Which parts of compositions there are, without importing any (nor torch)."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import iter_modules


def own_names(room: str) -> set[str]:
    """Return the names of a room's parts: its files, but for those whose name starts with _."""
    spec = find_spec(room)
    assert spec is not None, room
    return {module.name for module in iter_modules(spec.submodule_search_locations) if module.name[0] != "_"}


def part_names(room: str) -> list[str]:
    """Return the names of a room's parts and of those that other packages add, sorted."""
    return sorted(own_names(room) | {point.name for point in entry_points(group=room)})
