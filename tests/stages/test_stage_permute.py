"""Another order through the stages: the checkpoint computes the same and is N:M as it lies; kept, resumed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import staged
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import zpruner
from stages import apply, evaluate, mask, score
from stages._deciding import deciding, instances
from zpruner.artifacts.files import checksum, read_sealed_json, write_sealed_json
from zpruner.artifacts.store import ArtifactReader, Provenance, artifact_writer
from zpruner.artifacts.work import Work
from zpruner.errors import ArtifactError, InvalidPatternError
from zpruner.evaluate.storage import satisfies
from zpruner.patterns import Permutation
from zpruner.pruning.results import PrunedLayers
from zpruner.settings.reading import read_params
from zpruner.text import read_windows

METHOD: dict[str, Any] = {
    "score": "wanda",
    "group": "row",
    "update": "least_squares",
    "permute": ["neurons", "heads", "stream"],
    "correct_bias": True,
}
RIA: dict[str, Any] = {"score": "ria", "group": "row", "permute": "channels"}
MOVED = [f"model.decoder.layers.{n}.{name}" for n in (0, 1) for name in ("fc2", "self_attn.out_proj")]


@pytest.fixture(scope="module", params=["dense", "pruned"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = staged.make(
        tmp_path_factory.mktemp("permute") / "project",
        "opt",
        methods={"mine": METHOD, "ria": RIA},
        sparsities={"s24": "2:4", "s50": 0.5},
        propagation=request.param,
    )
    staged.change_params(root, "machine.streaming", "never")
    staged.run_all(root, "gradients")
    for method in ("mine", "ria"):
        score.run(method, root)
        mask.run(method, "s24", root)
        apply.run(method, "s24", root)
    return root


def again(project: Path, tmp_path: Path, name: str, value: Any) -> Path:
    """Return a copy of a project with another setting, its variant to be made again."""
    root = tmp_path / "again"
    shutil.copytree(project, root)
    for made in ("masks", "orders", "solved", "pruned", ".work"):
        shutil.rmtree(root / "data" / made)
    staged.change_params(root, name, value)
    return root


def same(project: Path, root: Path) -> bool:
    return all(
        tiny.files_of(project / f"data/{made}/mine/s24") == tiny.files_of(root / f"data/{made}/mine/s24")
        for made in ("orders", "masks", "solved", "pruned")
    )


def measured(root: Path) -> dict[str, Any]:
    """Return what was measured of the variant, but how and where it was made."""
    found = json.loads((root / "data/evaluation/mine/s24.json").read_text(encoding="utf-8"))
    layers = json.loads((root / "data/evaluation/mine/s24.layers.json").read_text(encoding="utf-8"))
    apart = ("checksum", "content_checksum", "provenance")
    return {key: value for key, value in (found | layers).items() if key not in apart}


def made_both_ways(project: Path, label: str, method: dict[str, Any]) -> tuple[PreTrainedModel, PrunedLayers]:
    """Return the stages' checkpoint, after comparing it with what the library makes, and what that did."""
    made = AutoModelForCausalLM.from_pretrained(project / f"data/pruned/{label}/s24")
    model, _ = zpruner.load(project / "data/models/dense")
    windows = read_windows(project / "data/calibration/tokens.arrow")[0]
    settings = tiny.read_params(project)["calibration"]
    size = settings["batch_size"]
    if settings["propagation"] == "pruned":
        layers = zpruner.prune_sequentially(model, windows, method=method, sparsity="2:4", batch_size=size)
    else:
        found = zpruner.calibrate(model, windows, for_methods=method, batch_size=size)
        layers = zpruner.prune(model, found, method=method, sparsity="2:4")
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
    return made, layers


def test_the_checkpoint_is_what_the_library_makes_in_memory(project: Path) -> None:
    made, layers = made_both_ways(project, "mine", METHOD)
    assert set(layers.orders) == {*MOVED, "stream"}
    orders = ArtifactReader(project / "data/orders/mine/s24", "orders")
    for name, order in layers.orders.items():
        assert torch.equal(orders.read(name)["order"], order)
    for layer in layers:
        assert satisfies(made.get_submodule(layer.name).weight, 2, 4)
    bias = "model.decoder.layers.1.self_attn.v_proj.bias"
    dense = load_file(next((project / "data/models/dense").glob("*.safetensors")))
    assert not torch.equal(made.state_dict()[bias], dense[bias])  # moved, and shifted
    evaluate.run("mine", "s24", root=project)
    facts = measured(project)
    settings = tiny.read_params(project)["calibration"]
    assert facts["bytes"]["packed"] < facts["bytes"]["bitmask"]  # N:M as it lies
    if settings["propagation"] == "dense":
        for entry, layer in zip(facts["layers"], layers, strict=True):
            assert entry["layer_error"] == pytest.approx(layer.layer_error, rel=1e-3), layer.name
    provenance = json.loads((project / "data/evaluation/mine/s24.layers.json").read_text(encoding="utf-8"))[
        "provenance"
    ]
    assert provenance["orders"] == orders.digest


