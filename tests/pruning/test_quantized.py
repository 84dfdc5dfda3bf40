"""Compositions that quantise: any score, refinement and update, any dtype, dense and pruned propagation."""

import itertools

import families
import pytest
import tiny
import torch

import zpruner
from zpruner.errors import InvalidSettingError, MissingStatisticError, NonFiniteError, UnknownNameError
from zpruner.methods import METHODS
from zpruner.model import get_weight, take_inventory
from zpruner.pruning.compose import compose
from zpruner.quantization import Grid
from zpruner.settings.params import MethodSettings
from zpruner.types import LayerStats, SparsityPattern

SETTINGS = {"expression": {"formula": "mul(W, X)"}}
WINDOWS = torch.randint(1, 150, (4, 16), generator=torch.Generator().manual_seed(3))


def composed(**parts):
    return compose(MethodSettings(**parts))


def problem(dtype=torch.float32, out=10, width=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(width, width, generator=generator) @ torch.randn(width, 200, generator=generator)
    gram = x @ x.T
    stats = LayerStats(
        "up",
        200,
        4,
        sq_sum=gram.diagonal().clone(),
        abs_sum=x.abs().sum(1),
        max_abs=x.abs().amax(1),
        gram=gram,
        gram_half=x[:, :100] @ x[:, :100].T,
        grad_sq=torch.rand(out, width, generator=generator),
    )
    return (torch.randn(out, width, generator=generator) * 0.05).to(dtype), stats


def check(found, weight):
    """The weight is made of the integers and scales, zeros stay zero and are none of them -0.0."""
    assert torch.equal(found.weight, found.quantized.dequantize(weight.dtype))
    assert torch.equal(found.mask.keep, found.quantized.keep)
    assert found.weight.dtype == weight.dtype
    assert not found.weight[~found.mask.keep].any()
    assert not (found.weight.signbit() & (found.weight == 0)).any()


@pytest.mark.parametrize("score", METHODS.names())
@pytest.mark.parametrize("sparsity", [0.0, 0.5, "2:4"])
def test_any_score_composes(score, sparsity):
    weight, stats = problem()
    pattern = SparsityPattern.parse(sparsity)
    for update, rounding in itertools.product((None, "obs", "least_squares"), ("gptq", "nearest")):
        parts = {"score": score, "settings": SETTINGS.get(score, {}), "update": update}
        found = composed(**parts, quantize={"bits": 4, "rounding": rounding}).prune(weight, stats, pattern)
        check(found, weight)
        assert found.mask.sparsity == pytest.approx(pattern.sparsity, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_any_dtype_composes(dtype, bits):
    weight, stats = problem(dtype)
    weight[3] = 0.0  # a row of zeros
    weight[4] = -0.0
    composition = composed(score="wanda", refine="swaps", update="obs", quantize={"bits": bits})
    found = composition.prune(weight, stats, SparsityPattern.parse(0.5))
    check(found, weight)
    assert not found.weight[3:5].any()


def test_the_default_group():
    groups = {bits: composed(score="wanda", quantize={"bits": bits}).rounding.grid for bits in (8, 4, 3)}
    assert groups == {8: Grid(8, "row"), 4: Grid(4, 32), 3: Grid(3, 32)}
    assert composed(score="wanda", quantize={"bits": 4, "group": "row"}).rounding.grid == Grid(4, "row")


def test_sparsegpt_rounds_in_its_own_sweep_where_one_sweep_can_do_both(monkeypatch):
    from zpruner.methods.sparsegpt import SparseGPT

    asked = []
    solve = SparseGPT.solve_on_grid
    monkeypatch.setattr(SparseGPT, "solve_on_grid", lambda self, *given: asked.append(given) or solve(self, *given))
    weight, stats = problem()
    joint = {"score": "sparsegpt", "update": "obs", "quantize": {"bits": 4}}
    check(composed(**joint).prune(weight, stats, SparsityPattern.parse("2:4")), weight)
    assert len(asked) == 1
    for change in (
        {"update": None},
        {"update": "least_squares"},
        {"refine": "swaps"},
        {"quantize": {"bits": 4, "damping": 0.1}},
        {"quantize": {"bits": 4, "order": "activation"}},
        {"quantize": {"bits": 4, "rounding": "nearest"}},
    ):
        check(composed(**{**joint, **change}).prune(weight, stats, SparsityPattern.parse("2:4")), weight)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"group": 32}, InvalidSettingError, "bits"),
        ({"bits": 5}, InvalidSettingError, "bits"),
        ({"bits": True}, InvalidSettingError, "bits"),
        ({"bits": 4, "group": 48}, InvalidSettingError, "group"),
        ({"bits": 4, "group": "column"}, InvalidSettingError, "group"),
        ({"bits": 4, "order": "reverse"}, InvalidSettingError, "order"),
        ({"bits": 4, "damping": -1.0}, InvalidSettingError, "damping"),
        ({"bits": 4, "oder": "natural"}, InvalidSettingError, "order"),
        ({"bits": 4, "rounding": "neares"}, UnknownNameError, "nearest"),
        ({"bits": 4, "rounding": "nearest", "order": "natural"}, InvalidSettingError, "order"),
    ],
)
def test_bad_settings_are_refused(settings, error, said):
    with pytest.raises(error, match=said):
        composed(score="wanda", quantize=settings)


