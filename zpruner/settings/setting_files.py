"""Hyper-parameters that are kept in files of a project, such as a published formula tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zpruner.errors import InvalidSettingError, did_you_mean, shown

FORMULAS = "formulas"
"""The folder of a project whose files settings may name: a DVC dependency of every method."""

_LONGEST = 1 << 20
"""Bytes of a file: the published formula takes 300."""


def read_files(settings: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Return hyper-parameters with every `{file: NAME}` replaced by the JSON that the file holds.

    Args:
        settings: hyper-parameters of a score.
        folder: that NAME is relative to.
        where: what to call the settings in an error.

    Raises:
        InvalidSettingError: a name outside the folder, no such file, or one that is not JSON.
    """
    return {
        key: _read_json(folder, value["file"], f"{where}.{key}.file")
        if isinstance(value, dict) and value.keys() == {"file"}
        else value
        for key, value in settings.items()
    }


def _read_json(folder: Path, name: object, where: str) -> Any:
    try:
        path = folder / str(name)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidSettingError(where, shown(name), f"a file below {folder}", "Copy it there.")
        if not path.is_file():
            raise FileNotFoundError
        if path.stat().st_size > _LONGEST:
            raise InvalidSettingError(
                where, f"{path.stat().st_size:,} bytes", f"at most {_LONGEST:,}", "Name another file."
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = [str(p.relative_to(folder)) for pattern in ("*.json", "*/*.json") for p in folder.glob(pattern)]
        raise InvalidSettingError(
            where, shown(name), f"a file below {folder}", did_you_mean(str(name), known)
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
        raise InvalidSettingError(
            where, f"{shown(name)}, which is not JSON ({reason})", "JSON", "Look at its brackets, quotes and commas."
        ) from None
