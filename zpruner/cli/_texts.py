"""Calibration texts on the command line: SOURCE,KEY=VALUE,... with the keys of params.yaml; one, or several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from zpruner.cli._composition import named
from zpruner.cli._early import local_path
from zpruner.errors import InvalidSettingError, did_you_mean

OPTION = "--calibration"
_NUMBERS = ("share", "part", "temperature", "top_p", "drop")
"""Keys whose values are no words."""


def sources_of(texts: list[str], sha256: str | None) -> list[dict[str, Any]]:
    """Return the sources that the option names, as entries of `calibration.source` in params.yaml.

    Args:
        texts: the option's values.
        sha256: of the only text, which a key may give as well.

    Raises:
        InvalidSettingError: an unknown key; a hash beside several texts.
    """
    from zpruner.settings.texts import MixedSettings

    keys = tuple(name for name in MixedSettings.model_fields if name != "source")
    found = [_source(text, keys) for text in texts]
    if sha256 is None:
        return found
    if len(found) > 1:
        raise InvalidSettingError(
            "--calibration-sha256", "it beside several texts", "one text", f"Write {OPTION} SOURCE,sha256=HASH."
        )
    return [{**found[0], "sha256": sha256}]


def is_plain(sources: list[dict[str, Any]]) -> bool:
    """Return whether one text is to be read as it is."""
    from zpruner.settings.texts import SELF

    return len(sources) == 1 and sources[0].keys() <= {"source", "sha256"} and sources[0]["source"] != SELF


def local_paths(sources: list[dict[str, Any]]) -> dict[str, Path | None]:
    """Return the files that sources name, under what an error calls them; None for what is to be fetched.

    Raises:
        InvalidSettingError, SourceError: as `local_path`.
    """
    from zpruner.settings.texts import SELF

    found: dict[str, Path | None] = {}
    for number, one in enumerate(sources, start=1):
        if one["source"] != SELF:
            name = "the calibration text" if len(sources) == 1 else f"calibration text {number}"
            found[name] = local_path(OPTION, one["source"], one.get("sha256"))
    return found


def _source(text: str, keys: tuple[str, ...]) -> dict[str, Any]:
    source, *given = re.split(rf",(?=(?:{'|'.join(keys)})=)", text)
    if (unknown := re.search(r",([a-z_0-9]+)=", source)) and not Path(source).exists():
        raise InvalidSettingError(
            OPTION, f"unknown key '{unknown[1]}'", f"one of {', '.join(keys)}", did_you_mean(unknown[1], keys)
        )
    found = named(OPTION, given, f"{OPTION} self,share=0.5")
    words = dict(one.split("=", 1) for one in given)  # a hash may pass for a number
    return {"source": source, **{key: value if key in _NUMBERS else words[key] for key, value in found.items()}}
