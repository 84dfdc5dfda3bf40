"""Samples of masks and histograms of scores."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from zpruner.evaluate import jaccard, pack_sample, sample_bits, score_histogram
from zpruner.evaluate.masks import BINS, sample_positions
from zpruner.model import PrunableLayer

LAYERS = [PrunableLayer(f"m.{i}.fc", f"m.{i}.fc.weight", i, 300, 200 + i, False) for i in range(3)]
TOTAL = sum(layer.in_features * layer.out_features for layer in LAYERS)


def masks(seed: int, share: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(la.out_features, la.in_features, generator=generator) < share for la in LAYERS]


def exact(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    both = sum(int((x & y).sum()) for x, y in zip(a, b, strict=True))
    return both / sum(int((x | y).sum()) for x, y in zip(a, b, strict=True))


def sample_mask(layers: Iterable[tuple[PrunableLayer, Tensor]], total: int) -> str:
    return pack_sample([sample_bits(layer, weight, total) for layer, weight in layers])


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.3, 0.7), (0.9, 0.2)])
def test_the_sampled_jaccard_is_near_the_exact_one(first: float, second: float) -> None:
    a, b = masks(1, first), masks(2, second)
    found = jaccard(*(sample_mask(zip(LAYERS, m, strict=True), TOTAL) for m in (a, b)))
    assert found == pytest.approx(exact(a, b), abs=0.008)


def test_equal_masks_overlap_wholly_and_opposite_ones_not_at_all() -> None:
    a = masks(1, 0.5)
    text = sample_mask(zip(LAYERS, a, strict=True), TOTAL)
    assert jaccard(text, text) == 1.0
    overlap = jaccard(text, sample_mask(zip(LAYERS, [~m for m in a], strict=True), TOTAL))
    assert overlap is not None
    assert overlap < 1e-3


def test_weights_count_by_being_zero() -> None:
    keep = masks(1, 0.5)
    weights = [torch.where(m, -0.25, 0.0) for m in keep]
    assert sample_mask(zip(LAYERS, weights, strict=True), TOTAL) == sample_mask(zip(LAYERS, keep, strict=True), TOTAL)


def test_positions_are_spread_by_size_and_the_same_every_time() -> None:
    first = sample_positions(LAYERS[0], TOTAL)
    assert (first == sample_positions(LAYERS[0], TOTAL)).all()
    assert not (first == sample_positions(LAYERS[1], TOTAL)[: len(first)]).all()
    assert len(first) == round((1 << 17) * 300 * 200 / TOTAL)
    assert first.max() < 300 * 200


def test_samples_of_different_models_have_no_overlap() -> None:
    text = sample_mask(zip(LAYERS, masks(1, 0.5), strict=True), TOTAL)
    assert jaccard(text, text[:64]) is None


def test_the_histogram_parts_at_the_cut() -> None:
    score = torch.logspace(-3, 1, 400).reshape(20, 20)
    keep = score > 0.1  # half of the decades
    found = score_histogram("model.layers.1.q", score, keep)
    assert len(found.edges) == BINS + 1
    assert found.edges[0] == pytest.approx(-3)
    assert found.edges[-1] == pytest.approx(1)
    assert sum(found.kept) == int(keep.sum())
    assert sum(found.pruned) == int((~keep).sum())
    assert not any(found.pruned[BINS // 2 :])
    assert not any(found.kept[: BINS // 2])


@pytest.mark.parametrize("score", [torch.zeros(3, 4), torch.full((3, 4), 2.0), torch.tensor([[0.0, 1e-30, 1.0]])])
def test_odd_scores_are_counted_too(score: torch.Tensor) -> None:
    found = score_histogram("model.layers.1.q", score, torch.ones_like(score, dtype=torch.bool))
    assert sum(found.kept) == score.numel()


def test_no_weight_is_lost_to_rounding() -> None:
    for seed in range(40):
        score = torch.rand(7, 11, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 20)
        found = score_histogram("model.layers.1.q", score, score > score.median())
        assert sum(found.kept) + sum(found.pruned) == 77


def test_a_histogram_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    score = torch.rand(50, 30, generator=torch.Generator().manual_seed(1)) ** 6
    whole = score_histogram("model.layers.1.q", score, score > 0.1)
    monkeypatch.setattr("zpruner.evaluate.masks._AT_A_TIME", 64)  # two rows
    assert score_histogram("model.layers.1.q", score, score > 0.1) == whole
    assert sum(whole.kept) == int((score > 0.1).sum())
