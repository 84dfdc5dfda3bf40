"""What all settings are: frozen, without unknown keys, the same text where they are equal."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

ALTERNATIVES = ("<one>", "<several>")
"""What pydantic is to call the forms of a key that takes one value or a list: words that no message repeats."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical_json(settings: BaseModel | dict[str, Any]) -> str:
    """Return settings as JSON with sorted keys, defaults left out: equal settings, equal text."""
    data = settings.model_dump(mode="json", exclude_defaults=True) if isinstance(settings, BaseModel) else settings
    return json.dumps(data, sort_keys=True)
