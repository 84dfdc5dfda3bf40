"""What sequential pruning holds beside a model's weights: whether they are read block by block hangs on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from torch import Tensor

from zpruner.calibration import RECALLED
from zpruner.model import Inventory, PrunableLayer
from zpruner.pruning.composition import Composition
from zpruner.types import RELATIVE, SQUARES, Stat

_TUNED = 8
"""Numbers per weight of a block that is tuned: unpruned, pruned, tuned, best, gradient, and Adam's."""
_PASSED = 2
"""Numbers per token that gradients pass, as a multiple of what the block's layers read and put out."""


def workspace_bytes(
    composition: Composition,
    inventory: Inventory,
    windows: Tensor,
    stats: Set[Stat] = frozenset(),
    batch_size: int = 8,
) -> int:
    """Return about how many bytes `prune_blocks` holds beside a model in memory: hidden states and Gram matrices.

    Hidden states and weights are taken to be float32, hidden states as wide as what most layers read; a correction
    follows the dense model's, too. Of layers that lie side by side and read inputs of the same width, such as an
    attention's, all but one are taken to read the same one. Where sub-modules are measured one by one, what a block's
    products gave is held, up to a bound, but for those of experts.
    """
    widths = Counter(layer.in_features for layer in inventory.layers)
    wanted = composition.needs | stats
    tuning = composition.tuning
    models = 2 if wanted & RELATIVE or (tuning is not None and tuning.follows_dense) else 1
    hidden = 4 * windows.numel() * widths.most_common(1)[0][0] * (models if tuning is None else models + 1)
    weights: Counter[int] = Counter()
    features: Counter[int] = Counter()
    put_out: Counter[int] = Counter()
    for layer in inventory.layers:
        weights[layer.block] += layer.out_features * layer.in_features
        features[layer.block] += layer.out_features + layer.in_features
        put_out[layer.block] += layer.out_features if layer.pool is None else 0
    if composition.by_submodule:  # unpruned weights of a block, and the pruned ones while the unpruned are in place
        hidden += 4 * max(weights.values()) * models
        hidden += min(RECALLED, 4 * windows.numel() * max(put_out.values())) * models
    if Stat.DRIFT in wanted:
        hidden += 4 * max(layer.out_features * layer.in_features for layer in inventory.layers)
    tuned = 0
    if tuning is not None:
        passed = tuning.batch_size(len(windows), batch_size) * windows.shape[1] * max(features.values())
        tuned = _PASSED * passed + _TUNED * max(weights.values())
    if not wanted & SQUARES:
        return hidden + 4 * tuned
    readers = Counter((layer.block, _beside(layer), layer.part, layer.in_features) for layer in inventory.layers)
    matrices: Counter[int] = Counter()  # block -> numbers in one matrix of each of its inputs
    for (block, _, _, width), count in readers.items():
        matrices[block] += width**2 * min(count, 2)
    solving = composition.workspace * max(widths) ** 2
    return hidden + 4 * (max(matrices.values()) * len(wanted & SQUARES) + max(solving, tuned))


def _beside(layer: PrunableLayer) -> str:
    """Return the path of the module in which a layer lies beside others."""
    return (layer.name if layer.parts == 1 else layer.tensor).rpartition(".")[0]
