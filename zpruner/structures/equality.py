"""Whether the smaller model computes what the whole one does where the structures that are cut have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.model.empty import EMPTY
from zpruner.patterns import StructureKind
from zpruner.structures.coupling import Coupling, Slices
from zpruner.structures.probe import Probe, is_repeated
from zpruner.structures.slicing import Cuts, cut_tensor, cuts_of, lies_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEW = 4
"""Tokens for which rows of a router are made."""
_FAR = 1e4
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
    last = probe.last()
    cuts = cuts_of(couplings, keep)
    reached = {name: tensor for name, tensor in weights.items() if (probe.block_of(name) or 0) <= last}
    silent = _silent(reached, couplings, keep)
    other = Probe.of(smaller, probe.blocks)
    try:
        left = cut_weights(reached, cuts)
    except RuntimeError:  # a stack of which not every matrix is cut
        return False
    heads = any(coupling.kind is StructureKind.GROUPS for coupling in couplings)
    for attention in dict.fromkeys((probe.model.config._attn_implementation, *(["eager"] if heads else []))):
        with probe.attending(attention), other.attending(attention):
            wanted = probe.run(silent, last)
            try:
                found = other.run(left, last)
            except (RuntimeError, ValueError, TypeError, IndexError):  # shapes that the model's code does not expect
                return False
        if not equal(found, wanted):
            return False
    return True


def _silent(
    weights: Mapping[str, Tensor], couplings: Iterable[Coupling], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights with zeros where structures that go are read; blocks that share a weight share the result."""
    silent = dict(weights)
    made: dict[int, Tensor] = {}
    for coupling in couplings:
        for slices in coupling.reads:
            if slices.tensor in weights:
                whole = weights[slices.tensor]
                if id(whole) not in made:
                    made[id(whole)] = whole[:1].clone().expand(whole.shape) if is_repeated(whole) else whole.clone()
                silent[slices.tensor] = zeroed = made[id(whole)]
                slices.view(zeroed).index_fill_(slices.axis, slices.places(~keep[coupling.name]), 0.0)
    return silent


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

    hooks = {f"{probe.blocks}.{index}": passed for index in (~kept).nonzero().flatten().tolist()}
    try:
        other = Probe.of(smaller, probe.blocks)
        found = other.run({new: weights[old] for old, new in renamed.items()}, int(kept.sum()) - 1)
        wanted = probe.run(weights, len(kept) - 1, hooks=hooks)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        return False
    return equal(found, wanted)


def same_when_avoided(
    probe: Probe,
    smaller: PreTrainedModel,
    weights: Mapping[str, Tensor],
    couplings: Iterable[Coupling],
    keep: Mapping[str, Tensor],
) -> bool:
    """Return whether the model without some experts computes what the model does in which no token is routed to them.

    Routers are given rows that make the logits of these experts very small for all tokens of the probe: these are few,
    so that their inputs are linearly independent.

    Args:
        probe, smaller, weights, keep: see `same_when_cut`.
        couplings: mixtures, in the order of blocks.
    """
    couplings = tuple(couplings)
    last = probe.last()
    avoiding = dict(weights)
    try:
        for coupling in couplings:
            if coupling.block is None or coupling.block > last:  # is not run: one of its signature was
                continue
            inputs: dict[str, Tensor] = {}
            probe.run(avoiding, last, lambda name, _, x, seen=inputs: seen.setdefault(name, x), tokens=_FEW)  # type: ignore[misc]
            gone = (~keep[coupling.name]).nonzero().flatten()
            for slices in coupling.writes:
                tensor = avoiding[slices.tensor]
                if tensor.ndim == 1:
                    avoiding[slices.tensor] = tensor.index_fill(0, gone, -_FAR)
                elif tensor.ndim == 2 and slices.axis == 0 and slices.tensor in inputs:
                    tokens = inputs[slices.tensor].reshape(-1, tensor.shape[1]).float()
                    row = torch.linalg.lstsq(tokens, torch.full((len(tokens), 1), -_FAR)).solution[:, 0]
                    avoiding[slices.tensor] = tensor.index_copy(0, gone, row.expand(len(gone), -1))
        other = Probe.of(smaller, probe.blocks)
        found = other.run(cut_weights(avoiding, cuts_of(couplings, keep)), last, tokens=_FEW)
    except (RuntimeError, ValueError, TypeError, LookupError):  # too few experts for the router
        return False
    return equal(found, probe.run(avoiding, last, tokens=_FEW))


def equal(found: Tensor, wanted: Tensor) -> bool:
    """Return whether two hidden states are the same, but for float32 sums in another order."""
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max())


def cut_weights(weights: Mapping[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    """Return weights without what is cut; blocks that share a weight share the result."""
    made: dict[int, Tensor] = {}
    left = dict(weights)
    with torch.no_grad():
        for name, tensor in weights.items():
            if name in cuts:
                if id(tensor) not in made:
                    made[id(tensor)] = _cut(tensor, cuts[name])
                left[name] = made[id(tensor)]
    return left


def _cut(tensor: Tensor, cuts: Sequence[tuple[Slices, Tensor]]) -> Tensor:
    """Return a weight without what is cut; a stack of one matrix stays one, with the same cut in each."""
    if not is_repeated(tensor):
        return cut_tensor(tensor, cuts)
    shape = cut_tensor(tensor.to(EMPTY), cuts).shape
    inside = [entry for entry in cuts if entry[0].layer is not None or lies_at(entry[0], tensor.ndim)[0] > 0]
    return cut_tensor(tensor[:1], inside).expand(shape)