def test_channels_of_a_layer_are_n_m_in_the_order_that_is_kept(project: Path) -> None:
    made, layers = made_both_ways(project, "ria", RIA)
    orders = ArtifactReader(project / "data/orders/ria/s24", "orders")
    assert sorted(orders.files) == sorted(layer.name for layer in layers)
    as_it_lies = 0
    for layer in layers:
        weight = made.get_submodule(layer.name).weight
        assert layer.mask.order is not None
        assert torch.equal(orders.read(layer.name)["order"], layer.mask.order)
        assert satisfies(weight[:, layer.mask.order], 2, 4)
        as_it_lies += satisfies(weight, 2, 4)
    assert not layers.orders  # nothing moved in the model
    assert as_it_lies < len(layers)
    assert "gathered in that order at run time" in (project / "data/pruned/ria/s24/README.md").read_text("utf-8")
    evaluate.run("ria", "s24", root=project)
    facts = json.loads((project / "data/evaluation/ria/s24.json").read_text(encoding="utf-8"))
    assert "packed" not in facts["bytes"]  # no N:M to what reads it as it lies
    assert facts["sparsity"] == 0.5


@pytest.mark.parametrize("project", ["dense", pytest.param("pruned", marks=pytest.mark.slow)], indirect=True)
def test_made_in_memory_it_has_the_same_numbers(project: Path, tmp_path: Path) -> None:
    root = again(project, tmp_path, "evaluation.checkpoints", [])
    mask.run("mine", "s24", root)
    apply.run("mine", "s24", root)
    for where in (root, project):
        evaluate.run("mine", "s24", root=where)
    assert measured(root) == measured(project)


class Killed(BaseException):
    """Stands for a kill right after something was journalled."""