def test_what_is_not_finite_or_not_measured_is_refused():
    weight, stats = problem()
    composition = composed(score="magnitude", quantize={"bits": 4})
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = weight.clone()
        bad[2, 5] = value
        with pytest.raises(NonFiniteError, match="layer up"):
            composition.prune(bad, stats, SparsityPattern.parse(0.0))
    with pytest.raises(MissingStatisticError, match="gram"):
        composition.prune(weight, LayerStats("up", 200, 4, sq_sum=stats.sq_sum), SparsityPattern.parse(0.0))
    with pytest.raises(MissingStatisticError, match="no statistics"):
        composition.apply(weight, zpruner.Mask("up", torch.ones_like(weight, dtype=torch.bool)), None)


@pytest.mark.parametrize(("family", "sequential"), [("gpt2", True), ("mixtral", True), ("mixtral", False)])
def test_any_layout_is_quantised(family, sequential):
    """Transposed Conv1D and stacked experts: every row has its own scale."""
    model = families.build(family)
    method = {"score": "wanda", "group": "row", "update": "obs", "quantize": {"bits": 3, "group": "row"}}
    if sequential:
        layers = zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity="2:4", min_expert_tokens=0)
    else:
        calibration = zpruner.calibrate(model, WINDOWS, stats=zpruner.needs(method), min_expert_tokens=0)
        layers = zpruner.prune(model, calibration, method=method, sparsity="2:4")
    for layer, result in zip(take_inventory(model).layers, layers, strict=True):
        weight = get_weight(model, layer)
        assert not weight[~result.mask.keep].any()
        assert len(weight.unique()) > 8
        assert max(len(row.unique()) for row in weight) <= 8


def test_rounding_comes_after_tuning():
    """What gradients changed is put on the grid, by the statistics that the layer was pruned with."""
    model = tiny.build("llama")
    method = {"score": "wanda", "group": "row", "tune": {"batch": 1}, "quantize": {"bits": 3, "group": "row"}}
    layers = zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity="2:4")
    for layer, result in zip(take_inventory(model).layers, layers, strict=True):
        weight = get_weight(model, layer)
        assert not weight[~result.mask.keep].any()
        assert max(len(row.unique()) for row in weight) <= 8
        assert len(weight.unique()) > 8


@pytest.mark.parametrize("allocation", ["owl", "dlp"])
def test_nothing_is_spread_where_nothing_is_removed(allocation):
    method = {"score": "wanda", "allocate": allocation, "quantize": {"bits": 8, "rounding": "nearest"}}
    layers = zpruner.prune_sequentially(tiny.build("llama"), WINDOWS, method=method, sparsity=0.0)
    assert all(layer.mask.keep.all() for layer in layers)
