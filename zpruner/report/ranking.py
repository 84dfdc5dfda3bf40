"""What every figure rests on: each variant against the dense model, the order of each sparsity, a style per method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zpruner.artifacts.results import Interval
from zpruner.evaluate.intervals import perplexity_interval, ratio_interval
from zpruner.report import format as fmt
from zpruner.report.data import ReportData, Variant
from zpruner.report.theme import Style, styles


@dataclass(frozen=True)
class Standing:
    """A variant: the interval of its perplexity, its perplexity divided by that of dense, and the paired interval.

    `best` marks the lowest perplexity of its sparsity, where there is more than one.
    """

    variant: Variant
    interval: Interval | None
    ratio: float | None
    ratio_interval: Interval | None
    best: bool = False

    @property
    def perplexity(self) -> float:
        """The measured perplexity."""
        return self.variant.metrics.perplexity


@dataclass(frozen=True)
class Leaderboard:
    """The variants of one sparsity that are not the dense model again, with a finite perplexity, the best first."""

    standings: tuple[Standing, ...]

    @property
    def lead(self) -> Interval | None:
        """The perplexity of the second divided by that of the first, paired; None where that is unknown."""
        if len(self.standings) < 2:
            return None
        first, second = (s.variant.details.window_losses for s in self.standings[:2])
        return ratio_interval(second, first)

    @property
    def verdict(self) -> str:
        """The comparison of the first with the second as a sentence, empty without a second."""
        if len(self.standings) < 2:
            return ""
        first, second = self.standings[:2]
        words = f"Next is {second.variant.spec.method} at {fmt.perplexity(second.perplexity)}"
        if (lead := self.lead) is None:
            return f"{words}; the noise of the difference is unknown."
        words += (
            f", {fmt.change(second.perplexity / first.perplexity)} (95 % interval {fmt.interval(lead, fmt.change)}):"
        )
        windows = fmt.count(first.variant.metrics.windows)
        told = "the difference is larger than the noise." if lead.low > 1 else ""
        return f"{words} {told or f'{windows} windows are too few to tell the two apart.'}"


@dataclass(frozen=True)
class Report:
    """The data of a report, with everything that several figures need."""

    data: ReportData
    standings: tuple[Standing, ...]
    rankings: tuple[Leaderboard, ...]
    styles: dict[str, Style]

    @classmethod
    def of(cls, data: ReportData) -> Report:
        """Compare all variants."""
        rankings = []
        for variants in data.by_sparsity.values():
            compared = [v for v in variants if math.isfinite(v.metrics.perplexity) and not data.is_dense(v.spec)]
            standings = [_standing(data, variant) for variant in compared]
            rankings.append(Leaderboard(tuple(sorted(standings, key=lambda s: s.perplexity))))
        best = {ranking.standings[0].variant.spec for ranking in rankings if len(ranking.standings) > 1}
        standings = [_standing(data, variant, variant.spec in best) for variant in data.variants]
        return cls(data, tuple(standings), tuple(r for r in rankings if r.standings), styles(data.method_names))


def _standing(data: ReportData, variant: Variant, best: bool = False) -> Standing:
    losses, reference = variant.details.window_losses, data.dense.metrics.perplexity
    return Standing(
        variant,
        perplexity_interval(losses),
        variant.metrics.perplexity / reference if reference > 0 else None,
        ratio_interval(losses, data.dense.details.window_losses),
        best,
    )
