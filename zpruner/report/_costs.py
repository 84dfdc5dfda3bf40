"""What variants cost, as rows of a table with bars."""

from __future__ import annotations

from dataclasses import dataclass

from zpruner.report import _format as fmt
from zpruner.report.data import ReportData, StageCost, VariantSpec


@dataclass(frozen=True)
class CostPart:
    """One stage: seconds as text and per mille of the longest row, and whether its result came from a cache."""

    stage: str
    text: str
    mille: int
    cached: bool


@dataclass(frozen=True)
class CostRow:
    """Seconds per stage, their sum, the largest memory, and how many results came from a cache (`3 of 4`)."""

    name: str
    method: str | None
    is_nm: bool
    parts: tuple[CostPart, ...]
    total: str
    memory: str
    hits: str


@dataclass(frozen=True)
class CostTable:
    """Stages in order of appearance, and one row per variant (or per shared stage)."""

    stages: tuple[str, ...]
    rows: tuple[CostRow, ...]

    @property
    def hits_known(self) -> bool:
        """Whether the report knows what came from a cache."""
        return any(row.hits for row in self.rows)


def cost_table(data: ReportData) -> CostTable | None:
    """Return the costs of all variants on one scale; None where nothing was recorded."""
    measured = [(v.spec, v.costs) for v in data.variants if v.costs]
    if not measured:
        return None
    stages = tuple(dict.fromkeys(cost.stage for _, costs in measured for cost in costs))
    longest = max(sum(c.cost.seconds for c in costs) for _, costs in measured) or 1.0
    return CostTable(stages, tuple(_row(spec, spec.name, costs, longest) for spec, costs in measured))


def shared_costs(data: ReportData) -> tuple[CostRow, ...]:
    """Return one row per stage that ran once for all variants."""
    return tuple(_row(None, cost.stage, (cost,), cost.cost.seconds or 1.0) for cost in data.shared_costs)


def _row(spec: VariantSpec | None, name: str, costs: tuple[StageCost, ...], longest: float) -> CostRow:
    parts = tuple(
        CostPart(c.stage, fmt.seconds(c.cost.seconds), round(c.cost.seconds / longest * 1000), bool(c.cached))
        for c in costs
    )
    memory = fmt.memory(max(c.cost.peak_memory_bytes for c in costs))
    known = [c.cached for c in costs if c.cached is not None]
    hits = f"{sum(known)} of {len(known)}" if known else ""
    method, is_nm = (None, False) if spec is None else (spec.method, spec.is_nm)
    return CostRow(name, method, is_nm, parts, fmt.seconds(sum(c.cost.seconds for c in costs)), memory, hits)
