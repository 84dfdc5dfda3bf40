"""Rankings of structures against float64 references that remove them one by one."""

import pytest
import torch

from zpruner.errors import MissingStatisticError
from zpruner.patterns import StructureKind
from zpruner.rankings import RANKINGS, Columns, Structures, keep_highest
from zpruner.rankings.obs import Obs
from zpruner.types import LayerStats

OUT, IN, TOKENS = 5, 12, 60
NEURONS = torch.arange(IN)[:, None]
GROUPS = torch.arange(IN).view(4, 3)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(IN, IN, generator=generator) + 2 * torch.eye(IN)
    return mix @ torch.randn(IN, TOKENS, generator=generator) * torch.linspace(0.2, 2.0, IN)[:, None] + 0.7


def structures(index, seed=0, fixed=None, readers=1):
    found = []
    for reader in range(readers):
        x = inputs(seed)
        weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed + 1 + reader))
        stats = LayerStats("down", TOKENS, 2, sq_sum=x.square().sum(1).double(), sum=x.sum(1).double(), gram=x @ x.T)
        found.append(Columns(index, lambda weight=weight, stats=stats: (weight, stats)))
    return Structures("mlp", StructureKind.NEURONS, len(index), tuple(found), fixed=fixed)


def hessian(x, damping, shrinkage):
    gram = (x @ x.T).double()
    gram = gram / gram.diagonal().mean()
    return gram + torch.diag(shrinkage * gram.diagonal() + damping)


def loss_without(weight, matrix, gone):
    """The least of (w - w') H (w - w')^T with the inputs `gone` removed: every other one makes up for it."""
    stay = [i for i in range(IN) if i not in gone]
    change = weight[:, gone] @ matrix[gone][:, stay] @ torch.linalg.inv(matrix[stay][:, stay])
    left = torch.zeros_like(weight)
    left[:, gone], left[:, stay] = weight[:, gone], -change
    return float((left @ matrix * left).sum())


@pytest.mark.parametrize("name", RANKINGS.names())
def test_every_ranking_says_what_it_ranks_and_reads(name):
    ranking = RANKINGS.find(name)()
    assert ranking.kinds
    assert ranking.kinds <= set(StructureKind)
    assert ranking.__doc__


@pytest.mark.parametrize("index", [NEURONS, GROUPS])
def test_obs_is_what_is_lost_once_the_rest_has_made_up_for_it(index):
    found = Obs(damping=0.05, shrinkage=0.3)
    each = structures(index)
    matrix, weight = hessian(inputs(), 0.05, 0.3), each.reads[0].weight.double()
    expected = torch.tensor([loss_without(weight, matrix, row.tolist()) for row in index], dtype=torch.float64)
    torch.testing.assert_close(found.importance(each), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("index", [NEURONS, GROUPS])
def test_obs_in_as_many_rounds_as_structures_go_is_greedy_elimination(index):
    gone = 2
    found = Obs(damping=0.05, shrinkage=0.3, rounds=gone).choose(structures(index), len(index) - gone)
    matrix, weight = hessian(inputs(), 0.05, 0.3), structures(index).reads[0].weight.double()
    removed = []
    for _ in range(gone):
        left = [i for i in range(len(index)) if i not in removed]
        costs = [loss_without(weight, matrix, index[[*removed, i]].reshape(-1).tolist()) for i in left]
        removed.append(left[costs.index(min(costs))])
    assert sorted(torch.nonzero(~found).squeeze(1).tolist()) == sorted(removed)


def test_obs_adds_up_what_several_layers_lose():
    one, other, both = (structures(NEURONS, readers=n) for n in (1, 2, 2))
    found = Obs()
    second = Structures("mlp", StructureKind.NEURONS, IN, other.reads[1:])
    torch.testing.assert_close(found.importance(both), found.importance(one) + found.importance(second))


def test_flap_is_the_variance_about_the_mean_times_the_squared_norm():
    each = structures(GROUPS)
    x, weight = inputs().double(), each.reads[0].weight.double()
    expected = (x.var(dim=1, correction=0) * TOKENS * weight.square().sum(0))[GROUPS].sum(1)
    torch.testing.assert_close(RANKINGS.find("flap")().importance(each), expected, rtol=1e-5, atol=1e-6)


def test_flap_says_which_statistic_it_lacks():
    each = structures(NEURONS)
    bare = LayerStats("down", TOKENS, 2, sq_sum=torch.ones(IN))
    lacking = Structures("mlp", StructureKind.NEURONS, IN, (Columns(NEURONS, lambda: (each.reads[0].weight, bare)),))
    with pytest.raises(MissingStatisticError, match="layer down: got statistics without sum"):
        RANKINGS.find("flap")().importance(lacking)


def test_cosine_measures_again_after_each_block():
    """Blocks 1 and 2 each turn little, but the one that is left turns much: they do not both go."""
    asked = []

    def distances(keep):
        asked.append(keep.tolist())
        found = torch.tensor([0.9, 0.1, 0.2, 0.5], dtype=torch.float64)
        if not keep[1]:
            found[2] = 0.8
        return found.masked_fill(~keep, torch.inf)

    blocks = Structures("layers", StructureKind.BLOCKS, 4, distances=distances)
    assert RANKINGS.find("cosine")().choose(blocks, 2).tolist() == [True, False, True, False]
    assert asked == [[True] * 4, [True, False, True, True]]
    kept = Structures("layers", StructureKind.BLOCKS, 4, distances=distances, fixed=torch.tensor([0, 1, 0, 0]) > 0)
    assert RANKINGS.find("cosine")().choose(kept, 2).tolist() == [True, True, False, False]


@pytest.mark.parametrize("name", ["obs", "flap"])
def test_what_must_stay_stays(name):
    ranking = RANKINGS.find(name)()
    least = int(ranking.importance(structures(NEURONS)).argmin())
    fixed = torch.arange(IN) == least
    assert ranking.choose(structures(NEURONS, fixed=fixed), 6)[least]
    assert not ranking.choose(structures(NEURONS), 6)[least]
    assert ranking.choose(structures(NEURONS, fixed=fixed), 6).sum() == 6


def test_ties_give_way_from_the_lower_index():
    assert keep_highest(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [False, True, False, True]
