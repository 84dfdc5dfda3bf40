"""The fitness of a formula: perplexity of the model pruned by it, in memory and without a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.evaluate import window_losses
from zpruner.masks import select_each
from zpruner.methods._formula import GRADIENT_SCALE, Tree, evaluate_formula
from zpruner.model import Inventory, get_weight, set_weight
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, all_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Timing:
    """Seconds spent on scores, on masks (writing and restoring weights included) and on forward passes."""

    score: float = 0.0
    mask: float = 0.0
    forward: float = 0.0

    @property
    def forward_share(self) -> float:
        """The share of the perplexity's forward passes in all of it."""
        return self.forward / (self.score + self.mask + self.forward)


class Fitness:
    """Measures formulas on models that are loaded once: weights are masked, and restored at the end of every call.

    Fitness is the mean over sparsities of the mean window loss, the logarithm of perplexity; smaller is better, NaN
    for a formula whose scores are not finite on some layer, or a model whose loss is not.

    Args:
        models: the dense model, once on every device to use; formulas are spread over them.
        inventory: of the model.
        stats: given a layer's name, its statistics, on any device: sq_sum where X is used, grad_sq where G is.
        windows: int (windows, seqlen) token ids; a call says how many of the first are used.
        sparsities: patterns to prune at.
        group: the comparison group of ratios.
        batch_size: windows per forward pass.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        inventory: Inventory,
        stats: Callable[[str], LayerStats],
        windows: Tensor,
        sparsities: Sequence[SparsityPattern],
        group: ComparisonGroup,
        batch_size: int,
    ) -> None:
        for layer in inventory.layers:
            for pattern in sparsities:
                pattern.check_width(layer.in_features, layer.name)
        self._replicas = [_Replica(m, inventory, stats, windows, sparsities, group, batch_size) for m in models]
        self._free: SimpleQueue[_Replica] = SimpleQueue()
        for replica in self._replicas:
            self._free.put(replica)

    @property
    def timing(self) -> Timing:
        """Where the time went, all devices together."""
        parts = [replica.timing for replica in self._replicas]
        return Timing(sum(p.score for p in parts), sum(p.mask for p in parts), sum(p.forward for p in parts))

    def __call__(self, formulas: Sequence[Tree], windows: int) -> Iterator[float]:
        """Yield the fitness of each formula on the first `windows` windows, in order."""
        if len(self._replicas) == 1:
            replica = self._replicas[0]
            try:
                for formula in formulas:
                    yield replica.measure(formula, windows)
            finally:
                replica.restore()
            return
        with ThreadPoolExecutor(len(self._replicas)) as pool:
            try:
                yield from pool.map(lambda formula: self._on_a_free_one(formula, windows), formulas)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                for replica in self._replicas:
                    replica.restore()

    def _on_a_free_one(self, formula: Tree, windows: int) -> float:
        replica = self._free.get()
        try:
            return replica.measure(formula, windows)
        finally:
            self._free.put(replica)


class _Replica:
    """One model on one device, with its dense weights and gradient norms beside it."""

    def __init__(
        self,
        model: PreTrainedModel,
        inventory: Inventory,
        stats: Callable[[str], LayerStats],
        windows: Tensor,
        sparsities: Sequence[SparsityPattern],
        group: ComparisonGroup,
        batch_size: int,
    ) -> None:
        self.model, self.layers = model, inventory.layers
        self.sparsities, self.group, self.batch_size = tuple(sparsities), group, batch_size
        device = next(model.parameters()).device
        self.windows = windows.to(device)
        self.timing = Timing()
        self._masked = False
        self._dense = {layer.name: get_weight(model, layer).clone() for layer in self.layers}
        self._operands: dict[str, dict[str, Tensor]] = {}
        for layer in self.layers:
            found, operands = stats(layer.name), {}
            if found.sq_sum is not None:
                operands["X"] = found.squared_norm().to(device)
            if found.grad_sq is not None:
                operands["G"] = found.grad_sq.to(device).float().sqrt().mul_(GRADIENT_SCALE)
            self._operands[layer.name] = operands

    def measure(self, formula: Tree, windows: int) -> float:
        """Return the fitness of one formula; the weights stay masked."""
        keeps: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            started = perf_counter()
            dense = self._dense[layer.name]
            operands = {**self._operands[layer.name], "W": dense.float().abs_()}
            scores = evaluate_formula(formula, operands).expand(dense.shape)
            finite = all_finite(scores)
            scored = perf_counter()
            self.timing.score += scored - started
            if not finite:
                return math.nan
            keeps[layer.name] = select_each(scores.contiguous(), self.sparsities, self.group, layer.name)
            self.timing.mask += perf_counter() - scored
        losses = []
        for index in range(len(self.sparsities)):
            self._mask(keeps, index)
            started = perf_counter()
            chosen = [x for part in window_losses(self.model, self.windows[:windows], self.batch_size) for x in part]
            self.timing.forward += perf_counter() - started
            losses.append(sum(chosen) / len(chosen))
        return sum(losses) / len(losses)

    def restore(self) -> None:
        """Give the model its dense weights back."""
        if self._masked:
            started = perf_counter()
            for layer in self.layers:
                set_weight(self.model, layer, self._dense[layer.name])
            self._masked = False
            self.timing.mask += perf_counter() - started

    def _mask(self, keeps: dict[str, list[Tensor]], index: int) -> None:
        started = perf_counter()
        self._masked = True
        with torch.no_grad():
            for layer in self.layers:
                torch.mul(self._dense[layer.name], keeps[layer.name][index], out=get_weight(self.model, layer))
        self.timing.mask += perf_counter() - started
