"""Whose model a checkpoint was made from, kept beside it as the card of the unpruned model."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from zpruner.artifacts.files import atomic_file

_CARD = "README.md"
_MOST = 1 << 20
"""Bytes of a card that are copied."""
_REPOSITORY = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_HEADER = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
    "model_name": "general.name",
    "model_creator": "general.organization",
}
"""What a card says -> what a GGUF header calls it."""
_REPOSITORIES = ("general.base_model.0.repo_url", "general.source.repo_url", "general.repo_url")


def keep_origin(place: Path, destination: Path) -> None:
    """Write README.md beside a checkpoint: the source's own card, or what the header of a GGUF file says of its origin.

    Nothing is written where neither says anything.

    Args:
        place: the source, a checkpoint folder or a GGUF file.
        destination: the checkpoint's folder.
    """
    if place.is_dir():
        card = place / _CARD
        if card.is_file() and card.stat().st_size <= _MOST:
            _write(destination, card.read_bytes())
        return
    from zpruner.model.gguf_header import check_header  # torch comes with it

    said = check_header(place).origin
    metadata: dict[str, Any] = {key: said[name] for key, name in _HEADER.items() if said.get(name)}
    addresses = (_REPOSITORY.fullmatch(str(said.get(name))) for name in _REPOSITORIES)
    if (base := next((found[1] for found in addresses if found), None)) is not None:
        metadata["base_model"] = base
    if metadata:
        out = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.dump(metadata, out)
        _write(destination, f"---\n{out.getvalue()}---\n".encode())


def _write(destination: Path, text: bytes) -> None:
    with atomic_file(destination / _CARD) as file:
        file.write(text)
