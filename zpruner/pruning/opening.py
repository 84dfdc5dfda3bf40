"""Any model source, as a model in memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpruner.artifacts.files import digest_of
from zpruner.checkpoint import MANIFEST, Checkpoint
from zpruner.execution import copy_checkpoint
from zpruner.model import load_model
from zpruner.model.config import is_packed, packed
from zpruner.runtime.downloads import DOWNLOADS
from zpruner.sources import (
    LocalPath,
    checked_sha256,
    fetch_model,
    file_states,
    load_tokenizer,
    parse_source,
    require_content,
    resolve_source,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class OpenedModel:
    """A model ready for inference.

    Attributes:
        model: itself.
        tokenizer: its, None where there is none.
        folder: the checkpoint that it was loaded from.
        source: what was named; a name on the hub with its commit.
        origin: where that came from, by its manifest; `source` where it has none.
    """

    model: PreTrainedModel
    tokenizer: Any
    folder: Path
    source: str
    origin: str


def open_source(
    source: str,
    dtype: str = "auto",
    device: str = "auto",
    *,
    sha256: str | None = None,
    downloads: Path = DOWNLOADS,
    trust_remote_code: bool = False,
    only_dense: bool = False,
) -> OpenedModel:
    """Load a model from any source.

    A local checkpoint folder is loaded as it is; anything else is first made into one below `downloads`, once. With
    `only_dense` a packed checkpoint is refused.

    Raises:
        SourceError, HashMismatchError, InvalidSettingError, ModelStructureError: as `resolve_source`, `fetch_model` and
            `load_model`.
        ArtifactError: a checkpoint with checksums that are not right.
    """
    resolved = resolve_source(source)
    parsed = parse_source(resolved)
    named = origin = source if isinstance(parsed, LocalPath) else resolved
    if isinstance(parsed, LocalPath) and (parsed.path / "config.json").is_file():
        folder = parsed.path
        require_content(source, folder, checked_sha256(source, sha256))
        if (folder / MANIFEST).is_file():
            checkpoint = Checkpoint(folder)
            checkpoint.verify_all()
            origin = checkpoint.model
    else:
        folder = _fetched(resolved, sha256, dtype, downloads, trust_remote_code)
    if only_dense and is_packed(folder):
        raise packed(folder)
    model = load_model(folder, dtype, device, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return OpenedModel(model, tokenizer, folder, named, origin)


def _fetched(source: str, sha256: str | None, dtype: str, downloads: Path, trust_remote_code: bool) -> Path:
    """Return the folder that a source was made into, by an earlier call or now."""
    parsed = parse_source(source)
    state = file_states(parsed.path) if isinstance(parsed, LocalPath) else []
    folder = downloads / "models" / digest_of([source, sha256, dtype, state])
    if not (folder / "config.json").is_file():
        unfinished = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        fetch_model(
            source, sha256, unfinished, downloads, dtype, trust_remote_code=trust_remote_code, copy=copy_checkpoint
        )
        unfinished.rename(folder)
    return folder
