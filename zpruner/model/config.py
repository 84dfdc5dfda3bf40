"""config.json of a checkpoint, as transformers reads it; what it cannot mean is refused in one sentence."""

from __future__ import annotations

import errno
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpruner.errors import ModelStructureError, SourceError, ZprunerError, ZprunerWarning, one_line, shown
from zpruner.runtime.quiet import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PACKED = "zpruner"
"""`quant_method` of packed checkpoints."""
_BYTES = 1 << 24
"""Of a config.json, at most: the largest known have 2 MB, lists of quantised modules."""
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_MEMORY = re.compile(r"out of memory|can.?t allocate memory", re.IGNORECASE)
_ATTENTION = (None, "eager", "sdpa")
"""What torch itself computes. Others need packages, or fetch code from the hub by the name that config.json gives."""
_LIMITS = {
    re.compile("label"): 10**5,
    re.compile("layer|block|expert|head|stage|depth|group|period|interval"): 10**6,
    re.compile("position|context"): 10**8,
}
"""Names of settings -> the largest number; transformers makes lists and tables of that length."""


def is_packed(folder: Path) -> bool:
    """Whether a checkpoint folder is packed (`zpruner.packed`): its zeros are left out.

    Raises:
        SourceError: no config.json, or one that cannot be read.
    """
    stored = _read(folder).get("quantization_config")
    return isinstance(stored, dict) and stored.get("quant_method") == PACKED


def packed(folder: Path) -> SourceError:
    """Return the error about a packed checkpoint where its zeros are needed."""
    return SourceError(
        str(folder),
        "a packed checkpoint",
        "one with its zeros in place",
        "Run `zpruner unpack` on it (`zpruner evaluate` and `zpruner.load` take it as it is).",
    )


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the config of a causal language model, ready to build it: dense, with attention that torch computes.

    Args:
        folder: a Hugging Face checkpoint.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError: no config that transformers can read, or weights that are quantised and cannot be dequantised here.
        ModelStructureError: not a decoder-only causal language model.
    """
    from transformers import AutoConfig

    _read(folder)
    with one_sentence(folder), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        check_causal(folder, config)
        layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 1)
        if isinstance(layers, int) and layers < 1:
            raise _wrong(folder, f"{layers} hidden layers", "one or more")
    with one_sentence(folder):
        _make_dense(folder, config)
        _use_what_is_here(folder, config)
    return config


@contextmanager
def one_sentence(
    where: Path | str,
    expected: str = "a causal language model that transformers knows, whole",
    *,
    opened: bool = False,
) -> Iterator[None]:
    """Turn whatever other libraries raise about a checkpoint into SourceError.

    A checkpoint is foreign data: wrong types, zeros and huge numbers in its config end in any kind of exception, deep
    inside transformers or torch.

    Args:
        where: the checkpoint, or a part of it.
        expected: what would have been right.
        opened: whether the checkpoint is known to be right: then running out of memory is no fault of its, and raised.
    """
    try:
        yield
    except ZprunerError:
        raise
    except ImportError as error:
        raise SourceError(
            str(where),
            f"a missing library ({first_line(error)})",
            "the libraries that read this checkpoint",
            "Install them: pip install 'zpruner[sources]' has what most need.",
        ) from None
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of the place that is written to
        if opened and (isinstance(error, MemoryError) or _MEMORY.search(str(error))):
            raise
        # tokenizers and safetensors are Rust, whose panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code=True" in str(error):
            raise SourceError(
                str(where),
                "a checkpoint that only its own Python code can load",
                "a model that transformers knows",
                "Set model.trust_remote_code to true in params.yaml (--trust-remote-code) if you trust that code.",
            ) from None
        raise SourceError(
            str(where),
            f"a checkpoint that cannot be read ({_said(error)})",
            expected,
            "Get it again, or correct what is wrong in it.",
        ) from None


class quiet_transformers:  # noqa: N801 - used like a function
    """Context manager: no progress bars and no warnings from transformers (its advice does not apply here)."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        verbosity, bars = self._before
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _read(folder: Path) -> dict[str, Any]:
    """Return config.json; refuse one that is no config, or that would take transformers unbounded time or memory."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > _BYTES:
            raise _wrong(folder, f"{path.stat().st_size} bytes", f"at most {_BYTES}")
        raw = json.loads(path.read_text(encoding="utf-8"))
        problem = too_large(raw)
    except OSError as error:
        raise SourceError(
            str(folder),
            f"no readable config.json ({error.strerror})",
            "a Hugging Face checkpoint folder",
            "Check its path.",
        ) from None
    except (ValueError, RecursionError) as error:
        raise SourceError(
            str(folder),
            f"no readable config.json: a checkpoint that cannot be read ({_said(error)})",
            "the JSON of a Hugging Face checkpoint, in UTF-8",
            "Get it again.",
        ) from None
    if not isinstance(raw, dict):
        raise _wrong(folder, f"JSON that is a {type(raw).__name__}", "an object with names and values")
    if problem is not None:
        raise _wrong(folder, *problem)
    for name in ("dtype", "torch_dtype"):
        if raw.get(name) is not None and raw[name] not in _DTYPES:
            raise _wrong(folder, f"{name} {shown(raw[name])}", f"one of {', '.join(_DTYPES)}")
    return raw


def too_large(value: Any, name: str = "") -> tuple[str, str] | None:
    """Return what is wrong and what was expected, where a number below `value` is beyond every model."""
    if isinstance(value, dict):
        return next((found for key in value if (found := too_large(value[key], str(key)))), None)
    if isinstance(value, list):
        return next((found for entry in value if (found := too_large(entry, name))), None)
    if isinstance(value, int):
        for names, most in _LIMITS.items():
            if abs(value) > most and names.search(name):
                return f"{name[:60]} {shown(value)}", f"at most {most:,}"
    return None


def check_causal(where: Path, config: PretrainedConfig) -> None:
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
        str(where),
        f"{got} (model_type {config.model_type})",
        "a decoder-only causal language model",
        "Give another model.",
    )


def _make_dense(folder: Path, config: PretrainedConfig) -> None:
    """Let transformers dequantise quantised weights on loading; refuse those of which it cannot make dense ones."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KINDS

    for part in (config, config.get_text_config(decoder=True)):
        stored = getattr(part, "quantization_config", None)
        if not stored:
            continue
        settings: dict[str, Any] = stored if isinstance(stored, dict) else {}
        method = settings.get("quant_method")
        if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            method = "bitsandbytes"
        kind = KINDS.get(method) if isinstance(method, str) and method != "gguf" else None
        if method == PACKED:
            raise packed(folder)
        if kind is None or "dequantize" not in inspect.signature(kind).parameters:
            raise quantised(folder, shown(method))
        part.quantization_config = {**settings, "dequantize": True}
        return


