"""Variants that are quantised: what the stages store is what the library finds, and it survives a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

import zpruner
from stages import apply, calibrate, evaluate, fetch, mask, pack, score
from zpruner.artifacts.costs import Cost
from zpruner.artifacts.results import Metrics
from zpruner.artifacts.store import ArtifactReader, Provenance
from zpruner.checkpoint import SolvedWeights, SolvedWriter
from zpruner.errors import ArtifactError
from zpruner.kernels import Codes
from zpruner.model import get_weight, load_model, take_inventory
from zpruner.packed.reader import PackedFile, packed_files
from zpruner.packed.unpack import unpack

METHODS = {
    "dense_int4": {"score": "magnitude", "quantize": {"bits": 4, "order": "activation"}},
    "dense_int8": {"score": "magnitude", "quantize": {"bits": 8, "rounding": "nearest"}},
    "joint": {"score": "sparsegpt", "update": "obs", "quantize": {"bits": 4, "group": 32}},
    "swapped": {
        "score": "wanda",
        "group": "row",
        "refine": "swaps",
        "update": "least_squares",
        "correct": {},
        "quantize": {"bits": 3, "group": 128},
    },
}
SPARSITIES = {"s0": 0.0, "s24": "2:4"}


@pytest.fixture(scope="module", params=["dense", "pruned"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantized")
    tiny.make_sources(root, "gpt2" if request.param == "dense" else "llama")
    params = tiny.read_params(root)
    params["calibration"]["propagation"] = request.param
    params["methods"], params["sparsities"] = METHODS, SPARSITIES
    tiny.write_params(root, params)
    tiny.plan(root)
    for what in fetch.What:
        if what.value != "search":
            fetch.run(what, root=root)
    calibrate.run(root=root)
    return root


def _propagation(root: Path) -> str:
    return tiny.read_params(root)["calibration"]["propagation"]


def _windows(root: Path) -> Tensor:
    from zpruner.text import read_windows

    return read_windows(root / "data" / "calibration" / "tokens.arrow")[0]


@pytest.mark.parametrize(("method", "sparsity"), [("dense_int4", "s0"), ("joint", "s24"), ("swapped", "s24")])
def test_the_checkpoint_is_the_librarys_and_lies_on_the_stored_grid(project: Path, method: str, sparsity: str) -> None:
    score.run(method, root=project)
    mask.run(method, sparsity, root=project)
    apply.run(method, sparsity, root=project)
    data = project / "data"
    model = load_model(data / "models" / "dense", "auto", "cpu")
    arguments = {"method": METHODS[method], "sparsity": SPARSITIES[sparsity]}
    if _propagation(project) == "pruned":
        layers = zpruner.prune_sequentially(model, _windows(project), batch_size=2, **arguments)
    else:
        calibration = zpruner.calibrate(model, _windows(project), stats=zpruner.needs(METHODS[method]), batch_size=2)
        layers = zpruner.prune(model, calibration, **arguments)
    solved = SolvedWeights(data / "solved" / method / sparsity, Provenance(method=method))
    masks = ArtifactReader(data / "masks" / method / sparsity, "masks")
    written = load_model(data / "pruned" / method / sparsity, "auto", "cpu")
    for layer, result in zip(take_inventory(model).layers, layers, strict=True):
        quantized = solved.read_quantized(layer.name)
        assert quantized is not None
        assert torch.equal(quantized.keep, masks.read(layer.name)["keep"]), layer.name
        weight = get_weight(written, layer)
        assert torch.equal(quantized.dequantize(weight.dtype), weight), layer.name
        assert torch.equal(get_weight(model, layer), weight), layer.name
        assert torch.equal(result.mask.keep, quantized.keep)
        assert not (weight.signbit() & (weight == 0)).any()
        assert len(quantized.integers.unique()) <= 2 ** METHODS[method]["quantize"]["bits"]


def test_packing_stores_the_integers(project: Path, tmp_path: Path) -> None:
    method, sparsity = ("joint", "s24") if _propagation(project) == "dense" else ("dense_int8", "s0")
    params = tiny.read_params(project)
    params["packed"] = {"variants": [f"{method}/{sparsity}"], "rounds": 0}
    tiny.write_params(project, params)
    tiny.plan(project)
    score.run(method, root=project)
    for stage in (mask, apply, pack):
        stage.run(method, sparsity, root=project)
    folder = project / "data/packed" / method / sparsity
    unpack(folder, tmp_path)
    assert tiny.files_of(tmp_path) == tiny.files_of(project / "data/pruned" / method / sparsity)
    codes = Codes(8, 0) if method == "dense_int8" else Codes(4, 32)
    for path in packed_files(folder):
        for tensor in PackedFile(path).packed.values():
            assert (tensor.codes, tensor.masked) == (codes, sparsity != "s0")
    evaluate.run(method, sparsity, root=project)
    saved = Cost.read(project / f"data/costs/pack/{method}/{sparsity}.json", "").packed
    counted = Metrics.read(project / f"data/evaluation/{method}/{sparsity}.json", "").bytes
    assert saved is not None
    assert counted.bitmask == saved.packed < saved.dense == counted.stored


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_dense_baselines_are_rows_of_the_table(project: Path) -> None:
    for method in ("dense_int8", "dense_int4"):
        score.run(method, root=project)
        for stage in (mask, apply, evaluate):
            stage.run(method, "s0", root=project)
    evaluate.run(dense=True, root=project)
    found = {
        name: Metrics.read(project / f"data/evaluation/{name}/s0.json", "") for name in ("dense_int8", "dense_int4")
    }
    assert found["dense_int8"].layer_error < 0.1 * found["dense_int4"].layer_error
    assert found["dense_int8"].sparsity < 0.05


@pytest.mark.parametrize("project", ["pruned"], indirect=True)
def test_a_killed_run_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, sparsity = "joint", "s0"
    score.run(method, root=project)
    mask.run(method, sparsity, root=project)
    folder = project / "data" / "solved" / method / sparsity
    whole = tiny.files_of(folder)
    (project / "data" / ".work").rename(project / "data" / ".other")
    written = []

    def killed(self: SolvedWriter, layer: str, *found: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(layer)
        write(self, layer, *found)

    write = SolvedWriter.write
    monkeypatch.setattr(SolvedWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        mask.run(method, sparsity, root=project)
    monkeypatch.undo()
    mask.run(method, sparsity, root=project)
    assert tiny.files_of(folder) == whole


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_an_altered_grid_is_refused(project: Path) -> None:
    method, sparsity = "dense_int8", "s24"
    score.run(method, root=project)
    mask.run(method, sparsity, root=project)
    file = next((project / "data" / "solved" / method / sparsity).glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=file.name):
        apply.run(method, sparsity, root=project)
