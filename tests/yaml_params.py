"""The params.yaml that is shipped."""

from __future__ import annotations

from typing import Any

import tiny
from ruamel.yaml import YAML


def shipped() -> dict[str, Any]:
    """Return the repository's params.yaml as plain values."""
    return YAML(typ="safe", pure=True).load(tiny.REPOSITORY / "params.yaml")
