"""What the tests of structures share: random choices, and the model in which what is cut has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zpruner.patterns import StructureKind
from zpruner.structures import Coupling, Couplings

TOKENS = torch.randint(3, 160, (2, 24), generator=torch.Generator().manual_seed(0))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def some(couplings: tuple[Coupling, ...], seed: int = 5) -> dict[str, Tensor]:
    """Keep random structures: about half, as many as the step allows; of blocks and experts all but one."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for coupling in couplings:
        units = coupling.count // coupling.step
        number = (units + 1) // 2 * coupling.step
        order = torch.randperm(coupling.count, generator=generator)
        if coupling.kind in (StructureKind.BLOCKS, StructureKind.EXPERTS):
            number = coupling.count - 1
        if coupling.divisions > 1:
            order = order.new_tensor(range(coupling.count)).view(coupling.divisions, -1).T.flatten()
            number = coupling.count - coupling.divisions
        if coupling.removable is not None:
            order = order[coupling.removable[order].argsort(stable=True)]
        keep[coupling.name] = torch.zeros(coupling.count, dtype=torch.bool).index_fill_(0, order[:number], True)
    return keep


def silenced(model: PreTrainedModel, couplings: Couplings, keep: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return the whole model in which what is not kept has no effect: it is not read, or passes on its input."""
    silent = deepcopy(model)
    for name, kept in keep.items():
        coupling = couplings.named(name)
        for slices in coupling.reads:
            with torch.no_grad():
                weight = slices.view(silent.get_parameter(slices.tensor))
                weight.index_fill_(slices.axis, slices.places(~kept), 0.0)
        if coupling.kind is StructureKind.BLOCKS:
            for index in (~kept).nonzero().flatten().tolist():
                silent.get_submodule(f"{name}.{index}").register_forward_hook(_passed, with_kwargs=True)
    return silent


def _passed(_: object, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
    hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return hidden if isinstance(result, Tensor) else (hidden, *result[1:])
