"""What pruning did, layer by layer: short in a terminal, a table in a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from zpruner.runtime.tables import html_table
from zpruner.types import Mask


@dataclass(frozen=True, repr=False)
class PrunedLayer:
    """What pruning did to one layer: its mask, achieved sparsity, and the share of its output that is lost.

    `sparsity` is the share that the mask removes of all the layer's weights, `zeros_before` that of zeros before.
    `layer_error` compares with the dense weights: those that `calibrate` saw, though `prune` has replaced them since.
    It is NaN where they are not known, in a layer that was pruned before that: compared with its weights of then, a
    model that is pruned twice would look better than it is.

    The error is over the inputs that the layer was pruned for: under pruned propagation those of the half-pruned model,
    where the pipeline's evaluation takes the unpruned model's, the same for all variants.
    """

    name: str
    mask: Mask
    sparsity: float
    layer_error: float
    zeros_before: float

    def __repr__(self) -> str:
        return f"PrunedLayer({self.name!r}, sparsity={self.sparsity:.4f}, layer_error={self.layer_error:.4g})"


class PrunedLayers(tuple[PrunedLayer, ...]):
    """One entry per pruned layer, in the order of the model; a tuple that says what it comes to.

    Attributes:
        orders: of what a composition put into another order: name of the layer that reads it -> int64, the old places.
    """

    orders: Mapping[str, Tensor]

    def __new__(
        cls, layers: Iterable[PrunedLayer] = (), orders: Mapping[str, Tensor] = MappingProxyType({})
    ) -> PrunedLayers:
        """Return the tuple of `layers`."""
        made = super().__new__(cls, layers)
        made.orders = orders
        return made

    @property
    def sparsity(self) -> float:
        """The share of all these layers' weights that the masks remove."""
        weights = sum(layer.mask.keep.numel() for layer in self)
        return sum(layer.sparsity * layer.mask.keep.numel() for layer in self) / weights

    @property
    def layer_error(self) -> float:
        """The mean of the layers' errors."""
        return sum(layer.layer_error for layer in self) / len(self)

    def __repr__(self) -> str:
        if not self:
            return "PrunedLayers()"
        return f"PrunedLayers({len(self)} layers, sparsity={self.sparsity:.4f}, layer_error={self.layer_error:.4g})"

    def _repr_html_(self) -> str:
        """Return a row per kind of layer, as `*.mlp.down_proj` of all blocks together."""
        rows = []
        for kind, layers in _by_kind(self).items():
            worst = max(layers, key=lambda layer: layer.layer_error)
            shape = "x".join(map(str, worst.mask.keep.shape))
            numbers = f"{layers.sparsity:.2%}", f"{layers.layer_error:.4g}", f"{worst.layer_error:.4g} ({worst.name})"
            rows.append((kind, str(len(layers)), shape, *numbers))
        return html_table(repr(self), ("layers", "count", "weight", "sparsity", "mean error", "largest error"), rows)


def _by_kind(layers: PrunedLayers) -> dict[str, PrunedLayers]:
    found: dict[str, list[PrunedLayer]] = {}
    for layer in layers:
        found.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", layer.name), []).append(layer)
    return {kind: PrunedLayers(members) for kind, members in found.items()}
