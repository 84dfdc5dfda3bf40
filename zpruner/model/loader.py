"""Stored tensors put into a model by transformers' own loader: renamed, fused, dequantised and cast as it does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.model.config import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Loader:
    """Puts stored tensors into one model.

    Args:
        model: on the meta device, where nothing has been put in.
        dtype: of its parameters.
        device: where they are put.
        quantizer: transformers', where the checkpoint is quantised.
        uniform: whether what is stored beside quantised weights is cast to `dtype` too. transformers leaves it as it
            is, with which no model runs whose `dtype` is another than the stored one.
    """

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device, quantizer: Any, uniform: bool
    ) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model, self.dtype, self.device, self.quantizer = model, dtype, device, quantizer
        self._uniform = uniform
        self._wide = model._get_dtype_plan(dtype)
        self._transforms: list[Any] = get_model_conversion_mapping(model, None, quantizer)

    def load(self, tensors: Mapping[str, Later], device: torch.device | None = None) -> Any:
        """Put stored tensors into the model; return transformers' account of it (LoadStateDictInfo)."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        plan = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=self._wide,
            device_map={"": device or self.device},
            hf_quantizer=self.quantizer,
            weight_mapping=self._transforms,
        )
        with quiet_transformers():
            account, _ = convert_and_load_state_dict_in_model(self.model, dict(tensors), plan)
        if self._uniform:
            for name in self.model.state_dict().keys() - account.missing_keys:
                self._cast(name)
        return account

    def target(self, source: str, known: Mapping[str, Tensor]) -> str:
        """Return the name of what a stored tensor becomes (part of), among the tensors of the model."""
        return renamed(source, self.model.base_model_prefix, known, *by_kind(self._transforms))[0]

    def _cast(self, name: str) -> None:
        """Cast a tensor of the model to the type that it would have, were the weights not quantised."""
        from transformers.core_model_loading import build_glob_alternation

        wanted, tensor = self.dtype, find(self.model, name)
        if self._wide:
            pattern, plans, _ = build_glob_alternation(list(self._wide))
            if (match := pattern.search(name)) is not None and match.lastgroup is not None:
                wanted = self._wide[plans[match.lastgroup]]
        if tensor.is_floating_point() and tensor.dtype != wanted:
            cast = tensor.detach().to(wanted)
            assign(self.model, name, nn.Parameter(cast) if isinstance(tensor, nn.Parameter) else cast)


def by_kind(transforms: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Return the renamings and the converters among transformers' conversions."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    every = list(transforms)
    renamings = [entry for entry in every if isinstance(entry, WeightRenaming)]
    return renamings, [entry for entry in every if isinstance(entry, WeightConverter)]


def renamed(
    source: str, prefix: str, known: Mapping[str, Tensor], renamings: list[Any], converters: list[Any]
) -> tuple[str, str | None]:
    """Return the first of a model's tensors that a stored one becomes (part of), and the pattern of its converter.

    Args:
        source: name of the stored tensor.
        prefix: of the base model.
        known: the model's tensors, by name.
        renamings, converters: of which those that match are marked as used.
    """
    from transformers.core_model_loading import rename_source_key

    meta: Any = known  # which is read alone
    name, pattern = rename_source_key(source, renamings, converters, prefix, meta)
    if name not in known and source in known:
        name, pattern = rename_source_key(source, [], [], prefix, meta)
    return name, pattern


class Later:
    """A stored tensor that is read when transformers' loader slices it.

    Args:
        kind: safetensors' name of its type.
        read: returns it.

    Attributes:
        wanted: whether it has been read.
    """

    def __init__(self, kind: str, read: Callable[[], Tensor]) -> None:
        self._kind, self._read = kind, read
        self.wanted = False

    def get_dtype(self) -> str:
        """Return the name of its type, as slices of safetensors do."""
        return self._kind

    def __getitem__(self, _: object) -> Tensor:
        self.wanted = True
        return self._read()


def find(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    found = module._parameters.get(leaf, module._buffers.get(leaf))
    assert found is not None
    return found


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = tensor  # type: ignore[assignment]
    else:
        module._buffers[leaf] = tensor
