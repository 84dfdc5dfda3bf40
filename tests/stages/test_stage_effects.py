"""How much rows count in what their block puts out: collected where a listed method asks, read by the mask stage."""

import json
import shutil

import pytest
import staged
from staged import METHOD

from zpruner.artifacts.files import read_sealed_json, write_sealed_json
from zpruner.calibration import EFFECTS, Activations
from zpruner.errors import ArtifactError
from zpruner.pruning.presets import PRESETS
from zpruner.types import Stat

EVERY = {"score": "admm", "settings": {"shrinkage": 0.2, "effect": 0.5}}


def test_they_are_collected_where_a_method_asks(tmp_path):
    root = staged.run_all(staged.make(tmp_path), "calibrate")
    assert Activations(root / "data" / "activations" / "dense").effect("model.layers.0.mlp.up_proj") is None
    other = staged.run_all(staged.make(tmp_path / "other", methods={METHOD: EVERY}), "calibrate")
    found = Activations(other / "data" / "activations" / "dense")
    for layer in found.layers:
        effect = found.stats(layer.name).require(Stat.EFFECT)
        assert effect.shape == (layer.out_features,)
        assert bool((effect > 0).all())
    planned = json.loads((other / "data" / "plan" / "calibrate.json").read_text())["settings"]["statistics"]
    assert "effect" in planned


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
def test_blocks_read_one_by_one_give_the_same_bytes(tmp_path, propagation):
    whole = staged.make(tmp_path / "whole", propagation=propagation, methods={METHOD: EVERY})
    staged.change_params(whole, "machine.streaming", "never")
    staged.run_all(whole, "calibrate")
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "data" / "activations")
    shutil.rmtree(parts / "data" / ".work")
    staged.change_params(parts, "machine.streaming", "always")
    staged.INSTANCES["calibrate"](parts)
    assert staged.artifacts(parts) == staged.artifacts(whole)
    assert (parts / "data" / "activations" / "dense" / f"{EFFECTS}.arrow").is_file()


def test_as_many_as_the_layers_have_rows(tmp_path):
    root = staged.run_all(staged.make(tmp_path, methods={METHOD: dict(PRESETS["best"])}), "calibrate")
    folder = root / "data" / "activations" / "dense"
    index = read_sealed_json(folder / "index.json", "an index")
    index["layers"][0]["out_features"] += 1
    write_sealed_json(folder / "index.json", index)
    found = Activations(folder)
    with pytest.raises(ArtifactError, match=r"effects\.arrow: got torch\.float32 of shape .* as 'effect'"):
        found.stats(found.layers[0].name)
