"""The end of a run in a terminal: table, verdict, what the models say, where things lie, what to try next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zpruner.artifacts.layout import Layout
from zpruner.report import format as fmt
from zpruner.report.data import ReportData, Variant
from zpruner.report.known import BEST, why_so_much
from zpruner.report.offers import offers
from zpruner.report.ranking import Report
from zpruner.report.terminal import render_table
from zpruner.report.verdict import advise


def ending(data: ReportData, layout: Layout) -> str:
    """Return all of it; what was not measured is left out.

    Args:
        data: of the run.
        layout: where its artifacts lie.
    """
    report = Report.of(data)
    found = offers(data)
    parts = [
        render_table(data),
        why_so_much(report),
        advise(found).verdict if found and data.variants else "",
        _samples(report),
        _lines(_places(data, layout)),
        "Next:\n" + _lines(_next(report)),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def best_of(report: Report) -> Variant | None:
    """Return the variant of the lowest perplexity; None where none is finite."""
    standings = [ranking.standings[0] for ranking in report.rankings]
    return min(standings, key=lambda s: s.perplexity).variant if standings else None


def _samples(report: Report) -> str:
    """Return the words of the dense model, of the best variant and of the packed ones."""
    best = best_of(report)
    shown = [one for one in report.data.spoken if one.packed or one.variant in (None, best)]
    if not shown:
        return ""
    return f"{shown[0].said.prompt}\n" + _lines((one.name, " ".join(one.said.text.split())) for one in shown)


def _places(data: ReportData, layout: Layout) -> Iterator[tuple[str, str]]:
    yield "report", f"{layout.report / 'report.html'}"
    yield "pruned checkpoints", f"{layout.pruned('METHOD', 'SPARSITY')}"
    for variant in data.variants:
        if variant.packed is not None:
            folder, found = layout.packed(variant.spec.method, variant.spec.sparsity), variant.packed
            sizes = f"{fmt.megabytes(found.packed)} MB instead of {fmt.megabytes(found.dense)}"
            yield "packed", f"{folder}: {sizes} ({found.packed / found.dense:.2f} x)"


def _next(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what has not been tried yet."""
    best = best_of(report)
    if best is not None:
        spec = best.spec
        yield "which to ship", "zpruner advise --increase 20%"
        yield "publish the best", f"zpruner export {spec.method} {spec.sparsity} -o RELEASE"
    if BEST not in report.data.methods:
        yield "lose less", f"list `{BEST}` under methods in params.yaml (docs/quality.md)"
    if not any(v.beside_dense or (v.packed and v.packed.speed) for v in report.data.variants):
        yield "how fast", "packed.rounds: 3 in params.yaml measures packed and smaller variants (docs/packed.md)"
    yield "your own model", "model.source in params.yaml, then run again"


def _lines(pairs: Iterable[tuple[str, str]]) -> str:
    found = list(pairs)
    width = max((len(name) for name, _ in found), default=0)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in found)
