"""Every family: found, calibrated, pruned, saved and loaded again, without its name in the library."""

from __future__ import annotations

from pathlib import Path

import families
import pytest
import tiny
import torch

import zpruner
from zpruner.calibration import BlockReplay
from zpruner.errors import ModelStructureError
from zpruner.methods import METHODS
from zpruner.model import get_weight, load_model, take_inventory

WITHOUT_GRADIENT = {
    # An indexer's hard choice of tokens has no gradient, and windows this short leave a compressor out.
    "deepseek_v32": ["*.indexer.*"],
    "deepseek_v4": ["*.compressor.*"],
    **{family: ["*.indexer.*"] for family in ("axk2", "dots3_note_text", "glm_moe_dsa", "hy_v4", "qwen4_exp_text")},
    "minimax_m3_vl_text": ["*.indexer.*"],
}
WINDOWS = torch.randint(3, families.VOCABULARY, (4, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "family", [*families.FAMILIES, *(pytest.param(family, marks=pytest.mark.slow) for family in families.OTHERS)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_family_goes_through_the_whole_chain(family: str, tmp_path: Path) -> None:
    model = families.build(family)
    dense = zpruner.perplexity(model, WINDOWS)
    inventory = take_inventory(model)
    if family in families.FAMILIES:
        assert inventory.n_blocks == 2
        # What multiplies activations is pruned; only convolutions, state matrices, biases of experts and routers stay.
        for name, reason in inventory.skipped:
            assert "conv1d" in name or name.endswith(("A_log", "_bias")) or "chooses among the experts" in reason, name
    if family == "inkling2_text":  # the decoder itself sums what blocks put out, and gives later ones the sums
        with pytest.raises(ModelStructureError, match="changes with what earlier blocks put out"):
            BlockReplay(model, inventory, WINDOWS, batch_size=2)
    else:
        BlockReplay(model, inventory, WINDOWS, batch_size=2)  # refuses where replaying does not work
    calibration = zpruner.calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=2)
    layers = zpruner.prune(model, calibration, method="sparsegpt", sparsity="2:4")
    assert {layer.sparsity for layer in layers} == {0.5}
    pruned = zpruner.perplexity(model, WINDOWS)
    assert pruned != dense
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert zpruner.perplexity(again, WINDOWS) == pytest.approx(pruned, rel=1e-6)
    for layer in inventory.layers:
        weight = get_weight(again, layer)
        kept = (weight.reshape(weight.shape[0], -1, 4) != 0).sum(dim=-1)
        assert int(kept.max()) <= 2, layer.name  # 2:4 along the inputs, also where the weight is stored transposed


@pytest.mark.slow
@pytest.mark.parametrize("family", families.ALL)
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_method_prunes_every_family(family: str, sparsity: float | str, tmp_path: Path) -> None:
    dense, ignore = families.build(family), WITHOUT_GRADIENT.get(family, [])
    if ignore:
        with pytest.raises(ModelStructureError, match="zero for every weight"):
            zpruner.calibrate(dense, WINDOWS, stats=tiny.WITH_GRADIENTS, batch_size=2)
    calibration = zpruner.calibrate(dense, WINDOWS, stats=tiny.EVERY, batch_size=2, ignore=ignore)
    weights = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    for name in METHODS.names():
        settings = {"formula": "mul(W, sqrt(X))"} if name == "expression" else {}
        dense.load_state_dict(weights)
        layers = zpruner.prune(dense, calibration, method={"score": name, "settings": settings}, sparsity=sparsity)
        removed = sum(layer.sparsity * layer.mask.keep.numel() for layer in layers)
        assert removed / sum(layer.mask.keep.numel() for layer in layers) == pytest.approx(0.5, abs=0.02), name
        pruned = zpruner.perplexity(dense, WINDOWS)
        dense.save_pretrained(tmp_path / name)
        assert zpruner.perplexity(load_model(tmp_path / name, device="cpu"), WINDOWS) == pytest.approx(pruned, rel=1e-6)
