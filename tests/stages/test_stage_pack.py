"""The stage pack: the packed checkpoint of the variants that params name, and what it cost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import staged
import tiny
import torch
from safetensors.torch import load_file
from staged import METHOD, SPARSITY

from stages import evaluate, pack
from zpruner.artifacts.costs import Cost
from zpruner.artifacts.results import Details, Metrics
from zpruner.checkpoint import Checkpoint
from zpruner.errors import ArtifactError, InvalidSettingError
from zpruner.packed.unpack import unpack
from zpruner.settings.reading import read_params

CHOSEN = {"variants": [f"{METHOD}/*"], "rounds": 1, "new_tokens": 2, "prefill": 8}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = staged.make(tmp_path_factory.mktemp("project"), request.param)
    params = tiny.read_params(root)
    params["packed"] = CHOSEN
    params["evaluation"]["continuation"] = {"prompt": "the quick", "new_tokens": 3}
    tiny.write_params(root, params)
    staged.run_all(root, "apply")
    pack.run(METHOD, SPARSITY, root)
    return root


def test_the_pruned_checkpoint_comes_back(project: Path, tmp_path: Path) -> None:
    unpack(project / "data/packed" / METHOD / SPARSITY, tmp_path)
    assert tiny.files_of(tmp_path) == tiny.files_of(project / "data/pruned" / METHOD / SPARSITY)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"methods.{METHOD}.group", "layer", r"got settings '.*', expected '.*\"group\": \"layer\"'?"),
        (f"sparsities.{SPARSITY}", 0.5, "got pattern '2:4', expected '0.5'"),
        ("calibration.propagation", "pruned", "got propagation 'dense', expected 'pruned'"),
        ("model.source", "source/../source/model", "got model 'source/model', expected 'source/../source/model'"),
    ],
)
def test_a_checkpoint_of_earlier_settings_is_not_packed(
    project: Path, key: str, value: object, said: str, tmp_path: Path
) -> None:
    root = shutil.copytree(project, tmp_path / "project", symlinks=True)
    before = tiny.files_of(root / "data" / "packed")
    staged.change_params(root, key, value)
    with pytest.raises(ArtifactError, match=said):
        pack.run(METHOD, SPARSITY, root)
    assert tiny.files_of(root / "data" / "packed") == before


def test_a_packed_checkpoint_is_no_pruned_one(project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(project, tmp_path / "project", symlinks=True)
    shutil.rmtree(root / "data/pruned")
    shutil.copytree(root / "data/packed", root / "data/pruned")
    for stage in (pack, evaluate):
        with pytest.raises(ArtifactError, match="got role 'packed', expected 'pruned'"):
            stage.run(METHOD, SPARSITY, root=root)


def test_what_is_kept_is_what_the_mask_says(project: Path) -> None:
    folder = project / "data/packed" / METHOD / SPARSITY
    masks = sorted((project / "data/masks" / METHOD / SPARSITY).glob("*.arrow"))
    offsets = {}
    for path in folder.glob("*.safetensors"):
        offsets |= {name: value for name, value in load_file(path).items() if name.endswith("_offsets")}
    assert len(offsets) == len(masks)
    assert not list(folder.glob("negative_zeros*"))
    sizes = {name: len(found) - 1 for name, found in offsets.items()}
    assert all((found.diff() == found[1]).all() for found in offsets.values()), "2:4 keeps as many in every row"
    assert all(size > 0 for size in sizes.values())


def test_the_cost_says_what_it_saves_and_how_fast_it_is(project: Path) -> None:
    cost = Cost.read(project / f"data/costs/pack/{METHOD}/{SPARSITY}.json", "")
    assert cost.packed is not None
    assert cost.packed.packed < cost.packed.dense
    assert cost.packed.speed is not None
    assert [len(found) for found in (cost.packed.speed.decode, cost.packed.speed.torch_prefill)] == [1, 1]
    card = (project / "data/packed" / METHOD / SPARSITY / "README.md").read_text()
    assert "The zeros are left out" in card


def test_a_variant_that_is_not_named_leaves_a_manifest(tmp_path: Path) -> None:
    root = staged.run_all(staged.make(tmp_path), "apply")
    pack.run(METHOD, SPARSITY, root)
    folder = root / "data/packed" / METHOD / SPARSITY
    assert [path.name for path in folder.iterdir()] == ["zpruner.json"]
    assert Checkpoint(folder).manifest["method"] == METHOD
    assert Cost.read(root / f"data/costs/pack/{METHOD}/{SPARSITY}.json", "").packed is None


@pytest.mark.parametrize(
    ("packed", "checkpoints", "said"),
    [
        ({"variants": ["wandaa/*"]}, "all", "packed.variants: got 'wandaa/\\*', which matches no variant"),
        ({"variants": "wanda/s50"}, ["zpruner/*"], "'wanda/s50', whose checkpoint is not written"),
        ({"variants": ["wanda/*"], "rounds": -1}, "all", "packed.rounds"),
        ({"variant": ["wanda/*"]}, "all", "packed"),
    ],
)
def test_settings_that_cannot_be_are_named(packed: object, checkpoints: object, said: str, tmp_path: Path) -> None:
    tiny.make_sources(tmp_path)
    params = tiny.read_params(tmp_path)
    params["packed"] = packed
    params["evaluation"]["checkpoints"] = checkpoints
    tiny.write_params(tmp_path, params)
    with pytest.raises(InvalidSettingError, match=said):
        read_params(tmp_path / "params.yaml")


def test_another_run_gives_the_same_bytes(project: Path) -> None:
    folder = project / "data/packed" / METHOD / SPARSITY
    before = tiny.files_of(folder)
    torch.manual_seed(5)
    pack.run(METHOD, SPARSITY, project)
    assert tiny.files_of(folder) == before


def test_the_packed_checkpoint_takes_and_says_what_its_evaluation_tells(project: Path) -> None:
    evaluate.run(METHOD, SPARSITY, root=project)
    details = Details.read(project / f"data/evaluation/{METHOD}/{SPARSITY}.layers.json", "")
    found = Cost.read(project / f"data/costs/pack/{METHOD}/{SPARSITY}.json", "").packed
    assert found is not None
    metrics = Metrics.read(project / f"data/evaluation/{METHOD}/{SPARSITY}.json", "")
    assert metrics.bytes.bitmask == found.packed, "counted before anything was packed"
    assert found.continuation == details.continuation
    assert details.continuation is not None
    assert details.continuation.prompt == "the quick"
