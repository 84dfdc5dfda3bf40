"""Packed checkpoints in transformers' loader, by the hooks that it has for quantised ones; registered on import.

transformers builds the empty model; the linear layers whose weights are packed are replaced by layers that keep them
so; everything else that is packed (experts that are stacked on loading, embeddings) is expanded while it is loaded.
Without `import zpruner` transformers would ignore the format with a warning and load random weights: a packed
checkpoint therefore has no file of the name that it looks for, and a sentence in its place (`layout.UNREGISTERED`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from zpruner.errors import ArtifactError
from zpruner.kernels import Parts
from zpruner.model.stored import DTYPES
from zpruner.packed.layout import FORMAT, METHOD, VERSION, WEIGHTS, PackedTensor, check_version
from zpruner.packed.linear import KernelLinear, PackedLinear, Scratch, restore_dense
from zpruner.packed.reader import PackedFile
from zpruner.packed.stack import stacks_of
from zpruner.runtime import pages

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed checkpoint.

    Args:
        quant_method: `zpruner`.
        format, version: of `zpruner.packed.layout`.
        weights: the file that holds the weights, or names those that do.
    """

    def __init__(
        self,
        quant_method: str = METHOD,
        format: str = FORMAT,  # noqa: A002 - the field's name in config.json
        version: int = VERSION,
        weights: str = WEIGHTS,
    ) -> None:
        self.quant_method: Any = quant_method
        self.format, self.version, self.weights = format, version, weights
        check_version("quantization_config", format, version)


class PackedQuantizer(HfQuantizer):
    """Loads a packed checkpoint."""

    quantization_config: PackedConfig

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise ArtifactError(
                "quantization_config", "a model that is not packed", "a packed checkpoint", "Run `zpruner pack` on it."
            )
        self._files: list[PackedFile] = []
        self._simple: dict[str, str] = {}

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        """Put the name of the weights' file where transformers looks for it: no hook of its own comes in time."""
        config.transformers_weights = self.quantization_config.weights
        return config

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        from zpruner.packed.loading import simple_tensors

        self._files = [PackedFile(Path(file)) for file in kwargs["checkpoint_files"]]
        for file in self._files:
            file.verify()
        self._simple = simple_tensors(model, self._files)
        for file in self._files:
            for name, tensor in file.packed.items():
                if name in self._simple:
                    _replace(model, self._simple[name], tensor, file)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Let what is packed and not replaced be expanded on its way into the model."""
        from zpruner.packed.loading import Expansion

        expansion = Expansion.of(model, self._files, self._simple, weight_conversions)
        return [*([] if expansion is None else [expansion]), *weight_conversions]

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Return the dtype to cast a stored tensor to; those of an expansion are cast after it."""
        from zpruner.packed.loading import Expansion

        if isinstance(converter, Expansion):
            return None
        found: torch.dtype | None = super().get_new_dtype(converter, param, dtype)
        return found

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        from zpruner.packed.saving import save_packed_by

        pages.move((*model.parameters(), *model.buffers()), (file.path for file in self._files))
        scratch = Scratch()
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.matrix  # noqa: B018 - checks what was loaded
                module.scratch = scratch
            elif type(module) is nn.Linear:
                module.__class__ = KernelLinear
        stacks = stacks_of(model)
        for stack in stacks.values():
            stack.requires_grad_(False)
        if stacks and model._can_set_experts_implementation():
            model.set_experts_implementation("eager")  # which takes one expert after the other
        save_packed_by(model, {name: tensor for file in self._files for name, tensor in file.packed.items()})
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """Return the model with ordinary linear layers."""
        restore_dense(model, dtype)
        return model

    def is_serializable(self) -> bool:
        """Return True: see `zpruner.packed.saving`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """False: gradients reach the inputs of packed layers, not their weights."""
        return False


def _replace(model: PreTrainedModel, weight: str, tensor: PackedTensor, file: PackedFile) -> None:
    """Put a packed layer in the place of the linear one that holds `weight`."""
    name = weight.rpartition(".")[0]
    module: Any = model.get_submodule(name)
    kinds = {part: file.kinds[stored] for part, stored in tensor.parts.items()}
    parts = Parts(
        **{part: torch.empty(shape, dtype=DTYPES[kind], device="meta") for part, (kind, shape) in kinds.items()}
    )
    packed = PackedLinear(name, tensor.layout, parts, module.bias)
    model.set_submodule(name, packed.train(module.training))


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(PackedConfig)
    register_quantizer(METHOD)(PackedQuantizer)
