"""The published loops, written here from their descriptions: what ours is compared with.

Block by block, one window at a time: a first forward pass of the block sums what its layers read, each layer is scored
by its formula and pruned by a full sort, or by SparseGPT (arXiv 2301.00774, algorithm 1), and a second forward pass
gives the next block's input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zpruner.model import take_inventory
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import Composition
from zpruner.pruning.presets import PRESETS
from zpruner.settings.params import MethodSettings
from zpruner.types import LayerStats, SparsityPattern, Stat


def composition_of(method: str) -> Composition:
    """Return a preset's composition, or that of a score."""
    return compose(MethodSettings(**PRESETS.get(method, {"score": method})))


@torch.no_grad()
def prune(model: PreTrainedModel, windows: Tensor, method: str, ratio: float) -> None:
    """Prune by the published loop; the model's weights are overwritten.

    Args:
        model: any causal language model whose prunable layers are `nn.Linear`, as the published scripts expect.
        windows: int (windows, seqlen) token ids.
        method: `sparsegpt`, or a preset or score that needs sums of channels only.
        ratio: share of the weights that go.
    """
    composition = composition_of(method)
    inventory, device = take_inventory(model), next(model.parameters()).device
    for layer in inventory.layers:
        if layer.tensor != f"{layer.name}.weight" or layer.transposed:
            raise ValueError(f"the published loop knows nn.Linear only, {layer.name} is none")
    hidden, calls = [], []

    class Caught(Exception):  # noqa: N818
        """Ends the forward pass at the first block."""

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0])
        calls.append(kwargs)
        raise Caught

    handle = model.get_submodule(f"{inventory.blocks}.0").register_forward_pre_hook(catch, with_kwargs=True)
    for window in windows:
        try:
            model(window[None].to(device, torch.long), use_cache=False)
        except Caught:
            continue
    handle.remove()
    for index in range(inventory.n_blocks):
        block = model.get_submodule(f"{inventory.blocks}.{index}")
        layers = {layer.name: layer for layer in inventory.layers if layer.block == index}
        sums = {name: _Sums(composition.needs, layer.in_features, device) for name, layer in layers.items()}
        handles = [model.get_submodule(name).register_forward_hook(sums[name].add) for name in layers]
        for state, kwargs in zip(hidden, calls, strict=True):
            block(state, **kwargs)
        for handle in handles:
            handle.remove()
        for name in layers:
            weight, stats = model.get_submodule(name).weight.data, sums[name].stats(name, len(windows))
            if stats.gram is not None:
                weight.copy_(sparsegpt(weight.float(), stats.gram, SparsityPattern(ratio=ratio)))
                continue
            score = _score(method, composition, weight.float(), stats)
            flat = score if composition.group.value == "row" else score.reshape(1, -1)
            order = torch.sort(flat, dim=-1, stable=True)[1][:, : int(flat.shape[1] * ratio)]
            mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
            weight[mask.reshape(weight.shape)] = 0
        hidden = [_first(block(state, **kwargs)) for state, kwargs in zip(hidden, calls, strict=True)]


def _score(method: str, composition: Composition, weight: Tensor, stats: LayerStats) -> Tensor:
    """Return the score as its formula says, where that is Wanda's or Z-Pruner's; else the library's."""
    if method not in ("wanda", "zpruner"):
        return composition.score(weight, stats).values
    norm = stats.squared_norm().sqrt()
    if method == "wanda":
        return weight.abs() * norm
    rows, columns = weight / weight.norm(dim=1, keepdim=True), weight / weight.norm(dim=0, keepdim=True)
    by_row, by_column = ((part - part.mean()) / part.std() for part in (rows, columns))
    near_zero = (weight.abs() < 0.1 * weight.abs().mean()).float().mean()
    alpha = 0.7 * (1 - 0.3 * near_zero)
    return (alpha * by_row.abs() ** 3 + (1 - alpha) * by_column.abs() ** 3) * norm**1.5


class _Sums:
    """What a method needs to know of a layer's input, as the published scripts keep it: each layer its own."""

    def __init__(self, needs: frozenset[Stat], width: int, device: torch.device) -> None:
        self.tokens = 0
        shapes = {Stat.SQ_SUM: (width,), Stat.ABS_SUM: (width,), Stat.MAX_ABS: (width,), Stat.GRAM: (width, width)}
        self.sums = {stat.value: torch.zeros(shapes[stat], device=device) for stat in needs}

    def add(self, _: nn.Module, inputs: tuple[Tensor], _result: object) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        for name, total in self.sums.items():
            if name == "sq_sum":
                total += rows.square().sum(0)
            elif name == "abs_sum":
                total += rows.abs().sum(0)
            elif name == "max_abs":
                torch.maximum(total, rows.abs().amax(0), out=total)
            else:
                total += rows.T @ rows
        self.tokens += rows.shape[0]

    def stats(self, name: str, windows: int) -> LayerStats:
        return LayerStats(name, self.tokens, windows, **self.sums)


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def sparsegpt(weight: Tensor, gram: Tensor, pattern: SparsityPattern, block: int = 128) -> Tensor:
    """Return SparseGPT's weights, float32 (out, in): one column at a time, and a sort per block of columns."""
    weight = weight.clone()
    hessian = gram.clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        part = weight[:, start:stop].clone()
        errors = torch.zeros_like(part)
        local = factor[start:stop, start:stop]
        if pattern.ratio is None:
            pruned = torch.zeros_like(part, dtype=torch.bool)
        else:
            saliency = part**2 / local.diagonal() ** 2
            threshold = saliency.flatten().sort().values[int(saliency.numel() * pattern.ratio)]
            pruned = saliency <= threshold
        for column in range(stop - start):
            if pattern.kept is not None and pattern.group_size is not None and column % pattern.group_size == 0:
                group = slice(column, column + pattern.group_size)
                saliency = part[:, group] ** 2 / local.diagonal()[group] ** 2
                lowest = saliency.topk(pattern.group_size - pattern.kept, dim=1, largest=False).indices
                pruned.scatter_(1, column + lowest, True)
            kept = part[:, column].masked_fill(pruned[:, column], 0.0)
            error = (part[:, column] - kept) / local[column, column]
            part[:, column:] -= error.unsqueeze(1) @ local[column, column:].unsqueeze(0)
            part[:, column] = kept
            errors[:, column] = error
        weight[:, start:stop] = part
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight
