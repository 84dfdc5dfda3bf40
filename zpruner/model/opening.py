"""A checkpoint opened without its weights: the empty model that transformers would load it into, checked against it."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zpruner.errors import ArtifactError, SourceError
from zpruner.model.config import one_sentence, quantised, quiet_transformers, read_config
from zpruner.model.empty import EMPTY, build
from zpruner.model.loader import Loader
from zpruner.model.matching import check_tensors, wide
from zpruner.model.stored import TensorFiles, Tensors
from zpruner.model.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PER_TENSOR, _LEAST = 16, 4000
"""Modules and parameters that a model may have: so many for every stored tensor, and so many at least."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint as transformers reads it, before any weight is read.

    Attributes:
        folder: of the checkpoint.
        config: of the model, as it is read for loading.
        model: on the meta device.
        dtype: that transformers would load it in.
        quantizer: transformers', which dequantises the weights; None where they are not quantised.
        uniform: see `Loader`.
        tensors: what is stored.
        found: names of the model's parameters and buffers that are stored, tied ones under each name that is.
    """

    folder: Path
    config: PretrainedConfig
    model: PreTrainedModel
    dtype: torch.dtype
    quantizer: Any
    uniform: bool
    tensors: Tensors
    found: frozenset[str]

    def loader(self, device: torch.device) -> Loader:
        """Return what puts stored tensors into the model, on a device."""
        return Loader(self.model, self.dtype, device, self.quantizer, self.uniform)


def open_checkpoint(
    folder: Path, dtype: str = "auto", tensors: Tensors | None = None, *, trust_remote_code: bool = False
) -> Opened:
    """Read what a checkpoint folder says of its model, and check that every weight is there, as transformers does.

    Tensors that the model does not use are named in a warning.

    Args:
        folder: config.json, and the weights unless `tensors` has them.
        dtype: `bfloat16`, `float16`, `float32`, or `auto` for that of the checkpoint.
        tensors: the stored tensors; None: those of the files that transformers reads (`weight_files`).
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError: as `read_config` and `weight_files`; files that are not safetensors; quantised weights that cannot
            be dequantised.
        ModelStructureError: not a causal language model.
        IncompleteCheckpointError: a weight that is missing or of another shape.
    """
    from transformers.modeling_utils import _get_dtype
    from transformers.quantizers.auto import get_hf_quantizer

    config = read_config(folder, trust_remote_code=trust_remote_code)
    files, metadata = weight_files(folder, config) if tensors is None else ([], None)
    if tensors is None:
        try:
            tensors = TensorFiles(files)
        except ArtifactError as error:
            raise SourceError(
                str(folder), f"a checkpoint that cannot be read ({error.got})", error.expected, "Get it again."
            ) from None
    built = deepcopy(config)
    with one_sentence(folder), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantizer, built, _ = get_hf_quantizer(built, None, None, True, {})
        except ImportError as error:
            raise quantised(folder, str(error).splitlines()[0].rstrip(".:")[:200]) from None
        names = [str(file) for file in files] or None
        built, chosen = _get_dtype(dtype, names, built, metadata, None, True, quantizer)
    if not (isinstance(chosen, torch.dtype) and wide(chosen)):
        raise SourceError(
            str(folder), f"dtype {chosen}", "floating-point numbers of 16 bits or more", "Choose a dtype."
        )
    model = build(folder, built, chosen, trust_remote_code, _LEAST + _PER_TENSOR * len(tensors.names()))
    with one_sentence(folder), quiet_transformers():
        if quantizer is not None:
            quantizer.preprocess_model(model=model, dtype=chosen, device_map=None, checkpoint_files=names)
    uniform = quantizer is not None and dtype != "auto"
    found = check_tensors(folder, Loader(model, chosen, EMPTY, quantizer, uniform), tensors)
    return Opened(folder, config, model, chosen, quantizer, uniform, tensors, found)
