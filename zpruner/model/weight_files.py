"""Which files of a checkpoint folder transformers reads weights from; what else lies beside them is left alone."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zpruner.errors import SourceError
from zpruner.model.config import one_sentence

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INDEX = "model.safetensors.index.json"
_BYTES = 1 << 26
"""Of an index, at most."""


def weight_files(folder: Path, config: PretrainedConfig) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the files that transformers would read, in its order, and the metadata of their index where there is one.

    They are model.safetensors, else what model.safetensors.index.json names, or what the config names.

    Raises:
        SourceError: no such files, files outside the folder, an adapter, or a distributed checkpoint.
    """
    from transformers.distributed.checkpoint import get_distributed_checkpoint_dir
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    if (folder / "adapter_config.json").is_file():
        raise _no_weights(
            folder,
            "an adapter (adapter_config.json)",
            "Merge it into its model (peft: merge_and_unload).",
        )
    if get_distributed_checkpoint_dir(folder, "", None, None) is not None:
        raise _no_weights(folder, "shards of a distributed training run", "Save the model with save_pretrained.")
    chosen = getattr(config, "transformers_weights", None)
    _check_index(folder, chosen)
    with one_sentence(folder):
        try:
            found, metadata = _get_resolved_checkpoint_files(
                str(folder),
                variant=None,
                gguf_file=None,
                use_safetensors=True,
                user_agent=None,
                is_remote_code=False,
                transformers_explicit_filename=chosen,
                download_kwargs={"local_files_only": True},
            )
        except OSError:
            raise _no_weights(folder, "no model.safetensors", "Give such a checkpoint.") from None
        files = [Path(name) for name in [*(found or ()), *(folder / name for name in type(config).extra_files)]]
    for file in files:
        if not file.is_file() and file.name not in type(config).extra_files:
            raise SourceError(
                str(file), "no file", "every file that the index of the weights names", "Get the checkpoint again."
            )
    return [file for file in files if file.is_file()], metadata


def _check_index(folder: Path, chosen: object) -> None:
    """Raise SourceError for an index that is no index, or that names files outside the folder."""
    path = folder / INDEX
    with one_sentence(path, "the index of a checkpoint, with metadata and weight_map"):
        if chosen is not None:
            if not isinstance(chosen, str):
                raise ValueError("transformers_weights that is no file name")
            path = folder / chosen
        elif (folder / "model.safetensors").is_file():
            return
        if not path.name.endswith(".index.json") or not path.is_file():
            return
        if path.stat().st_size > _BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        index = json.loads(path.read_text(encoding="utf-8"))
        names = set(index["weight_map"].values())
        if not isinstance(index["metadata"], dict):
            raise ValueError("metadata that is no object")
        for name in names:
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts or "\\" in name or "\0" in name:
                raise ValueError(f"a file outside the folder: '{name[:60]}'")
            if inside.suffix != ".safetensors":
                raise ValueError(f"a file that is not safetensors: '{name[:60]}'")


def _no_weights(folder: Path, got: str, action: str) -> SourceError:
    expected = (
        "config.json with model.safetensors, or with the files that model.safetensors.index.json names (weights in "
        "*.bin or *.pt are never read)"
    )
    return SourceError(str(folder), got, expected, action)
