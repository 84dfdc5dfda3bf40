"""Heat maps of blocks x layer kinds, as tables whose cells know their colour step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from zpruner.artifacts.results import Layer
from zpruner.report import _format as fmt
from zpruner.report._plots import aggregate
from zpruner.report._theme import HEAT
from zpruner.report.data import ReportData

_UNIFORM = 5e-4
"""Achieved sparsities closer together than this are told in a sentence instead of a map."""


@dataclass(frozen=True)
class Cell:
    """One layer (or the experts of one kind together): its value as text and its colour step."""

    text: str
    step: int


@dataclass(frozen=True)
class HeatMap:
    """One method: rows are layer kinds, columns are blocks; None where a block has no such layer."""

    method: str
    blocks: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class HeatGroup:
    """All methods at one sparsity, on one colour scale from `low` to `high`; `uniform` replaces equal maps."""

    sparsity: str
    title: str
    low: str
    high: str
    maps: tuple[HeatMap, ...]
    uniform: str = ""


def heat_groups(data: ReportData, field: str) -> list[HeatGroup]:
    """Return the maps of `layer_error` (logarithmic steps) or `sparsity` (linear) per sparsity label."""
    groups = []
    for name in data.sparsity_names:
        tables = {
            v.spec.method: (_table(v.evaluation.details.layers), v.spec)
            for v in data.variants
            if v.spec.sparsity == name and v.evaluation.details.layers
        }
        if not tables:
            continue
        column = 0 if field == "sparsity" else 1
        show = fmt.percent if field == "sparsity" else fmt.error
        values = [cell[column] for table, _ in tables.values() for cell in table.values()]
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        title = f"{next(iter(tables.values()))[1].pattern_text} · {name}"
        if field == "sparsity" and high - low < _UNIFORM:
            text = f"Every layer stands at {show(low)}."
            groups.append(HeatGroup(name, title, show(low), show(high), (), text))
            continue
        step = _steps(low, high, logarithmic=field != "sparsity")
        maps = tuple(_map(method, table, column, show, step) for method, (table, _) in tables.items())
        groups.append(HeatGroup(name, title, show(low), show(high), maps))
    return groups


Table = dict[tuple[str, int], tuple[float, float]]
"""(kind, block) -> sparsity, layer error."""


def _table(layers: tuple[Layer, ...]) -> Table:
    # Numbered modules inside a block (experts) share a row, or a mixture model would have hundreds.
    members: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", layer.kind)
        members.setdefault((kind, layer.block), []).append(layer)
    return {key: aggregate(group) for key, group in members.items()}


def _map(method: str, table: Table, column: int, show: Callable[[float], str], step: Callable[[float], int]) -> HeatMap:
    kinds = tuple(dict.fromkeys(kind for kind, _ in table))
    blocks = tuple(sorted({block for _, block in table}))

    def cell(kind: str, block: int) -> Cell | None:
        values = table.get((kind, block))
        return None if values is None else Cell(show(values[column]), step(values[column]))

    return HeatMap(method, blocks, tuple((kind, tuple(cell(kind, block) for block in blocks)) for kind in kinds))


def _steps(low: float, high: float, *, logarithmic: bool) -> Callable[[float], int]:
    """Return value -> step; zeros and NaN fall on the lowest and highest step."""
    last = len(HEAT) - 1
    if logarithmic:
        # Below a thousandth of the largest error the eye needs no more shades.
        low = max(low, high * 1e-3)

    def step(value: float) -> int:
        if not math.isfinite(value):
            return last
        if high <= low:
            return 0
        share = math.log(max(value, low) / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return min(last, int(share * (last + 1)))

    return step
