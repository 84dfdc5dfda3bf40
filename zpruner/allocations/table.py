"""A table of sparsities: what a name pattern fits has the one written there."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from zpruner.allocations._base import Allocation, Unpruned
from zpruner.errors import InvalidSettingError, did_you_mean


class Table(Allocation):
    """An explicit sparsity for the layers that a name pattern fits; the others take what is left."""

    sparsities: dict[str, float]
    """Shell-style pattern of layer names -> sparsity, e.g. `{"*.down_proj": 0.4}`; the first that fits counts."""

    def targets(self, sparsity: float, model: Unpruned) -> dict[str, float]:
        """Return the table's sparsities, and the remainder's."""
        return table_targets(self.sparsities, model.shapes, sparsity)


def table_targets(
    table: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], sparsity: float
) -> dict[str, float]:
    """Return the sparsity of every layer: the table's where a pattern fits, else what is left for the others.

    Args:
        table: name pattern (`"*.down_proj"`, as in a shell) -> sparsity; the first that fits a layer counts.
        shapes: (out, in) of every layer.
        sparsity: of all layers together.

    Raises:
        InvalidSettingError: a pattern that fits no layer or no ratio in [0, 1); a table that leaves the other
            layers a sparsity outside [0, 1), or covers all layers and adds up to another sparsity.
    """
    for pattern, ratio in table.items():
        if not 0.0 <= ratio < 1.0:
            raise InvalidSettingError(
                f"allocation.table {pattern!r}", f"{ratio!r}", "a ratio in [0, 1)", "Write a ratio such as 0.5."
            )
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise InvalidSettingError(
                f"allocation.table {pattern!r}",
                "a pattern that fits no layer",
                "one that fits some layer's name",
                did_you_mean(pattern.rpartition(".")[2], {name.rpartition(".")[2] for name in shapes}),
            )
    fixed = {
        name: next(ratio for pattern, ratio in table.items() if fnmatchcase(name, pattern))
        for name in shapes
        if any(fnmatchcase(name, pattern) for pattern in table)
    }
    sizes = {name: out * width for name, (out, width) in shapes.items()}
    rest = sum(size for name, size in sizes.items() if name not in fixed)
    given = sum(ratio * sizes[name] for name, ratio in fixed.items())
    wanted = sparsity * sum(sizes.values()) - given
    if not rest:
        if abs(wanted) >= 1.0:
            raise InvalidSettingError(
                "allocation.table",
                f"sparsity {given / sum(sizes.values()):.6g} for all layers together",
                f"{sparsity:g}",
                "Leave some layers out of the table: they take what remains.",
            )
        return fixed
    remaining = wanted / rest
    if not -1e-9 <= remaining < 1.0:
        raise InvalidSettingError(
            "allocation.table",
            f"sparsity {remaining:.4g} for the layers that it leaves out",
            f"one in [0, 1), for {sparsity:g} overall",
            "Raise or lower the table's ratios, or the overall sparsity.",
        )
    return {name: fixed.get(name, max(remaining, 0.0)) for name in shapes}
