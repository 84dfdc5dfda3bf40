"""95 % confidence intervals over evaluation windows (Student, "The probable error of a mean", 1908).

Windows are few, often six: a percentile bootstrap of n windows draws from their empirical spread, which is smaller by
sqrt((n - 1) / n) than that of the text, and takes no account of its uncertainty; at six windows it holds the true mean
in about 86 % of cases instead of 95 %. Student's quantile makes up for both. Two models are compared window by window
(paired), so that what makes a window hard for both cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from zpruner.artifacts.results import Interval

LEVEL = 0.95


def mean_interval(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Interval | None:
    """Return the interval of the mean, or None with fewer than two values or where one is not finite.

    Args:
        values: one per window.
        low: what the mean cannot lie below.
        high: what the mean cannot lie above.
    """
    sample = np.asarray(values, dtype=np.float64)
    count = sample.size
    if count < 2 or not bool(np.isfinite(sample).all()):
        return None
    mean, half = float(sample.mean()), student_quantile(count - 1) * float(sample.std(ddof=1)) / math.sqrt(count)
    return Interval(low=max(low, mean - half), high=min(high, mean + half))


def perplexity_interval(losses: Sequence[float]) -> Interval | None:
    """Return the interval of exp(mean loss), or None as `mean_interval` or where it would not be finite."""
    return _exp(mean_interval(losses))


def ratio_interval(losses: Sequence[float], reference: Sequence[float]) -> Interval | None:
    """Return the paired interval of one perplexity divided by another on the same windows, or None as above."""
    if not (np.isfinite(losses).all() and np.isfinite(reference).all()):
        return None
    return _exp(mean_interval([loss - other for loss, other in zip(losses, reference, strict=True)]))


def _exp(found: Interval | None) -> Interval | None:
    if found is None or found.high > math.log(np.finfo(np.float64).max):
        return None
    return Interval(low=math.exp(found.low), high=math.exp(found.high))


@cache
def student_quantile(freedom: int) -> float:
    """Return t such that a Student variable of so many degrees of freedom lies within +-t with probability LEVEL.

    By bisection of Abramowitz & Stegun 26.7.3 and 26.7.4, exact for whole degrees of freedom.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """Return the probability of |t| <= tan(angle) sqrt(freedom)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
