"""Load any Hugging Face causal language model from a local folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zpruner.errors import InvalidSettingError, did_you_mean
from zpruner.model.bfloat16 import multiplies_bfloat16, widen_products
from zpruner.model.config import is_packed, one_sentence, quiet_transformers
from zpruner.model.loader import find
from zpruner.model.matching import check_loaded
from zpruner.model.opening import open_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = ("auto", "bfloat16", "float16", "float32")


def resolve_device(device: str) -> torch.device:
    """Return the device that a setting names; `auto` is the accelerator where there is one, else the CPU.

    Raises:
        InvalidSettingError: not a device of this machine.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise InvalidSettingError(
            "machine.device", f"'{device}'", "a device of this machine", "Use 'auto', or a name that torch knows."
        ) from None
    return found


def resolve_devices(device: str) -> list[str]:
    """Return the names of all devices that a setting stands for: with `auto`, every accelerator there is.

    Raises:
        InvalidSettingError: as `resolve_device`.
    """
    found = resolve_device(device)
    if device != "auto" or found.type == "cpu":
        return [str(found)]
    return [f"{found.type}:{index}" for index in range(torch.accelerator.device_count())]


def load_model(
    folder: Path, dtype: str = "auto", device: str = "auto", *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint folder for inference; safetensors only. Quantised weights are dequantised, or refused.

    Args:
        folder: a Hugging Face checkpoint.
        dtype: `bfloat16`, `float16`, `float32`, or `auto` for that of the checkpoint.
        device: see `resolve_device`.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        InvalidSettingError: no such dtype; as `resolve_device`.
        SourceError, ModelStructureError: as `open_checkpoint`.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in _DTYPES:
        raise InvalidSettingError(
            "dtype", repr(dtype), f"one of {', '.join(_DTYPES)}", did_you_mean(str(dtype).rpartition(".")[2], _DTYPES)
        )
    place = resolve_device(device)
    # A packed checkpoint is checked while transformers loads it, by what it registered (`zpruner.packed.hook`).
    opened = None if is_packed(folder) else open_checkpoint(folder, dtype, trust_remote_code=trust_remote_code)
    with one_sentence(folder, opened=True), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=None if opened is None else opened.config,
            dtype=_torch_dtype(dtype) if opened is None else opened.dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            # A quantiser would choose the device for its kernels.
            device_map=None if opened is None or opened.quantizer is None else {"": "cpu"},
            ignore_mismatched_sizes=True,  # reported below
        )
    model, loading = loaded
    check_loaded(folder, loading["missing_keys"], loading["mismatched_keys"])
    if opened is not None and opened.quantizer is not None:
        model._weight_conversions = None  # saved as the dense model that it is now
        for name, empty in opened.model.state_dict(keep_vars=True).items():
            tensor = find(model, name)
            tensor.data = tensor.data.to(empty.dtype)
    record_untied(model)
    model = model.to(place).eval()
    if model.dtype == torch.bfloat16 and not multiplies_bfloat16(model.device):
        widen_products(model)
    found: PreTrainedModel = model
    return found


def _torch_dtype(name: str) -> torch.dtype | str:
    return name if name == "auto" else getattr(torch, name)


def record_untied(model: PreTrainedModel) -> None:
    """Say in the config that the head is no longer the embedding, where a checkpoint has one of its own."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    # Where other tensors are tied, the setting stays: of each pair transformers compares the values.
    if head is None or embedding is None or head.weight is embedding.weight or model.all_tied_weights_keys:
        return
    for config in (model.config, model.config.get_text_config(decoder=True)):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
