"""What pydantic refuses, in one sentence."""

from __future__ import annotations

from typing import get_origin

from pydantic import BaseModel, ValidationError

from zpruner.errors import InvalidSettingError, did_you_mean, shown
from zpruner.settings.base import ALTERNATIVES


def explain(error: ValidationError, where: str, root: type[BaseModel]) -> InvalidSettingError:
    """Turn a complaint of pydantic about settings of class `root` into one sentence."""
    # An unknown key comes before a missing one: it is often the same key, misspelt.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"] if part not in ALTERNATIVES and not _is_alternative(part)]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return InvalidSettingError(
            where, f"unknown key '{key}'", "a known key", did_you_mean(path[-1], _known(root, path[:-1]))
        )
    if first["type"] == "missing":
        return InvalidSettingError(where, f"no '{key}'", "a value", f"Add {key}.")
    alike = [found for found in error.errors() if found["loc"][:-1] == first["loc"][:-1]]
    either = alike if _is_alternative(first["loc"][-1]) else [first]
    said = [found["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for found in either]
    return InvalidSettingError(f"{where}: {key}", shown(first["input"]), " or ".join(said), "Correct the value.")


def _is_alternative(part: int | str) -> bool:
    """Return whether a part of pydantic's path names no key, but one of the forms that a value may have."""
    return isinstance(part, str) and part.startswith(("constrained-", "literal["))


def _known(model: type[BaseModel], path: list[str]) -> list[str]:
    """Return the keys that settings of class `model` know at `path`."""
    parts = iter(path)
    for part in parts:
        if part.isdecimal():  # an entry of a list
            continue
        field = model.model_fields.get(part)
        candidates = [] if field is None else _models_in(field.annotation)
        if field is None or not candidates:
            return []
        if get_origin(field.annotation) is dict:
            next(parts, None)  # a label
        model = candidates[0]
    return list(model.model_fields)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    args = getattr(annotation, "__args__", ())
    return [model for arg in args for model in _models_in(arg)]
