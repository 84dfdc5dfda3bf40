"""Small summaries of masks and scores, from which reports compare variants without their artifacts."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zpruner.artifacts.results import Histogram
from zpruner.model import PrunableLayer
from zpruner.types import at_a_time

SAMPLE = 1 << 17
"""Weights sampled from a model: a Jaccard index is known to about 0.002 (one standard error)."""
BINS = 48
_DECADES = 6.0
"""Scores further than this below the largest go into the lowest bin."""
_AT_A_TIME = 1 << 20
"""Scores whose float64 logarithms are in memory together."""


def sample_positions(layer: PrunableLayer, total: int) -> NDArray[np.int64]:
    """Return which weights of a layer (row-major indices) are sampled: the same for every mask of a model.

    Args:
        layer: the layer.
        total: prunable weights of the whole model; each layer gives its share of SAMPLE, at least 16.
    """
    weights = layer.in_features * layer.out_features
    random = np.random.default_rng(zlib.crc32(layer.name.encode()))
    return random.integers(weights, size=max(16, round(SAMPLE * weights / total)))


def sample_bits(layer: PrunableLayer, weight: Tensor, total: int) -> NDArray[np.bool_]:
    """Return the sampled bits of one layer, True = kept.

    Args:
        layer: the layer.
        weight: its weight, float (out, in), or bool mask.
        total: as in `sample_positions`.
    """
    positions = torch.from_numpy(sample_positions(layer, total)).to(weight.device)
    bits: NDArray[np.bool_] = (weight.reshape(-1)[positions] != 0).cpu().numpy()
    return bits


def pack_sample(bits: Iterable[NDArray[np.bool_]]) -> str:
    """Return the bits of all layers, packed and in base64."""
    return base64.b64encode(np.packbits(np.concatenate(list(bits))).tobytes()).decode()


def jaccard(first: str, second: str) -> float | None:
    """Return |A and B| / |A or B| of the weights kept in two samples; None where they are of different models."""
    a, b = (np.frombuffer(base64.b64decode(text), dtype=np.uint8) for text in (first, second))
    if a.size != b.size:
        return None
    union = int(np.bitwise_count(a | b).sum())
    return int(np.bitwise_count(a & b).sum()) / union if union else 1.0


def score_histogram(layer: str, score: Tensor, keep: Tensor) -> Histogram:
    """Return counts of kept and pruned weights by the decimal logarithm of their score.

    Args:
        layer: its name.
        score: float32 (out, in), not negative for the methods that have scores; zeros go into the lowest bin.
        keep: bool (out, in), True = kept.

    Returns:
        BINS counts each of kept and pruned weights, between BINS + 1 edges.
    """

    def log(values: Tensor) -> Tensor:
        return values.double().clamp_min(torch.finfo(torch.float32).tiny).log10()

    top = float(log(score.max()))
    low = max(float(log(score.min())), top - _DECADES)
    edges = np.linspace(low, max(top, low + 1e-6), BINS + 1)
    counts: dict[str, NDArray[Any]] = {name: np.zeros(BINS, dtype=np.int64) for name in ("kept", "pruned")}
    rows = max(1, at_a_time(score.device, _AT_A_TIME) // score.shape[1])
    for part, kept in zip(score.split(rows), keep.split(rows), strict=True):
        logs = log(part).clamp_(low, top)
        for name, chosen in (("kept", kept), ("pruned", ~kept)):
            counts[name] += np.histogram(logs[chosen].cpu().numpy(), bins=edges)[0]
    return Histogram(
        layer=layer,
        edges=tuple(round(float(edge), 6) for edge in edges),
        kept=tuple(counts["kept"].tolist()),
        pruned=tuple(counts["pruned"].tolist()),
    )
