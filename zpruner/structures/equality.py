"""Whether the smaller model computes what the whole one does where the structures that are cut have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.structures.coupling import Coupling
from zpruner.structures.probe import Probe
from zpruner.structures.slicing import Cuts, cut_tensor, cuts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUNDING = 1e-4
"""Of the largest number: float32 sums in another order."""


def same_when_cut(
    probe: Probe,
    smaller: PreTrainedModel,
    weights: Mapping[str, Tensor],
    couplings: Iterable[Coupling],
    keep: Mapping[str, Tensor],
) -> bool:
    """Return whether the model without structures computes what the model does in which nothing reads them.

    Args:
        probe: of the model.
        smaller: the empty model without them.
        weights: of the probe.
        couplings: whose structures go.
        keep: name -> bool (count,), equal in blocks of one signature.
    """
    couplings = tuple(couplings)
    cuts = cuts_of(couplings, keep)
    last = probe.last()
    silent = dict(weights)
    for coupling in couplings:
        for slices in coupling.reads:
            if silent[slices.tensor] is weights[slices.tensor]:
                silent[slices.tensor] = weights[slices.tensor].clone()
            slices.view(silent[slices.tensor]).index_fill_(slices.axis, slices.places(~keep[coupling.name]), 0.0)
    other = Probe.of(smaller, probe.blocks)
    try:
        found = other.run(cut_weights(weights, cuts), last)
    except (RuntimeError, ValueError, TypeError, IndexError):  # shapes that the model's code does not expect
        return False
    wanted = probe.run(silent, last)
    return _equal(found, wanted)


def same_without(
    probe: Probe, smaller: PreTrainedModel, weights: Mapping[str, Tensor], kept: Tensor, renamed: Mapping[str, str]
) -> bool:
    """Return whether the model without some blocks computes what the model does in which these do nothing.

    Args:
        probe: of the model.
        smaller: the empty model without them.
        weights: of the probe.
        kept: bool (blocks,).
        renamed: parameter that stays -> its name in the smaller model.
    """

    def passed(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return hidden if isinstance(result, Tensor) else (hidden, *result[1:])

    other = Probe.of(smaller, probe.blocks)
    hooks = {f"{probe.blocks}.{index}": passed for index in (~kept).nonzero().flatten().tolist()}
    try:
        found = other.run({new: weights[old] for old, new in renamed.items()}, int(kept.sum()) - 1)
        wanted = probe.run(weights, len(kept) - 1, hooks=hooks)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    return _equal(found, wanted)


def _equal(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max())


def cut_weights(weights: Mapping[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    """Return weights without what is cut."""
    with torch.no_grad():
        return {name: cut_tensor(tensor, cuts[name]) if name in cuts else tensor for name, tensor in weights.items()}
