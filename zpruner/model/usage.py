"""How a model's code multiplies by weights that no standard layer holds, observed in one short forward pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from zpruner.errors import ModelStructureError
from zpruner.model.products import Products, memory_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = tuple[type[nn.Module], str]
"""The class of the module that holds a parameter, and the parameter's name in it: all of a kind are used alike."""

_TOKENS = 4


@dataclass(frozen=True)
class Use:
    """A parameter's memory is `parts` matrices one after another, each stored as (out, in), or `transposed`."""

    parts: int
    transposed: bool


class _Seen(Exception):  # noqa: N818 - not an error: ends the forward pass
    pass


def kind_of(modules: dict[str, nn.Module], parameter: str) -> Kind:
    """Return the kind of a parameter, given by its name in the model."""
    owner, _, leaf = parameter.rpartition(".")
    return type(modules[owner]), leaf


def observe_use(model: PreTrainedModel, blocks: str, parameters: Iterable[str]) -> dict[Kind, Use | None]:
    """Return how the parameters of the given names are multiplied; None: not as a matrix, or not as a stack of them.

    The model's forward code runs on a few tokens with zeros in place of all weights, on the CPU, up to the first
    block after which every kind of parameter has had its turn. Zeros that are never written occupy no memory, so this
    costs no more for a model bigger than memory, or for one on the meta device.

    Args:
        model: any causal language model; is not changed.
        blocks: path of its decoder blocks.
        parameters: names of parameters inside the blocks.

    Raises:
        ModelStructureError: matrices are copied out of a stack and the copies multiplied.
    """
    modules = dict(model.named_modules())
    first: dict[Kind, int] = {}  # kind -> index of the first block that holds one
    for name in parameters:
        first.setdefault(kind_of(modules, name), int(name.removeprefix(f"{blocks}.").split(".")[0]))
    hollow = {name: hollow_like(p) for name, p in model.named_parameters()}
    buffers = {name: _buffer(b) for name, b in model.named_buffers()}
    addresses = {memory_of(hollow[name]): name for name in parameters if name in hollow}
    found: dict[Kind, Use | None] = dict.fromkeys(first)

    def observe(weight: Tensor, _: Tensor) -> None:
        name = addresses[memory_of(weight)]
        kind = kind_of(modules, name)
        if found[kind] is None:
            found[kind] = _use(weight, hollow[name])

    copied: dict[Kind, str] = {}

    def note_copy(stack: Tensor) -> None:
        name = addresses[memory_of(stack)]
        copied.setdefault(kind_of(modules, name), name)

    def stop(*_: object) -> None:
        raise _Seen

    tokens = {"input_ids": torch.zeros(1, _TOKENS, dtype=torch.long), "use_cache": False}
    with _without_hooks(modules.values()):
        handle = modules[f"{blocks}.{max(first.values())}"].register_forward_hook(stop)
        try:
            with torch.no_grad(), Products(addresses, observe, note_copy):
                torch.func.functional_call(model, {**hollow, **buffers}, (), tokens, tie_weights=True)
        except _Seen:
            pass
        finally:
            handle.remove()
    for kind, name in copied.items():
        if found[kind] is None:
            raise ModelStructureError(
                name,
                "code that copies matrices out of this stack and multiplies by the copies",
                "products with the weight itself",
                "Choose another implementation: model.set_experts_implementation('grouped_mm').",
            )
    return found


@contextmanager
def _without_hooks(modules: Collection[nn.Module]) -> Iterator[None]:
    """Put the modules' hooks aside: they may bring weights, or look at what passes."""
    aside = [(module, module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module in modules:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, before, after in aside:
            module._forward_pre_hooks, module._forward_hooks = before, after


def _use(weight: Tensor, parameter: Tensor) -> Use | None:
    """Return how the observed matrix (out, in), a view of the parameter, lies in it."""
    out_features, in_features = weight.shape
    size = weight.numel()
    if parameter.numel() % size or weight.storage_offset() % size:
        return None
    parts = parameter.numel() // size
    if weight.stride() == (in_features, 1):
        return Use(parts, transposed=False)
    return Use(parts, transposed=True) if weight.stride() == (1, out_features) else None


def hollow_like(like: Tensor) -> Tensor:
    """Return zeros on the CPU whose memory is not touched until somebody does.

    Floating-point ones are float32 whatever `like` is, as all others here: code that casts a weight to float32 then
    multiplies by the weight itself, not by a copy.
    """
    dtype = torch.float32 if like.is_floating_point() else like.dtype
    count = max(1, like.numel() * dtype.itemsize)
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype)[: like.numel()].view(like.shape)


def _buffer(buffer: Tensor) -> Tensor:
    """Return a buffer on the CPU; without values, ones where it is of integers, which something may be divided by."""
    if not buffer.is_meta:
        return buffer.cpu().float() if buffer.is_floating_point() else buffer.cpu()
    if buffer.is_floating_point() or buffer.dtype == torch.bool:
        return hollow_like(buffer)
    return torch.ones_like(buffer, device="cpu")
