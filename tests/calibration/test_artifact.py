import sys
from typing import Any

import pytest
import tiny
import torch

from zpruner.artifacts.store import Provenance, artifact_writer
from zpruner.artifacts.work import Work
from zpruner.calibration import (
    Activations,
    Calibration,
    Collection,
    Snapshots,
    calibrate,
    collect,
    finish_activations,
    layer_from_json,
    write_inputs,
)
from zpruner.errors import ArtifactError
from zpruner.model import get_weight, take_inventory
from zpruner.types import Stat

WINDOWS = torch.randint(0, tiny.VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
PROVENANCE = Provenance(model="m", model_hash="h", calibration_hash="c", dtype="float32", windows=6, tokens=144)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def calibration():
    return calibrate(tiny.build("llama"), WINDOWS, stats=tiny.WITH_GRAM, ignore=["*.0.mlp.*"])


def write(root, calibration, weight=None):
    with artifact_writer(Work(root / "work", "calibrate", "key"), "activations", PROVENANCE) as writer:
        write_inputs(writer, calibration.collection, weight)
        finish_activations(writer, root / "out", calibration.inventory)
    return root / "out"


def test_statistics_come_back(tmp_path, calibration):
    found = Activations(write(tmp_path, calibration), PROVENANCE)
    assert (found.inventory, found.provenance) == (calibration.inventory, PROVENANCE)
    assert [layer.name for layer in found.layers] == [layer.name for layer in calibration.inventory.layers]
    for layer in found.layers:
        got, expected = found.stats(layer.name), calibration.stats(layer.name)
        assert (got.layer, got.tokens, got.windows) == (layer.name, 144, 6)
        for name in ("sq_sum", "abs_sum", "max_abs", "gram"):
            assert torch.equal(getattr(got, name), getattr(expected, name))
            assert getattr(got, name).dtype == getattr(expected, name).dtype


def test_the_energy_of_every_output_comes_back(tmp_path, calibration):
    model = tiny.build("llama")
    layers = {layer.name: layer for layer in calibration.inventory.layers}
    found = Activations(write(tmp_path, calibration, lambda name: get_weight(model, layers[name])), PROVENANCE)
    outputs = dict.fromkeys(layers, 0.0)

    def summing(name):
        def hook(module, inputs, output):
            outputs[name] += float(output.double().square().sum())

        return hook

    for name in layers:
        model.get_submodule(name).register_forward_hook(summing(name))
    with torch.no_grad():
        model(input_ids=WINDOWS.long())
    energies = {name: found.stats(name).to("cpu").energy for name in layers}
    assert energies == pytest.approx(outputs, rel=1e-5)
    assert {Activations(write(tmp_path / "without", calibration)).stats(name).energy for name in layers} == {None}


def test_shared_inputs_are_stored_once(tmp_path, calibration):
    folder = write(tmp_path, calibration)
    files = sorted(p.name for p in folder.glob("*.arrow"))
    assert len(files) == len(calibration.collection.accumulators) == 3 * 4 - 2
    assert "model.layers.1.self_attn.q_proj.arrow" in files
    assert "model.layers.1.self_attn.k_proj.arrow" not in files


def test_statistics_of_another_model_or_calibration(tmp_path, calibration):
    folder = write(tmp_path, calibration)
    made_from: dict[str, Any]
    for field in ("model_hash", "calibration_hash"):
        made_from = {field: "other"}
        with pytest.raises(ArtifactError, match=rf"{field} .*another model, calibration"):
            Activations(folder, Provenance(**made_from))


def test_one_damaged_file_spoils_its_layers_only(tmp_path, calibration):
    folder = write(tmp_path, calibration)
    path = folder / "model.layers.1.self_attn.q_proj.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    found = Activations(folder)
    for layer in ("q_proj", "k_proj", "v_proj"):
        with pytest.raises(ArtifactError, match=r"q_proj\.arrow: got checksum"):
            found.stats(f"model.layers.1.self_attn.{layer}")
    found.stats("model.layers.2.self_attn.k_proj")


def test_an_artifact_without_files_has_no_statistics(tmp_path, calibration):
    folder = write(tmp_path, Calibration(calibration.inventory, Collection()))
    with pytest.raises(ArtifactError, match=r"no statistics of model\.layers\.1\.mlp\.up_proj"):
        Activations(folder).stats("model.layers.1.mlp.up_proj")


def test_a_layer_entry_of_another_shape(tmp_path):
    with pytest.raises(ArtifactError, match="a layer entry with"):
        layer_from_json({"name": "x", "colour": 3}, tmp_path)


@pytest.mark.parametrize("stats", [tiny.WITH_GRAM, {Stat.MAX_ABS}])
def test_a_snapshot_goes_on_to_identical_sums(tmp_path, stats):
    model = tiny.build("llama")
    inventory = take_inventory(model)
    whole = Collection()
    list(collect(model, inventory, WINDOWS, whole, stats=stats, batch_size=2))
    with Work(tmp_path, "calibrate", "key") as work:
        snapshots = Snapshots(work, 0.0)
        collection = snapshots.restore(CPU)
        assert (collection.windows, collection.accumulators) == (0, {})
        for windows in collect(model, inventory, WINDOWS, collection, stats=stats, batch_size=2):
            snapshots.save(collection)
            assert [p.name for p in work.scratch.iterdir()] == [f"snapshot-{windows:06d}-0.safetensors"]
            if windows == 4:
                break
    with Work(tmp_path, "calibrate", "key") as work:
        restored = Snapshots(work, 0.0).restore(CPU)
    assert restored.windows == 4
    assert list(collect(model, inventory, WINDOWS, restored, stats=stats, batch_size=2)) == [6]
    assert restored.owner == whole.owner
    assert list(restored.accumulators) == list(whole.accumulators)
    for name, sums in whole.accumulators.items():
        assert restored.accumulators[name].tokens == sums.tokens
        assert all(torch.equal(v, restored.accumulators[name].state()[k]) for k, v in sums.state().items())


@pytest.mark.parametrize("damaged", [0, 1, -1])
def test_a_damaged_snapshot_is_not_used(tmp_path, damaged):
    model = tiny.build("llama")
    with Work(tmp_path, "calibrate", "key") as work:
        collection = Collection()
        next(collect(model, take_inventory(model), WINDOWS, collection, stats=tiny.WITH_GRAM, batch_size=2))
        Snapshots(work, 0.0, part_bytes=20_000).save(collection)
        paths = sorted(work.scratch.iterdir())
    assert 3 <= len(paths) < len(collection.accumulators)
    sizes = {path: path.stat().st_size for path in paths}
    largest = max(sums.state()["gram"].nbytes for sums in collection.accumulators.values())
    assert max(sizes.values()) < 20_000 + largest + 2_000
    with Work(tmp_path, "calibrate", "key") as work:
        assert Snapshots(work, 0.0).restore(CPU).windows == 2
    data = bytearray(paths[damaged].read_bytes())
    data[-1] ^= 1
    paths[damaged].write_bytes(data)
    with Work(tmp_path, "calibrate", "key") as work:
        assert Snapshots(work, 0.0).restore(CPU).windows == 0


def test_snapshots_are_taken_now_and_then(tmp_path):
    with Work(tmp_path, "calibrate", "key") as work:
        Snapshots(work, 1000.0).save(Collection(windows=3))
        assert not work.items()


def test_the_first_large_snapshot_waits_until_it_is_worth_its_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sys.modules[Snapshots.__module__], "monotonic", lambda: now[0])
    model = tiny.build("llama")
    collection = Collection()
    next(collect(model, take_inventory(model), WINDOWS, collection, stats=tiny.WITH_GRAM, batch_size=2))
    size = sum(value.nbytes for sums in collection.accumulators.values() for value in sums.state().values())
    with Work(tmp_path, "calibrate", "key") as work:
        snapshots = Snapshots(work, 1e-9)
        now[0] = 9 * size / 1e9
        snapshots.save(collection)
        assert not work.items()
        now[0] = 11 * size / 1e9
        snapshots.save(collection)
        assert work.items()
