"""The stages under pruned propagation: they reproduce from what is stored, and continue where they were."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import zpruner
from stages import apply, calibrate, fetch, mask, score
from zpruner.artifacts.store import ArtifactReader, Provenance
from zpruner.calibration import BlockReplay
from zpruner.checkpoint import SolvedWeights
from zpruner.errors import ArtifactError
from zpruner.model import get_weight, load_model, take_inventory
from zpruner.pruning.composition import Composition, Pruned
from zpruner.types import LayerStats, SparsityPattern

METHODS: dict[str, Any] = {
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
def test_the_stages_solve_the_weights_that_the_library_does(
    sequential_project: Path, method: str, sparsity: str
) -> None:
    root = sequential_project
    mask.run(method, sparsity, root=root)
    apply.run(method, sparsity, root=root)
    data = root / "data"
    model = load_model(data / "models" / "dense", "auto", "cpu")
    windows = _windows(root)
    pattern: Any = {"s50": 0.5, "s24": "2:4"}[sparsity]
    layers = zpruner.prune_sequentially(model, windows, method=METHODS[method], sparsity=pattern, batch_size=2)
    solved = SolvedWeights(data / "solved" / method / sparsity, Provenance(method=method, propagation="pruned"))
    masks = ArtifactReader(data / "masks" / method / sparsity, "masks")
    written = load_model(data / "pruned" / method / sparsity, "auto", "cpu")
    for layer, result in zip(take_inventory(model).layers, layers, strict=True):
        assert torch.equal(result.mask.keep, masks.read(layer.name)["keep"]), layer.name
        weight = get_weight(model, layer)
        assert torch.equal(solved.read(layer, weight), weight), layer.name
        assert torch.equal(get_weight(written, layer), weight), layer.name
    assert not (data / "activations" / "pruned").exists()
    size = sum(path.stat().st_size for path in (data / "solved" / method / sparsity).glob("*.safetensors"))
    weights = sum(4 * layer.out_features * layer.in_features for layer in take_inventory(model).layers)
    assert weights < size < 1.2 * weights, "weights and headers, no statistics"


def test_weights_of_another_variant_are_refused(sequential_project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sequential_project, tmp_path / "project")
    for sparsity in ("s50", "s24"):
        mask.run("wanda", sparsity, root=root)
    solved = root / "data" / "solved" / "wanda"
    shutil.rmtree(solved / "s50")
    shutil.copytree(solved / "s24", solved / "s50")
    with pytest.raises(ArtifactError, match=r"solved/wanda/s50.*pattern '2:4'"):
        apply.run("wanda", "s50", root=root)


def _windows(root: Path) -> Tensor:
    from zpruner.text import read_windows

    return read_windows(root / "data" / "calibration" / "tokens.arrow")[0]


@pytest.fixture
def two_projects(sequential_project: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return two copies of the project before its masks; in the first they have been made."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for root in (undisturbed, killed):
        shutil.copytree(sequential_project, root)
        for name in ("masks", "solved", ".work"):
            shutil.rmtree(root / "data" / name, ignore_errors=True)
    mask.run("swapped", "s50", root=undisturbed)
    return undisturbed, killed


def goes_on(undisturbed: Path, killed: Path) -> None:
    """Interrupt a run that is about to be, run it again, and compare."""
    with pytest.raises(KeyboardInterrupt):
        mask.run("swapped", "s50", root=killed)
    assert not (killed / "data" / "masks").exists()
    assert not (killed / "data" / "solved").exists()
    mask.run("swapped", "s50", root=killed)
    for name in ("masks", "solved"):
        assert tiny.files_of(killed / "data" / name) == tiny.files_of(undisturbed / "data" / name)


def test_an_interrupted_run_goes_on_at_its_first_unfinished_block(
    two_projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = BlockReplay.measure
    measured: list[int] = []

    def die_at_block_2(self: BlockReplay, block: int, *how: Any) -> object:
        measured.append(block)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, block, *how)

    monkeypatch.setattr(BlockReplay, "measure", die_at_block_2)
    goes_on(*two_projects)
    assert measured == [0, 1, 2, 2]


def test_within_a_block_it_goes_on_at_the_first_unfinished_layer(
    two_projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = Composition.prune
    pruned: list[str] = []

    def die_at_the_twelfth(
        self: Composition, dense: Tensor, stats: LayerStats, pattern: SparsityPattern, biased: bool = False
    ) -> Pruned:
        pruned.append(stats.layer)
        if len(pruned) == 12:
            raise KeyboardInterrupt
        return prune(self, dense, stats, pattern, biased=biased)

    monkeypatch.setattr(Composition, "prune", die_at_the_twelfth)
    goes_on(*two_projects)
    assert len(pruned) == 22
    assert pruned[11] == pruned[12]
