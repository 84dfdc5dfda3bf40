"""The stages under pruned propagation: they reproduce from what is stored, and go on where they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

import zpruner
from stages import apply, calibrate, fetch, mask, score
from zpruner.artifacts.store import ArtifactReader
from zpruner.calibration import Activations, BlockReplay
from zpruner.model import get_weight, load_model
from zpruner.pruning.composition import Composition, compose
from zpruner.settings.params import MethodSettings
from zpruner.types import LayerStats, Mask

METHODS = {
    "wanda": {"score": "wanda", "group": "row"},
    "best": {"score": "alps", "update": "least_squares"},
    "swapped": {"score": "wanda", "group": "row", "refine": "swaps", "update": "obs", "correct": {}},
}


@pytest.fixture(scope="module")
def sequential_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with pruned propagation, up to its scores."""
    root = tmp_path_factory.mktemp("sequential")
    tiny.make_sources(root)
    params = tiny.read_params(root)
    params["calibration"]["propagation"] = "pruned"
    params["methods"] = METHODS
    tiny.write_params(root, params)
    tiny.plan(root)
    for what in (fetch.What.model, fetch.What.calibration):
        fetch.run(what, root=root)
    calibrate.run(root=root)
    for method in METHODS:
        score.run(method, root=root)
    return root


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("sparsity", ["s50", "s24"])
def test_stored_statistics_give_the_same_masks_and_weights_again(
    sequential_project: Path, method: str, sparsity: str
) -> None:
    root = sequential_project
    mask.run(method, sparsity, root=root)
    apply.run(method, sparsity, root=root)
    data = root / "data"
    # In memory, from the same windows.
    model = load_model(data / "models" / "dense", "auto", "cpu")
    windows = _windows(root)
    pattern = {"s50": 0.5, "s24": "2:4"}[sparsity]
    layers = zpruner.prune_sequentially(model, windows, method=METHODS[method], sparsity=pattern, batch_size=2)
    # From the stored statistics, scores and masks once more.
    stored = Activations(data / "activations" / "pruned" / method / sparsity)
    masks = ArtifactReader(data / "masks" / method / sparsity, "masks")
    dense = load_model(data / "models" / "dense", "auto", "cpu")
    written = load_model(data / "pruned" / method / sparsity, "auto", "cpu")
    composition = compose(MethodSettings(**METHODS[method]))
    parsed = zpruner.SparsityPattern.parse(pattern)
    for layer, result in zip(stored.layers, layers, strict=True):
        stats, weight = stored.stats(layer.name), get_weight(dense, layer)
        weight = composition.correct(weight, stats)
        again = composition.mask(weight, stats, parsed)
        kept = masks.read(layer.name)["keep"]
        assert torch.equal(again.keep, kept), layer.name
        assert torch.equal(result.mask.keep, kept), layer.name
        assert torch.equal(get_weight(written, layer), get_weight(model, layer)), layer.name
        assert torch.equal(get_weight(written, layer), composition.apply(weight, again, stats)), layer.name
        assert (stats.cross is not None) == (method == "swapped")


def _windows(root: Path) -> Tensor:
    from zpruner.text import read_windows

    return read_windows(root / "data" / "calibration" / "tokens.arrow")[0]


@pytest.fixture
def two_projects(sequential_project: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return two copies of the project before its masks; in the first they have been made."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for root in (undisturbed, killed):
        shutil.copytree(sequential_project, root)
        for name in ("masks", "activations/pruned", ".work"):
            shutil.rmtree(root / "data" / name, ignore_errors=True)
    mask.run("swapped", "s50", root=undisturbed)
    return undisturbed, killed


def goes_on(undisturbed: Path, killed: Path) -> None:
    """Interrupt a run that is about to be, run it again, and compare."""
    with pytest.raises(KeyboardInterrupt):
        mask.run("swapped", "s50", root=killed)
    assert not (killed / "data" / "masks").exists()
    assert not (killed / "data" / "activations" / "pruned").exists()
    mask.run("swapped", "s50", root=killed)
    for name in ("masks", "activations/pruned"):
        assert tiny.files_of(killed / "data" / name) == tiny.files_of(undisturbed / "data" / name)


def test_an_interrupted_run_goes_on_at_its_first_unfinished_block(
    two_projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = BlockReplay.measure
    measured: list[int] = []

    def die_at_block_2(self: BlockReplay, block: int, gram: bool, min_expert_tokens: int) -> object:
        measured.append(block)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, block, gram, min_expert_tokens)

    monkeypatch.setattr(BlockReplay, "measure", die_at_block_2)
    goes_on(*two_projects)
    assert measured == [0, 1, 2, 2]


def test_within_a_block_it_goes_on_at_the_first_unfinished_layer(
    two_projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Composition.apply
    pruned: list[str] = []

    def die_at_the_twelfth(self: Composition, weight: Tensor, keep: Mask, stats: LayerStats | None) -> Tensor:
        pruned.append(keep.layer)
        if len(pruned) == 12:
            raise KeyboardInterrupt
        return apply(self, weight, keep, stats)

    monkeypatch.setattr(Composition, "apply", die_at_the_twelfth)
    goes_on(*two_projects)
    assert len(pruned) == 22
    assert pruned[11] == pruned[12]
