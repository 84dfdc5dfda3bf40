"""Whether calibration reached everything that is to be pruned, and what to do where it did not."""

from __future__ import annotations

from collections.abc import Collection

from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer


def check_reached(inventory: Inventory, reached: Collection[str], block: int | None = None) -> None:
    """Raise ModelStructureError if a prunable layer (of a block, where it is given) is not among those `reached`."""
    layers = [layer for layer in inventory.layers if block in (None, layer.block)]
    missing = [layer for layer in layers if layer.name not in reached]
    if missing:
        more = f" and {len(missing) - 1} more of {len(layers)} layers" if len(missing) > 1 else ""
        raise ModelStructureError(
            f"layer {missing[0].name}{more}",
            "no token during calibration",
            "activations for every prunable layer",
            "The model does not multiply by them when it reads text: list them under model.ignore in params.yaml, for "
            f"example {_patterns(inventory, missing, [layer for layer in layers if layer.name in reached])}.",
        )


def check_blocks_reached(inventory: Inventory, blocks: Collection[int]) -> None:
    """Raise ModelStructureError if a block that has prunable layers is not among those of `blocks`."""
    check_reached(inventory, {layer.name for layer in inventory.layers if layer.block in blocks})


def _patterns(inventory: Inventory, missing: list[PrunableLayer], reached: list[PrunableLayer]) -> list[str]:
    """Return patterns that match the layers `missing` and none of `reached`: of blocks, parts of them, or layers."""
    blocks, kinds = {layer.block for layer in reached}, {layer.kind for layer in reached}
    patterns: dict[str, None] = {}
    for layer in missing:
        path = layer.kind.split(".")
        parts = [".".join(path[: end + 1]) for end in range(len(path))]
        free = [part for part in parts if not any(f"{kind}.".startswith(f"{part}.") for kind in kinds)]
        if layer.block not in blocks:
            pattern = f"{inventory.blocks}.{layer.block}.*"
        elif free:
            pattern = f"*.{free[0]}" if free[0] == layer.kind else f"*.{free[0]}.*"
        else:
            pattern = layer.name
        patterns[pattern] = None
    return list(patterns)
