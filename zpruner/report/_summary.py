"""What every form of the report says: the rows of the table and the headline, computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zpruner.artifacts.results import Interval
from zpruner.evaluate.intervals import perplexity_interval, ratio_interval
from zpruner.report import _format as fmt
from zpruner.report.data import Evaluation, ReportData, Variant, VariantSpec


@dataclass(frozen=True)
class Row:
    """One model of the table. Dense has no spec, no change and no cost."""

    spec: VariantSpec | None
    evaluation: Evaluation
    interval: Interval | None
    """Of the perplexity."""
    ratio: float | None = None
    """Perplexity divided by that of dense."""
    ratio_interval: Interval | None = None
    """Paired with dense."""
    seconds: float | None = None
    best: bool = False
    """The lowest perplexity of its sparsity, where there is more than one."""

    @property
    def perplexity(self) -> float:
        """The measured perplexity."""
        return self.evaluation.metrics.perplexity


@dataclass(frozen=True)
class Headline:
    """The best variant of one sparsity, and how it compares with the next."""

    row: Row
    runner_up: Row | None
    clear: bool | None
    """Whether best and next differ by more than the noise; None where that is unknown."""

    @property
    def verdict(self) -> str:
        """The comparison with the runner-up as a sentence, empty without one."""
        if self.runner_up is None or self.runner_up.spec is None:
            return ""
        windows = self.row.evaluation.metrics.windows
        known = {
            True: "the difference is larger than the noise.",
            False: f"{fmt.count(windows)} windows are too few to tell the two apart.",
            None: "the noise of the difference is unknown.",
        }[self.clear]
        return f"Next is {self.runner_up.spec.method} at {fmt.perplexity(self.runner_up.perplexity)}; {known}"


@dataclass(frozen=True)
class Summary:
    """Table and headline of a report."""

    dense: Row
    rows: tuple[Row, ...]
    headlines: tuple[Headline, ...]


def summarise(data: ReportData) -> Summary:
    """Compute ratios, intervals and the best of each sparsity."""
    best, headlines = [], []
    for name in data.sparsity_names:
        ranked = _ranked(data, name)
        if ranked:
            headlines.append((ranked[0], ranked[1] if len(ranked) > 1 else None))
        if len(ranked) > 1:
            best.append(ranked[0])
    rows = tuple(_row(data, v, i in best) for i, v in enumerate(data.variants))
    return Summary(
        Row(None, data.dense, perplexity_interval(data.dense.details.window_losses)),
        rows,
        tuple(
            Headline(rows[first], None if second is None else rows[second], _clear(data, first, second))
            for first, second in headlines
        ),
    )


def _ranked(data: ReportData, sparsity: str) -> list[int]:
    finite = [
        (variant.evaluation.metrics.perplexity, index)
        for index, variant in enumerate(data.variants)
        if variant.spec.sparsity == sparsity and math.isfinite(variant.evaluation.metrics.perplexity)
    ]
    return [index for _, index in sorted(finite)]


def _clear(data: ReportData, first: int, second: int | None) -> bool | None:
    if second is None:
        return None
    best, other = (data.variants[i].details.window_losses for i in (first, second))
    interval = ratio_interval(other, best)
    return None if interval is None else interval.low > 1.0


def _row(data: ReportData, variant: Variant, best: bool) -> Row:
    reference = data.dense.metrics.perplexity
    return Row(
        variant.spec,
        variant.evaluation,
        perplexity_interval(variant.details.window_losses),
        variant.evaluation.metrics.perplexity / reference if reference > 0 else None,
        ratio_interval(variant.details.window_losses, data.dense.details.window_losses),
        variant.seconds,
        best,
    )
