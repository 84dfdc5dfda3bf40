"""The ordinary smaller model: its config, checked against every shape, and the model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.errors import ModelStructureError
from zpruner.model.bfloat16 import multiplies_bfloat16, widen_products
from zpruner.model.buffers import compute_buffers
from zpruner.model.loader import assign
from zpruner.model.weights import check_in_memory
from zpruner.patterns import StructureKind
from zpruner.runtime.quiet import first_line
from zpruner.structures.coupling import Couplings
from zpruner.structures.depth import alike, at_blocks
from zpruner.structures.sizes import Shapes, Where, changed, empty_of, shapes_of
from zpruner.structures.slicing import cut_tensor, cuts_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def cut(model: PreTrainedModel, couplings: Couplings, keep: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a model without some of its structures, an ordinary one with a config that says so.

    Args:
        model: in memory; is not changed, and shares no memory with the result.
        couplings: of the model.
        keep: name of a coupling -> bool (count,), which structures stay; couplings that are left out keep all.

    Raises:
        InvalidPatternError, ShapeMismatchError: as `Couplings.check`.
        ModelStructureError: the config cannot say it; weights that are not in memory.
    """
    check_in_memory(model)
    config = cut_config(model.config, couplings, keep)
    smaller = empty_of(config, model.dtype)
    stored = smaller.state_dict(keep_vars=True)
    compute_buffers(smaller, stored, model.device)
    cuts = cuts_of(couplings.found, keep)
    made: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        new = renamed(name, couplings, keep)
        if new is None:
            continue
        if id(tensor) not in made:
            values = cut_tensor(tensor.detach(), cuts.get(name, ()))
            made[id(tensor)] = (
                nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
            )
        assign(smaller, new, made[id(tensor)])
    smaller.generation_config = deepcopy(model.generation_config)
    if smaller.dtype == torch.bfloat16 and not multiplies_bfloat16(smaller.device):
        widen_products(smaller)
    return smaller.train(model.training)


def cut_config(config: PretrainedConfig, couplings: Couplings, keep: Mapping[str, Tensor]) -> PretrainedConfig:
    """Return the config of the model without some of its structures.

    The model of it is built, empty, and compared with what stays: every shape, and where blocks go, every setting of
    those that stay.

    Args:
        config: of the whole model.
        couplings, keep: see `cut`.

    Raises:
        InvalidPatternError, ShapeMismatchError: as `Couplings.check`.
        ModelStructureError: the config cannot say it.
    """
    couplings.check(keep)
    values = _values(config, couplings, keep)
    if not values:
        return deepcopy(config)
    try:
        made = changed(config, values)
        after = empty_of(made)
    except Exception as error:  # a config may refuse values with any exception
        raise _unsaid(config, values, first_line(error)) from None
    before = empty_of(config)
    wanted = cut_shapes(before, couplings, keep)
    found = shapes_of(after)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise _unsaid(config, values, f"'{name}' of shape {found.get(name)} in place of {wanted.get(name)}")
    blocks = {c.name: keep[c.name] for c in couplings.found if c.kind is StructureKind.BLOCKS and c.name in keep}
    for name, stay in blocks.items():
        fewer = after if len(keep) == 1 else empty_of(changed(config, _values(config, couplings, blocks)))
        for new, old in enumerate(stay.nonzero().flatten().tolist()):
            one, other = before.get_submodule(f"{name}.{old}"), fewer.get_submodule(f"{name}.{new}")
            if not alike(one, other, (old, new)):
                raise _unsaid(config, values, f"block {old} with other settings as block {new}")
    return made


def cut_shapes(model: PreTrainedModel, couplings: Couplings, keep: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes, by name, of what stays of an empty model's parameters and stored buffers."""
    cuts = cuts_of(couplings.found, keep)
    made = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (new := renamed(name, couplings, keep)) is not None:
            made[new] = tuple(cut_tensor(tensor.detach(), cuts[name]).shape) if name in cuts else tuple(tensor.shape)
    return made


def renamed(name: str, couplings: Couplings, keep: Mapping[str, Tensor]) -> str | None:
    """Return what a parameter is called in the smaller model; None where it goes with its block."""
    for coupling in couplings.found:
        if coupling.entries is not None and coupling.name in keep and name.startswith(f"{coupling.entries}."):
            index, _, rest = name.removeprefix(f"{coupling.entries}.").partition(".")
            if not bool(keep[coupling.name][int(index)]):
                return None
            return f"{coupling.entries}.{int(keep[coupling.name][: int(index)].sum())}.{rest}"
    return name


def _values(config: PretrainedConfig, couplings: Couplings, keep: Mapping[str, Tensor]) -> dict[Where, Any]:
    """Return what is changed in the config."""
    values: dict[Where, Any] = {}
    for coupling in couplings.found:
        if coupling.entries is None and coupling.name in keep:
            kept = int(keep[coupling.name].sum()) // coupling.step
            if kept * coupling.step < coupling.count:
                values |= couplings.sizes[coupling.size].at(kept, coupling.count // coupling.step)
    raw = config.to_dict()
    for coupling in couplings.found:
        if coupling.entries is not None and coupling.name in keep and not bool(keep[coupling.name].all()):
            size = couplings.sizes[coupling.size]
            lists = {where: values.get(where, _at(raw, where)) for where in (*size.per_block, *size.indices)}
            values |= at_blocks(size, lists, keep[coupling.name])
    return values


def _at(raw: Mapping[str, Any], where: Where) -> Any:
    value: Any = raw
    for name in where:
        value = value[name]
    return value


def _unsaid(config: PretrainedConfig, values: Mapping[Where, Any], got: str) -> ModelStructureError:
    named = ", ".join(f"{'.'.join(where)}: {value}" for where, value in values.items())
    return ModelStructureError(
        f"config of {type(config).__name__} with {named[:200]}",
        got,
        "the model that is left",
        "Choose another sparsity: this family's config cannot say this one.",
    )
