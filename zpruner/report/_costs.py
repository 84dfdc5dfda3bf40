"""What variants cost, as rows of a table with bars."""

from __future__ import annotations

from dataclasses import dataclass

from zpruner.report import _format as fmt
from zpruner.report._data import Cost, ReportData


@dataclass(frozen=True)
class CostRow:
    """Seconds per stage as (stage, text, per mille of the longest row), their sum and the largest memory."""

    name: str
    method: str | None
    parts: tuple[tuple[str, str, int], ...]
    total: str
    memory: str


@dataclass(frozen=True)
class CostTable:
    """Stages in order of appearance, and one row per variant (or per shared stage)."""

    stages: tuple[str, ...]
    rows: tuple[CostRow, ...]


def cost_table(data: ReportData) -> CostTable | None:
    """Return the costs of all variants on one scale; None where nothing was recorded."""
    measured = [(v.spec.name, v.spec.method, v.costs) for v in data.variants if v.costs]
    if not measured:
        return None
    stages = tuple(dict.fromkeys(cost.stage for _, _, costs in measured for cost in costs))
    longest = max(sum(c.seconds for c in costs) for _, _, costs in measured) or 1.0
    return CostTable(stages, tuple(_row(name, method, costs, longest) for name, method, costs in measured))


def shared_costs(data: ReportData) -> tuple[CostRow, ...]:
    """Return one row per stage that ran once for all variants."""
    return tuple(_row(cost.stage, None, (cost,), cost.seconds or 1.0) for cost in data.shared_costs)


def _row(name: str, method: str | None, costs: tuple[Cost, ...], longest: float) -> CostRow:
    parts = tuple((c.stage, fmt.seconds(c.seconds), round(c.seconds / longest * 1000)) for c in costs)
    memory = fmt.memory(max(c.peak_memory_bytes for c in costs))
    return CostRow(name, method, parts, fmt.seconds(sum(c.seconds for c in costs)), memory)
