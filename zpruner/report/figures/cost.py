"""What variants cost: seconds per stage with bars, the largest memory, and what came from a cache."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.data import StageCost, Variant
from zpruner.report.marks import swatch_of
from zpruner.report.page import Figure, note
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table


def figure(report: Report) -> Figure | None:
    """Return the costs of all variants on one scale, and those of what all share; None where nothing was recorded."""
    variants, shared = [v for v in report.data.variants if v.costs], report.data.shared_costs
    if not variants and not shared:
        return None
    body = _table(report, variants).html() if variants else Markup()
    text = (
        "Wall-clock seconds of each stage. The cost of a score is counted in every variant that uses it, though it is "
        "computed once. Results from the cache keep the time of the run that made them. "
    )
    if any(found.cached is not None for variant in variants for found in variant.costs):
        text += (
            "From cache counts the stage results that were not computed since the report before this one, but kept or "
            "restored; their times are set in grey."
        )
    body += note(text) if variants else Markup()
    if shared:
        body += note(f"Once for all variants: {', '.join(map(_shared, shared))}.")
    return Figure(body)


def _table(report: Report, variants: Sequence[Variant]) -> Table:
    stages = list(dict.fromkeys(found.stage for variant in variants for found in variant.costs))
    known = any(found.cached is not None for variant in variants for found in variant.costs)
    longest = max(sum(found.cost.seconds for found in variant.costs) for variant in variants) or 1.0
    columns = (
        Column("variant"),
        Column("", css="barcol"),
        *(Column(f"{stage}, s", numeric=True) for stage in stages),
        Column("all, s", numeric=True),
        Column("peak memory", numeric=True),
        *([Column("from cache", numeric=True)] if known else []),
    )
    return Table(
        "Cost of each variant",
        columns,
        tuple(_row(report, variant, stages, longest, known) for variant in variants),
        "costs",
    )


def _row(report: Report, variant: Variant, stages: Sequence[str], longest: float, known: bool) -> Row:
    costs = {found.stage: found for found in variant.costs}
    bar = Markup().join(
        Markup('<i class="b{}{}" style="width:{:.1f}%" data-t="{}, {}: {} s{}"></i>').format(
            stages.index(stage) % 6,
            " hit" if found.cached else "",
            100 * found.cost.seconds / longest,
            variant.spec.name,
            stage,
            fmt.seconds(found.cost.seconds),
            ", from a cache" if found.cached else "",
        )
        for stage, found in costs.items()
    )
    hits = [found.cached for found in variant.costs if found.cached is not None]
    return Row(
        (
            Cell(variant.spec.name, before=swatch_of(report, variant.spec)),
            Cell(before=Markup('<span class="bar">{}</span>').format(bar)),
            *(
                Cell(fmt.seconds(costs[stage].cost.seconds), css="hit" if costs[stage].cached else "")
                if stage in costs
                else ""
                for stage in stages
            ),
            fmt.seconds(sum(found.cost.seconds for found in variant.costs)),
            fmt.memory(max(found.cost.peak_memory_bytes for found in variant.costs)),
            *([f"{sum(hits)} of {len(hits)}"] if known else []),
        )
    )


def _shared(found: StageCost) -> str:
    memory, cached = fmt.memory(found.cost.peak_memory_bytes), ", from cache" if found.cached else ""
    return f"{found.stage} {fmt.seconds(found.cost.seconds)} s ({memory}{cached})"
