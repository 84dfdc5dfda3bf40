"""GGUF files: loaded whole and dequantised, their header parsed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpruner.errors import IncompleteCheckpointError
from zpruner.model.config import check_causal, one_sentence, quiet_transformers
from zpruner.model.empty import MOST, build
from zpruner.model.gguf_header import check_header
from zpruner.model.matching import check_loaded
from zpruner.runtime.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_gguf(file: Path, dtype: str) -> PreTrainedModel:
    """Return the model of a GGUF file, dequantised, on the CPU.

    Args:
        file: a GGUF file that holds the whole model.
        dtype: `bfloat16`, `float16`, `float32`, or `auto` for what transformers takes.

    Raises:
        SourceError: it cannot be read.
        ModelStructureError: not a causal language model, or weights missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    header = check_header(file)
    with one_sentence(file), quiet(), quiet_transformers():
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        check_causal(file, config)
    _check_size(file, config, header.weights)
    with one_sentence(file), quiet(), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            config=config,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    model, loading = loaded
    check_loaded(file, loading["missing_keys"], loading["mismatched_keys"])
    # The weights are dense now; a checkpoint that said otherwise could not be loaded again.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    found: PreTrainedModel = model
    return found


def _check_size(file: Path, config: PretrainedConfig, weights: int) -> None:
    """Refuse a file without most weights of its model: transformers would make them up before it says so."""
    model = build(file, deepcopy(config), None, trust_remote_code=False, limit=MOST)
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > 2 * weights:  # those that are tied may stand there once
        raise IncompleteCheckpointError(
            str(file), f"{weights:,} weights", f"the {needed:,} of the model that its header describes", "Get it again."
        )


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let transformers parse the header of a GGUF file once, and list the names of its tensors once.

    It does the former for the config, the weights and the tokenizer, in pure Python, and the latter for every module
    of the model: most of the time that the default model took.
    """
    try:
        import gguf
    except ImportError:  # which transformers reports
        yield
        return
    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)
