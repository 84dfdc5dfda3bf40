"""What the parts of a composition read, and that each does its work once."""

import pytest
import tiny
import torch

import zpruner
from zpruner.errors import InvalidSettingError, UnknownNameError
from zpruner.linalg import obs_sweep
from zpruner.methods import sparsegpt
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import statistics_of
from zpruner.settings.params import MethodSettings
from zpruner.types import Stat
from zpruner.updates import obs

WINDOWS = torch.randint(3, tiny.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def composition(**settings):
    return compose(MethodSettings(**settings))


WANDA, SOLVER = composition(score="wanda"), composition(score="sparsegpt", update="obs")
ZERO, OWL = composition(score="pruner_zero"), composition(score="magnitude", allocate="owl")
CORRECTED = composition(score="magnitude", update="obs", correct={})


def test_a_calibration_collects_what_some_method_reads():
    assert statistics_of([]) == frozenset()
    assert statistics_of([WANDA]) == {Stat.SQ_SUM}
    assert statistics_of([WANDA, SOLVER]) == {Stat.SQ_SUM, Stat.GRAM}
    assert statistics_of([ZERO, SOLVER]) == {Stat.GRAD_SQ, Stat.GRAM}
    assert statistics_of([OWL]) == {Stat.SQ_SUM}
    assert CORRECTED.needs == {Stat.GRAM, Stat.CROSS}
    assert statistics_of([CORRECTED]) == {Stat.GRAM}


def test_under_pruned_propagation_little_is_read_of_the_unpruned_model():
    assert statistics_of([WANDA, SOLVER, CORRECTED], "pruned") == frozenset()
    assert statistics_of([ZERO, OWL], "pruned") == {Stat.GRAD_SQ, Stat.SQ_SUM}


def test_needs_of_presets():
    assert zpruner.needs("wanda", "alps") == {Stat.SQ_SUM, Stat.GRAM}
    calibration = zpruner.calibrate(tiny.build("llama"), WINDOWS, stats=zpruner.needs("wanda"))
    stats = calibration.stats(calibration.inventory.layers[0].name)
    assert [stat for stat, _ in stats] == [Stat.SQ_SUM]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("update", "sweeps"), [("obs", 1), ({"name": "obs", "settings": {"damping": 0.02}}, 2)])
def test_the_weights_of_a_solvers_own_sweep_are_taken(monkeypatch, sequential, update, sweeps):
    swept = []

    def counted(*args, **settings):
        swept.append(args)
        return obs_sweep(*args, **settings)

    for module in (sparsegpt, obs):
        monkeypatch.setattr(module, "obs_sweep", counted)
    model, method = tiny.build("llama"), {"score": "sparsegpt", "update": update}
    if sequential:
        layers = zpruner.prune_sequentially(model, WINDOWS, method=method)
    else:
        layers = zpruner.prune(model, zpruner.calibrate(model, WINDOWS, stats=zpruner.needs(method)), method=method)
    assert len(swept) == sweeps * len(layers)


def test_a_refined_mask_is_swept_again():
    refined = composition(score="sparsegpt", update="obs", refine="swaps")
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(6, 16, generator=generator), torch.randn(16, 50, generator=generator)
    stats = zpruner.LayerStats("up", 50, 2, gram=X @ X.T)
    found = refined.prune(W, stats, zpruner.SparsityPattern.parse("2:4"))
    mask = found.mask
    assert torch.equal(found.weight, refined.apply(W, mask, stats))
    assert not torch.equal(mask.keep, SOLVER.mask(W, stats, zpruner.SparsityPattern.parse("2:4")).keep)


def test_a_setting_that_was_renamed():
    with pytest.raises(InvalidSettingError, match=r"'ria': got 'power', expected 'activation_power'. power is called"):
        composition(score="ria", settings={"power": 1.0})


@pytest.mark.parametrize("part", ["allocate", "refine", "update", "correct"])
def test_every_kind_of_part_is_found_by_name(part):
    with pytest.raises(UnknownNameError, match="'nonesuch'"):
        composition(score="wanda", **{part: {"name": "nonesuch"}})


def test_settings_of_a_correction_without_a_name():
    plain, named = composition(score="wanda", correct={"share": 0.4}), {"name": "qep", "settings": {"share": 0.4}}
    assert plain.correction == composition(score="wanda", correct=named).correction
    assert composition(score="wanda", correct="qep") == composition(score="wanda", correct={})