@pytest.mark.parametrize("project", [pytest.param("dense", marks=pytest.mark.slow), "pruned"], indirect=True)
@pytest.mark.parametrize("after", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_killed_and_streamed_it_is_the_same_to_the_byte(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    root = again(project, tmp_path, "machine.streaming", "always")
    record, left = Work.record, [after]

    def killed(self: Work, *args: Any) -> None:
        record(self, *args)
        left[0] -= 1
        if not left[0]:
            raise Killed

    monkeypatch.setattr(Work, "record", killed)
    with pytest.raises(Killed):
        mask.run("mine", "s24", root)
    monkeypatch.setattr(Work, "record", record)
    mask.run("mine", "s24", root)
    apply.run("mine", "s24", root)
    assert same(project, root)


@pytest.mark.parametrize("project", ["dense"], indirect=True)
class TestOrders:
    """Of orders on disk."""

    def test_other_patterns_leave_the_order(self, project: Path) -> None:
        mask.run("mine", "s50", project)
        assert not ArtifactReader(project / "data/orders/mine/s50", "orders").files
        assert len(ArtifactReader(project / "data/orders/mine/s24", "orders").files) == len(MOVED) + 1

    def test_a_change_reaches_the_method_s_variants_and_no_score(self, project: Path) -> None:
        params = read_params(project / "params.yaml")
        other = params.methods["mine"].model_copy(update={"permute": (Permutation.HEADS,)})
        changed = params.model_copy(update={"methods": {**params.methods, "mine": other}})
        reached = {i for i in instances(params) if deciding(params, i) != deciding(changed, i)}
        stages = {(stage, "mine", s) for stage in ("mask", "apply", "evaluate") for s in params.sparsities}
        assert reached == {*stages, ("report",)}

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("missing", "got no file, expected the index of orders"),
            ("altered", "checksum"),
            ("other", "orders with digest .*, expected .*, as .*masks"),
        ],
    )
    def test_damaged_orders_are_refused(self, project: Path, tmp_path: Path, damage: str, message: str) -> None:
        root = tmp_path / "damaged"
        shutil.copytree(project, root)
        folder = root / "data/orders/mine/s24"
        if damage == "missing":
            shutil.rmtree(folder)
        elif damage == "altered":
            file = folder / f"{MOVED[0]}.arrow"
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        else:
            rewrite(folder, tmp_path, lambda order: order.flip(0))
        with pytest.raises(ArtifactError, match=f"(?i){message}"):
            apply.run("mine", "s24", root)

    def test_what_is_no_order_is_refused_even_where_masks_name_it(
        self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tmp_path / "forged"
        shutil.copytree(project, root)
        folder = root / "data/orders/mine/s24"
        rewrite(folder, tmp_path, lambda order: order.flip(0))  # across heads
        digest = ArtifactReader(folder, "orders").digest
        index = ArtifactReader.__init__

        def named(self: ArtifactReader, *args: Any) -> None:
            index(self, *args)
            if args[1] == "masks":
                self.index["orders"] = digest

        monkeypatch.setattr(ArtifactReader, "__init__", named)
        with pytest.raises(ArtifactError, match="every item once, each in its run of 8"):
            apply.run("mine", "s24", root)


@pytest.mark.parametrize(("method", "order"), [("ria", " in the order that is stored of it"), ("mine", "")])
def test_a_mask_that_is_whole_and_not_n_m_is_refused(project: Path, tmp_path: Path, method: str, order: str) -> None:
    """As many kept as before, under a valid checksum: a column of one group of M changes places with another's."""
    root = tmp_path / "forged"
    shutil.copytree(project, root)
    shutil.rmtree(root / "data/.work")
    masks = ArtifactReader(root / f"data/masks/{method}/s24", "masks")
    layer = next(iter(masks.files))
    orders = ArtifactReader(root / f"data/orders/{method}/s24", "orders")
    own = orders.read(layer)["order"] if order else torch.arange(masks.read(layer)["keep"].shape[1])
    work = Work(tmp_path / "rewritten", "masks", "key")
    with artifact_writer(work, "masks", Provenance(**vars(masks.provenance))) as writer:
        for name, facts in masks.files.items():
            columns = masks.read(name)
            if name == layer:
                columns["keep"][0, own[:4]] = torch.tensor([True, True, True, False])
                columns["keep"][0, own[4:8]] = torch.tensor([True, False, False, False])
            writer.write(name, columns, kept=facts["kept"], weights=facts["weights"])
        writer.finish(masks.folder, **{"orders": masks.index["orders"]} if "orders" in masks.index else {})
    message = rf"masks/{method}/s24: got {layer} with 3 of 4 inputs kept in row 0, expected 2:4{order}\."
    with pytest.raises(ArtifactError, match=message):
        apply.run(method, "s24", root)
    assert tiny.files_of(root / "data/pruned") == tiny.files_of(project / "data/pruned")


@pytest.mark.parametrize("project", ["pruned"], indirect=True)
def test_solved_weights_that_are_not_their_mask_s_are_refused(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "forged"
    shutil.copytree(project, root)
    shutil.rmtree(root / "data/.work")
    folder = root / "data/solved/ria/s24"
    index = read_sealed_json(folder / "index.json", "an index")
    layer, facts = next(iter(index["files"].items()))
    tensors = load_file(folder / facts["file"])
    tensors["weight"][~ArtifactReader(root / "data/masks/ria/s24", "masks").read(layer)["keep"]] = 0.5
    save_file(tensors, folder / facts["file"])
    facts |= {"checksum": checksum(folder / facts["file"]), "bytes": (folder / facts["file"]).stat().st_size}
    write_sealed_json(folder / "index.json", index)
    with pytest.raises(ArtifactError, match=rf"solved/ria/s24: got weights of {layer} that its mask removes"):
        apply.run("ria", "s24", root)


def rewrite(folder: Path, tmp_path: Path, change: Any) -> None:
    """Write an artifact of orders anew, with each order changed."""
    orders = ArtifactReader(folder, "orders")
    work = Work(tmp_path / "rewritten", "orders", "key")
    with artifact_writer(work, "orders", Provenance(**vars(orders.provenance))) as writer:
        for name, facts in orders.files.items():
            writer.write(name, {"order": change(orders.read(name)["order"])}, kind=facts["kind"])
        writer.finish(folder)


def test_a_model_without_such_symmetries_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny.build("llama")
    windows = torch.randint(3, 57, (2, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    calibration = zpruner.calibrate(model, windows)
    with pytest.raises(InvalidPatternError, match=r"permute 'heads': got 8 that may change places in .*o_proj"):
        zpruner.permute_heads(model, calibration, sparsity="8:16")
