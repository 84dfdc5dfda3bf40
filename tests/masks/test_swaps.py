"""1-swaps against brute force over every pair, in float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from zpruner.errors import InvalidPatternError
from zpruner.masks import select
from zpruner.masks._exchange import exchange
from zpruner.masks.swaps import Swaps
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern

HALF, TWO_OF_FOUR = SparsityPattern(ratio=0.5), SparsityPattern(kept=2, group_size=4)


def problem(out=6, width=16, tokens=40, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, width, generator=generator) @ torch.randn(width, tokens, generator=generator)
    x[list(dead)] = 0.0
    weight = torch.randn(out, width, generator=generator)
    return weight, LayerStats("blocks.0.up", tokens, 4, gram=x @ x.T)


def by_magnitude(weight, pattern, group=ComparisonGroup.ROW):
    return select(weight.abs(), pattern, group)


def losses(weight, keep, gram):
    removed = (weight * ~keep).double()
    return (removed @ gram.double() * removed).sum(1)


def best_swap(weight, keep, gram, group):
    """Return (loss, mask) of the best single swap of one row; the row itself if none lowers the loss."""
    best = (float(losses(weight[None], keep[None], gram)), keep)
    for u in keep.nonzero().squeeze(1).tolist():
        for p in (~keep).nonzero().squeeze(1).tolist():
            if group and u // group != p // group:
                continue
            other = keep.clone()
            other[u], other[p] = False, True
            best = min(best, (float(losses(weight[None], other[None], gram)), other), key=lambda pair: pair[0])
    return best


@pytest.mark.parametrize("pattern", [HALF, SparsityPattern(ratio=0.7), TWO_OF_FOUR], ids=str)
@pytest.mark.parametrize("candidates", [16, 1000])
def test_one_swap_is_the_best_pair(pattern, candidates):
    weight, stats = problem()
    keep = by_magnitude(weight, pattern)
    refined = Swaps(max_swaps=1, candidates=candidates, tolerance=0.0).refine(weight, keep, stats, pattern)
    for i in range(len(weight)):
        assert torch.equal(refined[i], best_swap(weight[i], keep[i], stats.gram, pattern.group_size)[1])


@pytest.mark.parametrize("group", [0, 4])
def test_gains_agree_with_the_loss(group):
    weight, stats = problem(out=20)
    before = by_magnitude(weight, TWO_OF_FOUR)
    for swaps in (1, 3, 50):
        keep = before.clone()
        limit, least = torch.full((20,), swaps), torch.zeros(20)
        count, change = exchange(weight, keep, stats.gram, group_size=group, candidates=16, limit=limit, least=least)
        assert int(count.max()) <= swaps
        true = losses(weight, keep, stats.gram) - losses(weight, before, stats.gram)
        torch.testing.assert_close(change.double(), true, rtol=1e-3, atol=1e-2)
        assert (change[count > 0] < 0).all()
        assert torch.equal(((keep ^ before).sum(1) > 0), count > 0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    candidates=st.integers(2, 20),
    every=st.integers(1, 5),
    pattern=st.sampled_from([HALF, SparsityPattern(ratio=0.8), TWO_OF_FOUR, SparsityPattern(kept=1, group_size=8)]),
)
@example(seed=908, candidates=12, every=2, pattern=HALF)  # a row with fewer pruned weights than half the candidates
def test_loss_falls_with_every_swap_and_counts_stay(seed, candidates, every, pattern):
    weight, stats = problem(out=3, seed=seed)
    keep = by_magnitude(weight, pattern, ComparisonGroup.LAYER)
    previous = losses(weight, keep, stats.gram)
    for swaps in range(1, 8):
        swapping = Swaps(max_swaps=swaps, candidates=candidates, recompute_every=every)
        refined = swapping.refine(weight, keep, stats, pattern)
        now = losses(weight, refined, stats.gram)
        assert (now <= previous * (1 + 1e-6)).all()
        previous = now
        groups = pattern.group_size or 16
        assert torch.equal(refined.view(3, -1, groups).sum(2), keep.view(3, -1, groups).sum(2))


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR], ids=str)
def test_ends_where_no_swap_helps(pattern):
    weight, stats = problem(out=4)
    swapping = Swaps(max_swaps=1000, candidates=16, tolerance=0.0, recompute_every=3)
    refined = swapping.refine(weight, by_magnitude(weight, pattern), stats, pattern)
    for i in range(4):
        loss = float(losses(weight[i : i + 1], refined[i : i + 1], stats.gram))
        assert best_swap(weight[i], refined[i], stats.gram, pattern.group_size)[0] >= loss * (1 - 1e-4)


def test_tolerance_stops_small_gains():
    weight, stats = problem(out=50)
    keep = by_magnitude(weight, HALF)
    moved = [
        int((Swaps(tolerance=share).refine(weight, keep, stats, HALF) ^ keep).sum()) for share in (0.0, 0.2, 0.999)
    ]
    assert moved[0] > moved[1] > moved[2] == 0


def test_few_candidates_reach_most_of_the_gain():
    weight, stats = problem(out=30, width=64, tokens=150)
    keep = by_magnitude(weight, HALF)
    few, every = (
        losses(weight, Swaps(candidates=n).refine(weight, keep, stats, HALF), stats.gram).sum() for n in (16, 64)
    )
    assert few < 1.1 * every < 0.7 * losses(weight, keep, stats.gram).sum()


def test_tiles_do_not_change_the_result(monkeypatch):
    weight, stats = problem(out=9)
    keep = by_magnitude(weight, HALF)
    whole = Swaps().refine(weight, keep, stats, HALF)
    monkeypatch.setattr("zpruner.masks.swaps._ELEMENTS", 512)
    assert torch.equal(Swaps().refine(weight, keep, stats, HALF), whole)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor made; views of the Hessian count for nothing."""

    def __init__(self, hessian):
        super().__init__()
        self.hessian, self.elements = hessian, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and made.untyped_storage().nbytes() != self.hessian:
                self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return result


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR], ids=str)
def test_memory_stays_bounded_at_the_width_of_a_large_model(monkeypatch, pattern):
    width, rows, elements = 11008, 24, 1 << 17
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(rows, width, generator=generator), torch.randn(width, 32, generator=generator)
    stats = LayerStats("blocks.0.down", 32, 4, gram=x @ x.T)
    keep = by_magnitude(weight, pattern)
    monkeypatch.setattr("zpruner.masks.swaps._ELEMENTS", elements)
    whole, largest, tiles = Swaps._refine_rows, Largest(4 * width * width), []

    def watched(self, weight, *args):
        tiles.append(len(weight))
        with largest:
            return whole(self, weight, *args)

    monkeypatch.setattr(Swaps, "_refine_rows", watched)
    refined = Swaps(max_swaps=1, candidates=16).refine(weight, keep, stats, pattern)
    assert tiles == [11, 11, 2]
    assert 11 * width <= largest.elements <= elements
    before, after = (((weight * ~mask).double() @ x.double()).square().sum(1) for mask in (keep, refined))
    assert (after < before).all()