def quantised(folder: Path, how: str) -> SourceError:
    """Return the error about quantised weights that cannot be made dense."""
    return SourceError(
        str(folder),
        f"quantised weights ({how}), which cannot be dequantised here",
        "weights of 16 bits or more, or quantised ones that transformers dequantises (fp8, mxfp4)",
        "Give the original model, before it was quantised.",
    )


def _use_what_is_here(folder: Path, config: PretrainedConfig) -> None:
    """Replace implementations that config.json asks for and that need more than torch, and say so."""
    parts = [config, *(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)]
    asked = {part._attn_implementation for part in parts if not isinstance(part._attn_implementation, dict)}
    unusual = sorted(str(name) for name in asked if name not in _ATTENTION)
    if unusual:
        config._attn_implementation = None
        tell(f"{folder}: config.json asks for the attention '{one_line(unusual[0])}'; torch's own is used instead.")
    if getattr(config, "fusion_config", None):
        config.fusion_config = None
        tell(f"{folder}: config.json asks for fused modules (fusion_config); the model runs without them.")


def tell(sentence: str) -> None:
    """Tell the user what was decided for them."""
    warnings.warn(sentence, ZprunerWarning, stacklevel=2)


def _wrong(folder: Path, got: str, expected: str) -> SourceError:
    return SourceError(
        str(folder / "config.json"), got, expected, "Get the checkpoint again, or correct its config.json."
    )


def _said(error: BaseException) -> str:
    """Return the class and first line of another library's error."""
    line = first_line(error) if isinstance(error, Exception) else str(error)[:200]
    return line if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {line}"
