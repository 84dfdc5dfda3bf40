"""Any model source, made into an ordinary Hugging Face checkpoint folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zpruner.errors import InvalidSettingError, SourceError
from zpruner.runtime.quiet import quiet
from zpruner.runtime.system_errors import system_errors_named
from zpruner.sources._form import Remote
from zpruner.sources._hash import checked_sha256, require_content
from zpruner.sources._hub import HubRef, fetch_hub_model
from zpruner.sources._origin import keep_origin
from zpruner.sources._parse import LocalPath, parse_source

Copy = Callable[[Path, Path, str, bool], None]

DTYPES = ("auto", "bfloat16", "float16", "float32")

FETCH_STEPS = ("download", "load", "write")

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "sentencepiece*", "*.tiktoken")


def fetch_model(
    source: str,
    sha256: str | None,
    destination: Path,
    downloads: Path,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    step: Callable[[], None] = lambda: None,
    copy: Copy | None = None,
) -> None:
    """Obtain a causal language model and write it as a checkpoint folder.

    The folder holds safetensors weights under the family's own names, config.json, generation_config.json where the
    model has one, the tokenizer's files where the source has a tokenizer, and README.md where it says whose model it is
    (a card, or the header of a GGUF file). It gives the logits that transformers
    computes with the source; quantised weights are dequantised, or refused.

    Args:
        source: see `parse_source`; a checkpoint folder (config.json and safetensors) or a .gguf file.
        sha256: of the file, or `folder_sha256` of the folder; None: not checked. Required for pip: sources.
        destination: a folder that does not exist yet.
        downloads: where downloaded files are kept.
        dtype: "bfloat16", "float16", "float32", or "auto" for the checkpoint's own.
        trust_remote_code: whether Python code that comes with the checkpoint may run.
        step: called after each of FETCH_STEPS, for progress.
        copy: writes weights and configuration: given the checkpoint folder or GGUF file, the destination (an empty
            folder), the dtype and `trust_remote_code`. None: `copy_checkpoint`.

    Raises:
        InvalidSettingError: a malformed source, hash or dtype; `destination` exists.
        SourceError: it cannot be obtained or read, or weights are missing from it.
        HashMismatchError: it has another hash.
        ModelStructureError: it is not a decoder-only causal language model.
        DiskFullError: no space left.
    """
    from zpruner.checkpoint.tensors import share_weights
    from zpruner.execution.copy import copy_checkpoint
    from zpruner.model.gguf import parsed_once

    if dtype not in DTYPES:
        raise InvalidSettingError("model.dtype", repr(dtype), f"one of {', '.join(DTYPES)}", "Set it to auto, say.")
    if destination.exists():
        raise InvalidSettingError(
            f"destination {destination}", "a path that exists", "a path to create", "Remove it or choose another."
        )
    place = _checkpoint(_obtain(source, sha256, downloads, trust_remote_code))
    step()
    try:
        with system_errors_named(destination), parsed_once():
            destination.mkdir(parents=True)
            (copy or copy_checkpoint)(place, destination, dtype, trust_remote_code)
            step()
            if place.is_file():
                with quiet():
                    tokenizer = _tokenizer(source, place.parent, place.name, trust_remote_code)
            else:
                tokenizer = load_tokenizer(place, trust_remote_code=trust_remote_code)
            if tokenizer is not None:
                # Otherwise written as HF_HUB_OFFLINE is set in this process, which is no part of the tokenizer.
                tokenizer.init_kwargs["local_files_only"] = False
                with quiet():
                    tokenizer.save_pretrained(destination)
            keep_origin(place, destination)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise
    share_weights(destination)
    step()


def load_tokenizer(checkpoint: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a checkpoint folder, or None where the folder has none.

    Raises:
        SourceError: its files cannot be read.
    """
    if not any(path for pattern in _TOKENIZER_FILES for path in checkpoint.glob(pattern)):
        return None
    with quiet():
        return _tokenizer(str(checkpoint), checkpoint, None, trust_remote_code)


def _obtain(source: str, sha256: str | None, downloads: Path, trust_remote_code: bool) -> Path:
    """Return the path of the checked folder or file."""
    parsed = parse_source(source)
    expected = checked_sha256(source, sha256)
    match parsed:
        case HubRef(file=None):
            return fetch_hub_model(parsed, expected, downloads, trust_remote_code)
        case Remote():
            return parsed.fetch(expected, downloads, "model")
        case LocalPath(path) if path.exists():
            require_content(source, path, expected)
            return path
        case _:
            raise SourceError(
                source,
                "no such file or folder",
                "a checkpoint folder or a .gguf file",
                "Look at the spelling of the path.",
            )


def _checkpoint(path: Path) -> Path:
    """Return `path` when it is a checkpoint folder or a GGUF file, or the only GGUF file in it."""
    if (path.is_file() and path.suffix == ".gguf") or (path / "config.json").is_file():
        return path
    files = list(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) == 1:
        return files[0]
    raise SourceError(
        str(path),
        "no such checkpoint",
        "a .gguf file, or a folder with config.json and safetensors (weights in *.bin or *.pt are never read)",
        "Give such a checkpoint.",
    )


def _tokenizer(source: str, folder: Path, gguf_file: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    from zpruner.model.config import one_sentence

    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    with one_sentence(f"tokenizer of {source}", "a tokenizer that transformers knows"):
        # No local_files_only: it would be written into tokenizer_config.json.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **extra)
