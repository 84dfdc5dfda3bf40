"""Sparsity across layers: exact in total, as OWL or the table says."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zpruner.allocations import Unpruned
from zpruner.allocations._exact import allocate
from zpruner.allocations.dlp import Dlp, median, median_targets
from zpruner.allocations.owl import outlier_share, outlier_targets
from zpruner.allocations.table import table_targets
from zpruner.errors import InvalidPatternError, InvalidSettingError, ShapeMismatchError
from zpruner.masks import pruned_count, select
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern

SHAPES = {"blocks.0.up": (6, 10), "blocks.0.down": (10, 7), "blocks.1.up": (6, 10), "blocks.1.down": (10, 7)}
TOTAL = 260


def pruned(patterns, group, shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name: int((~select(torch.rand(*shapes[name], generator=generator), pattern, group)).sum())
        for name, pattern in patterns.items()
    }


def test_outlier_share_is_of_all_layers_together():
    # Mean of the whole 1.6; above 3 * 1.6 is the 9 alone, above 2 * 1.6 the 9 and the 4.
    scores = [torch.tensor([[1.0, 0.0], [9.0, 1.0]]), torch.tensor([0.0, 4.0, 1.0, 0.0, 0.0, 0.0])]
    assert outlier_share(scores, 3.0) == pytest.approx(0.1)
    assert outlier_share(scores, 2.0) == pytest.approx(0.2)


def test_outlier_targets():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (20, 10)}
    targets = outlier_targets({"a": 0.01, "b": 0.04, "c": 0.03}, shapes, 0.6, spread=0.07)
    # Weighted mean (0.01 + 0.04 + 2 * 0.03) / 4 = 0.0275; the largest deviation 0.0175 becomes 0.07.
    assert targets == pytest.approx({"a": 0.67, "b": 0.55, "c": 0.59})
    assert (targets["a"] + targets["b"] + 2 * targets["c"]) / 4 == pytest.approx(0.6)


def test_equal_outliers_are_uniform():
    assert outlier_targets(dict.fromkeys(SHAPES, 0.02), SHAPES, 0.5) == pytest.approx(dict.fromkeys(SHAPES, 0.5))


@pytest.mark.parametrize(("sparsity", "spread"), [(0.05, 0.08), (0.95, 0.08), (0.5, -0.1), (0.5, 0.5)])
def test_spread_that_leaves_the_range(sparsity, spread):
    with pytest.raises(InvalidSettingError, match="spread"):
        outlier_targets(dict.fromkeys(SHAPES, 0.02), SHAPES, sparsity, spread)


def test_outliers_of_other_layers():
    with pytest.raises(ShapeMismatchError, match=r"layer blocks\.9"):
        outlier_targets(dict.fromkeys(SHAPES, 0.1) | {"blocks.9": 0.1}, SHAPES, 0.5)


def test_median_targets():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (20, 10)}
    targets = median_targets({"a": 1.0, "b": 5.0, "c": 2.0}, shapes, 0.6, alpha=0.1)
    # Stretched to [0, 0.2]: 0, 0.2 and 0.05, whose mean by size is 0.075. A larger median loses more.
    assert targets == pytest.approx({"a": 0.525, "b": 0.725, "c": 0.575})
    assert median_targets(dict.fromkeys(SHAPES, 0.02), SHAPES, 0.5) == pytest.approx(dict.fromkeys(SHAPES, 0.5))
    assert median([torch.tensor([[5.0, 1.0]]), torch.tensor([2.0, 9.0, 7.0])]) == 5.0


def test_dlp_measures_blocks_and_keeps_the_total():
    weights = {name: torch.full(shape, 3.0 if ".1." in name else 1.0) for name, shape in SHAPES.items()}
    blocks = {name: int(name.split(".")[1]) for name in SHAPES}

    def unpruned(name):
        return weights[name], LayerStats(name, 8, 2, sq_sum=torch.full((SHAPES[name][1],), 2.0))

    model = Unpruned(SHAPES, blocks, unpruned)
    patterns = Dlp(alpha=0.1).patterns(SparsityPattern(ratio=0.5), ComparisonGroup.LAYER, model)
    counts = pruned(patterns, ComparisonGroup.LAYER, SHAPES)
    assert sum(counts.values()) == TOTAL // 2
    assert counts == {"blocks.0.up": 24, "blocks.0.down": 28, "blocks.1.up": 36, "blocks.1.down": 42}


@pytest.mark.parametrize(("sparsity", "alpha"), [(0.05, 0.08), (0.8, 0.2)])
def test_a_range_that_leaves_no_weight(sparsity, alpha):
    with pytest.raises(InvalidSettingError, match=r"alpha: got 0\.\d+ at sparsity"):
        Dlp(alpha=alpha).check(SparsityPattern(ratio=sparsity))
    with pytest.raises(InvalidSettingError, match="alpha"):
        median_targets({"a": 1.0, "b": 1.0, "c": 2.0}, dict.fromkeys("abc", (4, 4)), sparsity, alpha)


def test_table_leaves_the_rest_to_the_others():
    targets = table_targets({"*.1.down": 0.2, "*.down": 0.4}, SHAPES, 0.5)
    assert targets["blocks.1.down"] == 0.2
    assert targets["blocks.0.down"] == 0.4
    # (130 - 14 - 28) of the remaining 120 weights.
    assert targets["blocks.0.up"] == targets["blocks.1.up"] == pytest.approx(88 / 120)


def test_table_of_every_layer():
    assert table_targets({"*": 0.5}, SHAPES, 0.5) == dict.fromkeys(SHAPES, 0.5)
    with pytest.raises(InvalidSettingError, match=r"got sparsity 0\.4 for all.*expected 0\.5"):
        table_targets({"*": 0.4}, SHAPES, 0.5)


@pytest.mark.parametrize(
    ("table", "sparsity", "message"),
    [
        ({"*.dwn": 0.4}, 0.5, r"fits no layer.*Did you mean"),
        ({"*.down": 1.0}, 0.5, r"a ratio in \[0, 1\)"),
        ({"*.down": -0.1}, 0.5, r"a ratio in \[0, 1\)"),
        ({"*.down": 0.9}, 0.2, "sparsity -0.6167 for the layers that it leaves out"),
        ({"*.down": 0.0}, 0.5, "sparsity 1.083 for the layers that it leaves out"),
    ],
)
def test_impossible_tables(table, sparsity, message):
    with pytest.raises(InvalidSettingError, match=message):
        table_targets(table, SHAPES, sparsity)


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.integers(15, 85).map(lambda n: n / 100),
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(2, 40)), min_size=1, max_size=6),
    shares=st.lists(st.floats(0.0, 0.2), min_size=6, max_size=6),
)
@example(ratio=0.67, sizes=[(1, 5), (1, 2), (1, 2)], shares=[0.125, 0.0, 0.0, 0.0, 0.0, 0.0])
def test_total_is_exact(ratio, sizes, shares):
    shapes = {f"layer{i}": size for i, size in enumerate(sizes)}
    outliers = dict(zip(shapes, shares, strict=False))
    targets = outlier_targets(outliers, shapes, ratio, spread=0.14)
    patterns = allocate(targets, shapes, SparsityPattern(ratio=ratio))
    counts = pruned(patterns, ComparisonGroup.LAYER, shapes)
    total = sum(out * width for out, width in sizes)
    possible = sum(out * width - 1 for out, width in sizes)
    assert sum(counts.values()) == min(pruned_count(total, ratio), possible)
    for name, (out, width) in shapes.items():
        assert abs(counts[name] - targets[name] * out * width) <= 2


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.integers(20, 70).map(lambda n: n / 100),
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(8, 40)), min_size=1, max_size=6),
)
def test_rows_lose_whole_counts(ratio, sizes):
    shapes = {f"layer{i}": size for i, size in enumerate(sizes)}
    patterns = allocate(dict.fromkeys(shapes, ratio), shapes, SparsityPattern(ratio=ratio), ComparisonGroup.ROW)
    counts = pruned(patterns, ComparisonGroup.ROW, shapes)
    wanted = pruned_count(sum(out * width for out, width in sizes), ratio)
    assert 0 <= wanted - sum(counts.values()) < max(out for out, _ in sizes)
    # The pattern means the same count to the row group and to the layer group.
    assert pruned(patterns, ComparisonGroup.LAYER, shapes) == counts


def test_table_total_is_exact():
    targets = table_targets({"*.down": 0.35}, SHAPES, 0.57)
    counts = pruned(allocate(targets, SHAPES, SparsityPattern(ratio=0.57)), ComparisonGroup.LAYER, SHAPES)
    assert sum(counts.values()) == pruned_count(TOTAL, 0.57)
    assert counts["blocks.0.down"] in (24, 25)


def test_n_of_m_has_no_allocation():
    with pytest.raises(InvalidPatternError, match="2:4"):
        allocate(dict.fromkeys(SHAPES, 0.5), SHAPES, SparsityPattern(kept=2, group_size=4))


def test_targets_of_another_sparsity():
    with pytest.raises(InvalidSettingError, match=r"\+26 weights"):
        allocate(dict.fromkeys(SHAPES, 0.5), SHAPES, SparsityPattern(ratio=0.6))
