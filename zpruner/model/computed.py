"""Weights that a module computes from other parameters each time that it runs: they cannot be overwritten."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.utils import parametrize

from zpruner.errors import ModelStructureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def computed_weights(model: PreTrainedModel, blocks: str, ignore: Iterable[str]) -> dict[str, str]:
    """Return the modules inside the decoder blocks that compute a weight -> the weight's name; all are ignored.

    torch.nn.utils.prune and the older weight_norm leave the computed weight as a plain attribute of the module, beside
    parameters whose names begin with its own; parametrizations say so themselves.

    Raises:
        ModelStructureError: one that no pattern of `ignore` matches.
    """
    patterns = tuple(ignore)
    found = {}
    for name, module in model.get_submodule(blocks).named_modules(prefix=blocks):
        for weight, remove in _computed(module):
            if not any(fnmatchcase(name, pattern) for pattern in patterns):
                raise ModelStructureError(
                    f"layer {name}",
                    f"a `{weight}` that the module computes from other parameters (a mask, a norm)",
                    "its own weight",
                    f"Make it one with {remove}, or list the layer under model.ignore in params.yaml.",
                )
            found[name] = weight
    return found


def _computed(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names of a module's computed weights, and what makes them parameters."""
    if parametrize.is_parametrized(module):
        remove = "torch.nn.utils.parametrize.remove_parametrizations(module, {!r})"
        return [(name, remove.format(name)) for name in dict(module.get_submodule("parametrizations").named_children())]
    own = dict(module.named_parameters(recurse=False))
    remove = "torch.nn.utils.prune.remove(module, {0!r}), or remove_weight_norm(module, {0!r})"
    return [
        (name, remove.format(name))
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and any(parameter.startswith(f"{name}_") for parameter in own)
    ]
