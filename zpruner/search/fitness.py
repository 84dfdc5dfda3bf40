"""The fitness of a formula: perplexity of the model pruned by it, in memory and without a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError
from zpruner.evaluate import window_losses
from zpruner.formula import STATISTIC, Tree, evaluate_formula, statistic
from zpruner.masks import select_each
from zpruner.methods import PruningMethod
from zpruner.model import Inventory, PrunableLayer, get_weight, set_weight
from zpruner.search.log import Measurement
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, all_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scores = Callable[[PrunableLayer, Tensor], Tensor]
"""Given a layer and its dense weight (out, in), the importance of every weight: float32 (out, in)."""
PARTS = ("score", "mask", "weights", "forward")
"""What an evaluation's seconds are spent on; `weights` writes masked weights into the model, or the dense ones back."""


class Fitness:
    """Measures formulas on models that are loaded once: weights are masked, and restored at the end of every call.

    Fitness is the mean over sparsities of the mean window loss, the logarithm of perplexity; smaller is better, NaN
    for a formula whose scores are not finite on some layer, or a model whose loss is not. It depends on nothing but
    the formula and the windows, so that any device gives it.

    Args:
        models: the dense model, once on every device to use; formulas are spread over them.
        inventory: of the model.
        stats: given a layer's name, its statistics, on any device: sq_sum where X is used, grad_sq where G is.
        windows: int (windows, seqlen) token ids; a call says how many of the first are used.
        sparsities: patterns to prune at.
        group: the comparison group of ratios.
        batch_size: windows per forward pass.
        counted: how many of a window's last tokens count; None: all that are predicted.

    Raises:
        InvalidPatternError: M of an N:M pattern does not divide a layer's width.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        inventory: Inventory,
        stats: Callable[[str], LayerStats],
        windows: Tensor,
        sparsities: Sequence[SparsityPattern],
        group: ComparisonGroup = ComparisonGroup.ROW,
        batch_size: int = 8,
        counted: int | None = None,
    ) -> None:
        for layer in inventory.layers:
            for pattern in sparsities:
                pattern.check_width(layer.in_features, layer.name)
        self._windows = len(windows)
        self._replicas = [
            _Replica(m, inventory, stats, windows, sparsities, group, batch_size, counted) for m in models
        ]
        self._free: SimpleQueue[_Replica] = SimpleQueue()
        for replica in self._replicas:
            self._free.put(replica)

    def __call__(self, formulas: Sequence[Tree], windows: int) -> Iterator[Measurement]:
        """Yield what each formula measures on the first `windows` windows, in order.

        Raises:
            InvalidSettingError: more windows than there are.
        """
        if windows > self._windows:
            raise InvalidSettingError(
                "fitness", f"{windows} windows asked for", f"at most {self._windows}", "Give a longer text."
            )
        with ThreadPoolExecutor(len(self._replicas)) as pool:
            try:
                if len(self._replicas) == 1:  # in this thread, one by one, so that a caller may stop after any
                    yield from (self._on_a_free_one(formula, windows) for formula in formulas)
                else:
                    yield from pool.map(lambda formula: self._on_a_free_one(formula, windows), formulas)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                for replica in self._replicas:
                    replica.restore()

    def of_method(self, method: PruningMethod, windows: int) -> Measurement:
        """Return what a method measures in its default comparison group: what formulas have to beat.

        Raises:
            MissingStatisticError: a statistic that the method needs is not among those given.
        """
        replica = self._replicas[0]
        try:
            return replica.measure_scores(replica.of_method(method), windows, method.default_group)
        finally:
            replica.restore()

    def _on_a_free_one(self, formula: Tree, windows: int) -> Measurement:
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
        counted: int | None,
    ) -> None:
        self.model, self.layers, self.stats = model, inventory.layers, stats
        self.sparsities, self.group = tuple(sparsities), group
        self.batch_size, self.counted = batch_size, counted
        self.device = next(model.parameters()).device
        self.windows = windows.to(self.device)
        self._masked = False
        self._dense = {layer.name: get_weight(model, layer).clone() for layer in self.layers}
        self._operands = {layer.name: self._statistics(stats(layer.name)) for layer in self.layers}

    def _statistics(self, found: LayerStats) -> dict[str, Tensor]:
        known = (terminal for terminal, stat in STATISTIC.items() if found.find(stat) is not None)
        return {terminal: statistic(terminal, found).to(self.device) for terminal in known}

    def measure(self, formula: Tree, windows: int) -> Measurement:
        """Return the fitness of one formula; the weights stay masked."""

        def scores(layer: PrunableLayer, dense: Tensor) -> Tensor:
            operands = {**self._operands[layer.name], "W": dense.abs().float()}
            return evaluate_formula(formula, operands).expand(dense.shape).contiguous()

        return self.measure_scores(scores, windows, self.group)

    def of_method(self, method: PruningMethod) -> Scores:
        """Return what scores layers by a method."""
        return lambda layer, dense: method.score(dense.float(), self.stats(layer.name).to(self.device))

    def measure_scores(self, scores: Scores, windows: int, group: ComparisonGroup) -> Measurement:
        """Return the fitness of whatever scores layers; the weights stay masked."""
        spent = dict.fromkeys(PARTS, 0.0)
        keeps: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            started = self._now()
            values = scores(layer, self._dense[layer.name])
            finite = all_finite(values)
            scored = self._now()
            spent["score"] += scored - started
            if not finite:
                return Measurement(math.nan, spent)
            keeps[layer.name] = select_each(values, self.sparsities, group, layer.name)
            spent["mask"] += self._now() - scored
        losses = []
        for index in range(len(self.sparsities)):
            started = self._now()
            self._mask(keeps, index)
            masked = self._now()
            batches = window_losses(self.model, self.windows[:windows], self.batch_size, self.counted)
            chosen = [loss for batch in batches for loss in batch]
            spent["weights"] += masked - started
            spent["forward"] += self._now() - masked
            losses.append(sum(chosen) / len(chosen))
        return Measurement(sum(losses) / len(losses), spent)

    def restore(self) -> None:
        """Give the model its dense weights back."""
        if self._masked:
            for layer in self.layers:
                set_weight(self.model, layer, self._dense[layer.name])
            self._masked = False

    def _mask(self, keeps: dict[str, list[Tensor]], index: int) -> None:
        self._masked = True
        with torch.no_grad():
            for layer in self.layers:
                torch.mul(self._dense[layer.name], keeps[layer.name][index], out=get_weight(self.model, layer))

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return perf_counter()
