"""The keys of params.yaml that dvc.yaml watches: DVC knows no defaults, so that each must be written out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zpruner.errors import InvalidSettingError
from zpruner.settings.plain_yaml import read_yaml


def check_watched(root: Path) -> None:
    """Check that params.yaml has every key that dvc.yaml watches, where `root` has a dvc.yaml.

    Raises:
        InvalidSettingError: names the first key that is missing.
    """
    graph, params = (root / name for name in ("dvc.yaml", "params.yaml"))
    if not graph.is_file():
        return
    settings = read_yaml(params)
    for key in dict.fromkeys(_watched(read_yaml(graph))):
        value, path = settings, key.split(".")
        for depth, part in enumerate(path):
            if not isinstance(value, dict) or part not in value:
                raise InvalidSettingError(
                    str(params),
                    f"no key {'.'.join(path[: depth + 1])}",
                    "every key that dvc.yaml watches, those with defaults too",
                    "Copy its line from the params.yaml of the repository.",
                )
            value = value[part]


def _watched(graph: Any) -> Iterator[str]:
    """Yield the keys under `params` of every stage, those that a table of `foreach` names included."""
    for stage in graph["stages"].values():
        table = stage.get("foreach")
        items = [item for item in table.values() if isinstance(item, dict)] if isinstance(table, dict) else []
        for key in stage.get("do", stage).get("params", ()):
            if "${" not in key:
                yield key
            elif name := re.fullmatch(r"\$\{item\.(\w+)\}", key):
                yield from (item[name[1]] for item in items)
