"""Passes over a block that take results from earlier ones: layers come out with the same bits, for less work."""

import families
import pytest
import tiny
import torch
from counting import Counting
from test_submodules import CORRECTED, solved

from zpruner.errors import ModelStructureError


def alike(make, method, monkeypatch):
    """Prune the same model with and without recalling; return how many products that took."""
    counts, found = [], []
    for room in (0, 1 << 29):
        monkeypatch.setattr("zpruner.calibration.replay.RECALLED", room)
        with Counting() as counting:
            found.append(solved(make(), method))
        counts.append(counting.count)
    without, with_it = found
    assert without.keys() == with_it.keys()
    for name, layer in without.items():
        assert torch.equal(layer.weight, with_it[name].weight), name
        assert torch.equal(layer.mask.keep, with_it[name].mask.keep), name
    return counts


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_layers_come_out_the_same(family, monkeypatch):
    without, with_it = alike(lambda: tiny.build(family), CORRECTED, monkeypatch)
    assert with_it < 0.75 * without


WANDA = {"score": "wanda", "group": "row", "update": "least_squares", "measure": "submodule"}


@pytest.mark.parametrize("part", [{}, {"correct": {"stream": 0.5}}, {"tune": {"batch": 1}}], ids=str)
def test_with_every_part_that_passes_a_block(part, monkeypatch):
    alike(lambda: tiny.build("llama"), {**WANDA, **part}, monkeypatch)


FEW = ("mixtral", "gpt_oss")
REST = [pytest.param(family, marks=pytest.mark.slow) for family in families.ALL if family not in FEW]


@pytest.mark.parametrize("family", [*FEW, *REST])
def test_in_every_family(family, monkeypatch):
    try:
        alike(lambda: families.build(family), WANDA, monkeypatch)
    except ModelStructureError as error:
        pytest.skip(str(error))  # a family that is refused
