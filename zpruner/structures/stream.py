"""The residual stream in another order: what of a model reads it, adds to it or scales it.

With the weights of all layers zero a layer still reads what comes from the stream, through norms: so much is observed.
Layers that put out as many channels as the stream has, and do not read it, add to it. Norms inside of a sub-module may
be of the stream or of something as wide: both are tried. What holds is proved, from token to logit, on random weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from zpruner.model.layers import Inventory, PrunableLayer
from zpruner.structures.coupling import Slices
from zpruner.structures.equality import equal
from zpruner.structures.probe import Probe, is_repeated
from zpruner.structures.slicing import move_slices

_ROWS = 64
"""Of embeddings and head: as many tokens as the probe knows."""
_OPEN = 6
"""Names of parameters in blocks of which it is tried whether they are of the stream, at most."""


def find_stream(probe: Probe, weights: Mapping[str, Tensor], inventory: Inventory) -> tuple[Slices, ...] | None:
    """Return everything that has a place for each channel of the residual stream; None where that is not certain.

    Args:
        probe: of the model.
        weights: of the probe.
        inventory: of the model.
    """
    try:
        stream = _Stream(probe, weights, inventory)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):  # a model that runs otherwise
        return None
    known, tried = list(stream.known()), stream.open()
    if len(tried) > _OPEN or not any(slices.layer is not None and slices.axis == 1 for slices in known):
        return None
    for number in range(len(tried), -1, -1):
        for some in combinations(tried, number):
            slices = [*known, *(each for name in some for each in stream.everywhere(name))]
            if stream.holds(slices):
                return tuple(slices)
    return None


class _Stream:
    """One model whose stream is looked for."""

    def __init__(self, probe: Probe, weights: Mapping[str, Tensor], inventory: Inventory) -> None:
        self._probe, self._inventory, self._last = probe, inventory, probe.last()
        self._names = dict(probe.model.state_dict(keep_vars=True))
        self._owners = probe.owners()
        self._heads = self._embeddings()
        self._weights = self._small(weights)
        with torch.no_grad():
            self._hidden = int(probe.run(weights, self._last).shape[-1])
        self._layers = {layer.tensor: layer for layer in inventory.layers}
        self._biases = {layer.bias for layer in inventory.layers if layer.bias is not None}
        self._index = torch.arange(self._hidden)[:, None]
        self._readers = self._observed()
        self._wanted = self._run(self._weights)

    def known(self) -> Iterator[Slices]:
        """Yield what is of the stream for certain, if anything is."""
        for layer in self._inventory.layers:
            if self._reads(layer):
                yield Slices(layer.tensor, 1, self._index, layer)
            elif layer.out_features == self._hidden:
                yield Slices(layer.tensor, 0, self._index, layer)
                if layer.bias is not None:
                    yield Slices(layer.bias, 0, self._index, part=layer.part if layer.parts > 1 else None)
        for name, parameter in self._names.items():
            if self._probe.block_of(name) is None and isinstance(parameter, nn.Parameter):
                axes = (1,) if name in self._heads else range(parameter.ndim)
                yield from (Slices(name, a, self._index) for a in axes if parameter.shape[a] == self._hidden)

    def open(self) -> list[str]:
        """Return what parameters of blocks are called that may be of the stream and belong to no layer."""
        found: dict[str, None] = {}
        for name, parameter in self._names.items():
            other = name in self._layers or name in self._biases or not isinstance(parameter, nn.Parameter)
            if self._probe.block_of(name) is not None and not other and self._hidden in parameter.shape:
                found[self._probe.moved(name, 0)] = None
        return list(found)

    def everywhere(self, name: str) -> Iterator[Slices]:
        """Yield the axes of parameters of that name, in all blocks, that have the stream's width."""
        for other, parameter in self._names.items():
            if self._probe.block_of(other) is not None and self._probe.moved(other, 0) == name:
                yield from (Slices(other, a, self._index) for a, n in enumerate(parameter.shape) if n == self._hidden)

    def holds(self, slices: Iterable[Slices]) -> bool:
        """Return whether the model computes the same logits with the stream in another order."""
        order = torch.randperm(self._hidden, generator=torch.Generator().manual_seed(1))
        moves: dict[str, list[Slices]] = {}
        for each in slices:
            moves.setdefault(each.tensor, []).append(each)
        made: dict[int, Tensor] = {}
        moved = dict(self._weights)
        for name, tensor in self._weights.items():
            if name in moves:
                if id(tensor) not in made:
                    made[id(tensor)] = _moved(tensor, moves[name], order)
                moved[name] = made[id(tensor)]
        try:
            return equal(self._run(moved), self._wanted)
        except (RuntimeError, IndexError):  # an axis that only looked like the stream's
            return False

    def _reads(self, layer: PrunableLayer) -> bool:
        source = self._probe.moved(layer.tensor, self._owners[layer.block])
        pools = {self._layers[name].pool for name in self._readers if name in self._layers} - {None}
        counterpart = self._layers.get(source)
        pool = None if counterpart is None else counterpart.pool
        return layer.in_features == self._hidden and (source in self._readers or pool in pools)

    def _observed(self) -> set[str]:
        """Return the tensors of layers, of the first block of every signature, that read something of the stream."""
        silent = dict(self._weights)
        zeros: dict[int, Tensor] = {}
        for name, tensor in self._weights.items():
            if name in self._layers or name in self._biases:
                silent[name] = zeros.setdefault(id(tensor), torch.zeros_like(tensor))
        found: set[str] = set()

        def observe(name: str, _: int, inputs: Tensor) -> None:
            if bool(inputs.any()):
                found.add(name)

        for owner in dict.fromkeys(self._owners):
            self._probe.run(silent, owner, observe)
        return found

    def _run(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the model's first blocks, up to the one after which every signature had its turn."""

        def passed(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
            hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return hidden if isinstance(result, Tensor) else (hidden, *result[1:])

        model, ids = self._probe.model, torch.arange(3, 35)[None] % _ROWS
        with ExitStack() as stack, torch.no_grad():
            for index in range(self._last + 1, len(self._owners)):
                block = model.get_submodule(f"{self._probe.blocks}.{index}")
                stack.callback(block.register_forward_hook(passed, with_kwargs=True).remove)
            inputs = {"input_ids": ids, "use_cache": False}
            found = torch.func.functional_call(model, dict(weights), (), inputs, tie_weights=False)
        return next(value for value in found.values() if isinstance(value, Tensor))

    def _embeddings(self) -> set[str]:
        """Return the names of embeddings and of the head, whose rows are tokens or places."""
        model = self._probe.model
        head = model.get_output_embeddings()
        held = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        tables = {id(module.weight) for module in (*held, *([] if head is None else [head]))}
        return {name for name, tensor in self._names.items() if id(tensor) in tables}

    def _small(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with few rows of embeddings and head, and no zeros in vectors outside of the blocks."""
        generator, made = torch.Generator().manual_seed(2), dict(weights)
        done: dict[int, Tensor] = {}
        embeddings: Any = self._probe.model.get_input_embeddings()
        tokens = len(embeddings.weight)
        for name, tensor in weights.items():
            outside = self._probe.block_of(name) is None and tensor.is_floating_point() and tensor.ndim > 0
            if outside and len(tensor) == tokens and (name in self._heads or tensor.ndim == 1):  # or the head's bias
                made[name] = done.setdefault(id(tensor), tensor[:_ROWS].clone())
            elif outside and tensor.ndim == 1:
                vector = torch.rand(tensor.shape, generator=generator)
                made[name] = done.setdefault(id(tensor), vector - 0.5 if name.endswith("bias") else vector + 0.5)
        return made


def _moved(tensor: Tensor, slices: Iterable[Slices], order: Tensor) -> Tensor:
    """Return a copy of a weight in another order; a stack of one matrix stays one."""
    repeated = is_repeated(tensor)
    copy = tensor[:1].clone().expand(tensor.shape) if repeated else tensor.clone()
    for each in slices:
        part = each.part if each.layer is None else each.layer.part
        if not repeated or part in (None, 0):
            move_slices(copy, each, order)
    return copy