def test_scales_dead_inputs_and_few_tokens():
    weight, stats = problem(tokens=5, dead=(0, 9))
    keep = by_magnitude(weight, HALF)
    expected = Swaps().refine(weight, keep, stats, HALF)
    assert torch.equal(Swaps().refine(weight * 2.0**90, keep, stats, HALF), expected)
    assert torch.equal(Swaps().refine(weight * 2.0**-90, keep, stats, HALF), expected)
    scaled = LayerStats("up", 1, 1, gram=stats.gram * 2.0**80)
    assert torch.equal(Swaps().refine(weight, keep, scaled, HALF), expected)
    assert losses(weight, expected, stats.gram).sum() < losses(weight, keep, stats.gram).sum()


def test_nothing_to_exchange():
    weight, stats = problem()
    keep = torch.ones(6, 16, dtype=torch.bool)
    for swapping in (Swaps(), Swaps(candidates=4)):
        assert torch.equal(swapping.refine(weight, keep, stats, SparsityPattern(ratio=0.0)), keep)


def test_the_given_mask_stays():
    weight, stats = problem()
    keep = by_magnitude(weight, HALF)
    before = keep.clone()
    assert not torch.equal(Swaps().refine(weight, keep, stats, HALF), before)
    assert torch.equal(keep, before)


def test_width_that_m_does_not_divide():
    weight, stats = problem()
    with pytest.raises(InvalidPatternError, match=r"blocks\.0\.up"):
        Swaps().refine(weight, by_magnitude(weight, HALF), stats, SparsityPattern(kept=2, group_size=5))
