"""Load any Hugging Face causal language model from a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from zpruner.errors import InvalidSettingError, ModelStructureError, SourceError, did_you_mean
from zpruner.model.bfloat16 import multiplies_bfloat16, widen_products

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
    """Load a checkpoint folder for inference; safetensors only.

    Args:
        folder: a Hugging Face checkpoint.
        dtype: `bfloat16`, `float16`, `float32`, or `auto` for that of the checkpoint.
        device: see `resolve_device`.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        InvalidSettingError: no such dtype; as `resolve_device`.
        SourceError: not a checkpoint folder.
        ModelStructureError: not a causal language model, or weights missing.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in _DTYPES:
        raise InvalidSettingError(
            "dtype", repr(dtype), f"one of {', '.join(_DTYPES)}", did_you_mean(str(dtype).rpartition(".")[2], _DTYPES)
        )
    check_causal(folder)
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    with quiet_transformers():
        try:
            model: PreTrainedModel
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
                **options,
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise SourceError(
                str(folder),
                str(error).splitlines()[0],
                "a causal language model in safetensors",
                "Check the folder.",
            ) from None
    # transformers would go on with random weights
    bad = [f"no tensor '{name}'" for name in sorted(loading["missing_keys"])]
    bad += [f"'{name}' of shape {tuple(got)} for {tuple(want)}" for name, got, want in loading["mismatched_keys"]]
    if bad:
        raise ModelStructureError(
            str(folder),
            bad[0],
            "every weight of the model that config.json describes",
            "Check that the folder is whole.",
        )
    model = model.to(resolve_device(device)).eval()
    if model.dtype == torch.bfloat16 and not multiplies_bfloat16(model.device):
        widen_products(model)
    return model


def check_causal(folder: Path) -> None:
    """Raise SourceError without a config.json, ModelStructureError for an encoder-decoder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise SourceError(
            str(folder), "no readable config.json", "a Hugging Face checkpoint folder", "Check model.source."
        ) from None
    if config.get("is_encoder_decoder"):
        raise ModelStructureError(
            str(folder),
            f"an encoder-decoder ({config.get('model_type')})",
            "a causal (decoder-only) language model",
            "Choose another model: encoder-decoders are not supported.",
        )


class quiet_transformers:  # noqa: N801 - used like a function
    """Context manager: no progress bars and no warnings from transformers (its advice does not apply here)."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        logging.enable_progress_bar()
