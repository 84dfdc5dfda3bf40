"""Many methods and sparsities on one model in memory, which is left as it was."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zpruner.calibration import Calibration
from zpruner.errors import InvalidSettingError, shown
from zpruner.evaluate import perplexity
from zpruner.model import as_windows, check_in_memory, get_parameters, set_parameters, undisturbed
from zpruner.patterns import parse_pattern
from zpruner.pruning.compose import Method, composition_of
from zpruner.pruning.in_memory import calibrate, prune
from zpruner.pruning.permuting import put_back
from zpruner.pruning.results import PrunedLayers
from zpruner.pruning.smaller import cut_undone
from zpruner.runtime.progress import counter
from zpruner.runtime.tables import html_table, text_table
from zpruner.types import RELATIVE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TITLES = ("method", "pattern", "sparsity", "layer error", "perplexity", "seconds")


@dataclass(frozen=True)
class SweepRow:
    """One variant: what was asked for, what was achieved, and what it cost.

    Attributes:
        method: its name, or label.
        pattern: the sparsity as it was asked for.
        sparsity: the achieved share of removed weights.
        layer_error: the mean over layers.
        perplexity: on the evaluation windows; None where there are none.
        seconds: of pruning alone.
    """

    method: str
    pattern: str
    sparsity: float
    layer_error: float
    perplexity: float | None
    seconds: float


class Sweep(tuple[SweepRow, ...]):
    """The rows of a sweep: `pandas.DataFrame(sweep)` makes a data frame of them."""

    __slots__ = ()

    def __repr__(self) -> str:
        return text_table(_TITLES, map(_cells, self))

    def _repr_html_(self) -> str:
        return html_table(f"{len(self)} variants", _TITLES, map(_cells, self))


@undisturbed
def sweep(
    model: PreTrainedModel,
    calibration: Calibration | Tensor | Iterable[object],
    *,
    methods: Iterable[str] | Mapping[str, Method],
    sparsities: Iterable[float | str],
    windows: Tensor | Iterable[object] | None = None,
    batch_size: int = 8,
    ignore: Iterable[str] = (),
) -> Sweep:
    """Prune a model with every method at every sparsity, measure each, and leave the model as it was.

    The unpruned weights of its prunable layers are kept on the host meanwhile.

    Args:
        model: any causal language model in memory.
        calibration: from `calibrate`, with the statistics that all methods read; or calibration windows, from which
            just these are collected.
        methods: names of presets or scores; or label -> name or composition, as `method` of `prune`.
        sparsities: as `sparsity` of `prune`.
        windows: evaluation windows, int (windows, seqlen): apart from those of the calibration. None: no perplexity.
        batch_size: windows per forward pass.
        ignore: patterns of layer names to leave dense.

    Returns:
        One row per method and sparsity, in the order given.

    Raises:
        UnknownNameError, InvalidSettingError, InvalidPatternError: bad arguments; before anything is computed.
        MissingStatisticError: a method needs a statistic that was not collected; before anything is pruned.
        Errors of `calibrate`, `prune` and `perplexity`. The weights are restored then, too.
    """
    check_in_memory(model)
    named = _labelled(methods)
    patterns = [parse_pattern(sparsity) for sparsity in sparsities]
    for what, given in (("methods", named), ("sparsities", patterns)):
        if not given:
            raise InvalidSettingError(what, "none", "at least one", f"Pass {what}.")
    for method in named.values():
        for pattern in patterns:
            composition_of(method).check(pattern)
    if windows is not None:
        windows = as_windows(windows, model.config, least=2)
    if not isinstance(calibration, Calibration):
        calibration = calibrate(
            model, calibration, for_methods=named.values(), stats=(), batch_size=batch_size, ignore=ignore
        )
        ignore = ()
    layers = calibration.inventory.layers
    for method in named.values():
        for stat in composition_of(method).needs - RELATIVE:
            calibration.stats(layers[0].name).require(stat)
    pruned_before = {
        layer.name: get_parameters(model, layer).copied("cpu") for layer in layers if layer.name in calibration.replaced
    }
    rows = []
    variants = [(label, method, pattern) for label, method in named.items() for pattern in patterns]
    with counter("sweep", len(variants), "variant") as step:
        for label, method, pattern in variants:
            known = replace(calibration, replaced=dict(calibration.replaced))
            pruned = PrunedLayers()
            started = time.perf_counter()
            try:
                with cut_undone(model):
                    pruned = prune(model, known, method=method, sparsity=str(pattern), ignore=ignore)
                    seconds = time.perf_counter() - started
                    measured = None if windows is None else perplexity(model, windows, batch_size)
            finally:
                replaced = known.replaced | pruned_before  # of the layers that were reached
                for layer in layers:
                    if layer.name in replaced:
                        set_parameters(model, layer, replaced[layer.name])
                put_back(model, calibration, pruned.orders)
            rows.append(SweepRow(label, str(pattern), pruned.sparsity, pruned.layer_error, measured, seconds))
            step()
    return Sweep(rows)


def _cells(row: SweepRow) -> tuple[str, ...]:
    measured = "-" if row.perplexity is None else f"{row.perplexity:,.2f}"
    return row.method, row.pattern, f"{row.sparsity:.2%}", f"{row.layer_error:.4g}", measured, f"{row.seconds:.1f}"


def _labelled(methods: Iterable[str] | Mapping[str, Method]) -> dict[str, Any]:
    """Return label -> method."""
    if isinstance(methods, Mapping):
        return dict(methods)
    names = [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        if not isinstance(name, str):
            raise InvalidSettingError(
                "methods",
                shown(name),
                "names; or label -> name or composition",
                'Give a composition a label: {"mine": {"score": "wanda"}}.',
            )
    return {name: name for name in names}
