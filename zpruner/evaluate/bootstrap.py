"""Confidence intervals by resampling evaluation windows (percentile bootstrap, Efron 1979), paired across models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends finite."""

    low: float
    high: float


class Bootstrap:
    """Resampled mean losses of several models over the same windows.

    The same draws are used for every model, so that differences between two of them are paired: what makes a window
    hard for both cancels out.

    Args:
        losses: one row of window losses per model, all of one length; rows with NaN or infinity get no interval.
    """

    def __init__(self, losses: Sequence[Sequence[float]]) -> None:
        matrix = np.asarray(losses, dtype=np.float64)
        self._means: NDArray[np.float64] | None = None
        windows = matrix.shape[1]
        if windows < 2:
            return
        draws = np.random.default_rng(SEED)
        means = np.empty((RESAMPLES, matrix.shape[0]))
        with np.errstate(invalid="ignore"):  # NaN and infinity are dealt with in _interval
            for row in means:
                row[:] = matrix[:, draws.integers(windows, size=windows)].mean(axis=1)
        self._means = means

    def mean(self, model: int) -> Interval | None:
        """Interval of the mean itself, or None as below; rows may then be anything that is averaged over windows."""
        return None if self._means is None else _percentiles(self._means[:, model])

    def perplexity(self, model: int) -> Interval | None:
        """Interval of exp(mean loss), or None with fewer than two windows or non-finite losses."""
        return None if self._means is None else _interval(self._means[:, model])

    def ratio(self, model: int, reference: int) -> Interval | None:
        """Paired interval of the perplexity of `model` divided by that of `reference`, or None as above."""
        if self._means is None:
            return None
        with np.errstate(invalid="ignore"):
            return _interval(self._means[:, model] - self._means[:, reference])


def _percentiles(values: NDArray[np.float64]) -> Interval | None:
    if not bool(np.isfinite(values).all()):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _interval(logs: NDArray[np.float64]) -> Interval | None:
    found = _percentiles(logs)
    if found is None:
        return None
    with np.errstate(over="ignore"):
        low, high = np.exp([found.low, found.high])
    return Interval(float(low), float(high)) if np.isfinite(high) else None
