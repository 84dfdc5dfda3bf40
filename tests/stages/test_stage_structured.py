"""Structured patterns through the stages: smaller checkpoints, resumed, streamed, made in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import staged
import tiny
import torch
from transformers import AutoModelForCausalLM

import zpruner
from stages import apply, check, evaluate, mask, pack, report, score
from zpruner.artifacts.costs import Cost
from zpruner.artifacts.layout import Layout
from zpruner.artifacts.work import Work
from zpruner.cli import main
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.kernels import Codes
from zpruner.packed.reader import PackedFile, packed_files
from zpruner.packed.unpack import unpack
from zpruner.packed.variant import counterparts
from zpruner.report.load import load_project
from zpruner.report.offers import offers
from zpruner.settings.reading import read_params

METHODS = {
    "summed": {"score": "wanda"},
    "ranked": {
        "score": "alps",
        "structures": {"neurons": "obs", "groups": "flap", "blocks": "cosine"},
        "update": "least_squares",
        "correct": {},
        "measure": "submodule",
    },
}
SPARSITIES = {"w25": "neurons:0.25", "mix": "neurons:0.25 groups:0.5 blocks:1/3"}
VARIANTS = [("summed", "w25"), ("ranked", "mix")]


@pytest.fixture(scope="module", autouse=True)
def found_once() -> Iterator[None]:
    with staged.couplings_found_once("llama"):
        yield


@pytest.fixture(scope="module", params=["dense", "pruned"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with two structured variants, evaluated."""
    root = staged.make(
        tmp_path_factory.mktemp("structured") / "project",
        methods=METHODS,
        sparsities=SPARSITIES,
        propagation=request.param,
    )
    staged.change_params(root, "machine.streaming", "never")
    staged.run_all(root, "gradients")
    evaluate.run(dense=True, root=root)
    run_variants(root)
    return root


def run_variants(root: Path) -> None:
    for method, sparsity in VARIANTS:
        score.run(method, root)
        mask.run(method, sparsity, root)
        apply.run(method, sparsity, root)
        evaluate.run(method, sparsity, root=root)


def again(project: Path, tmp_path: Path, name: str, value: Any) -> Path:
    """Return a copy of a project with another setting, its variants to be made again."""
    root = tmp_path / "again"
    shutil.copytree(project, root)
    for made in ("scores", "masks", "solved", "pruned", ".work"):
        shutil.rmtree(root / "data" / made)
    staged.change_params(root, name, value)
    tiny.plan(root)
    return root


def metrics(root: Path, method: str, sparsity: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"data/evaluation/{method}/{sparsity}.json").read_text())
    return {key: value for key, value in found.items() if key != "checksum"}


def test_the_checkpoint_is_an_ordinary_smaller_one(project: Path) -> None:
    dense = AutoModelForCausalLM.from_pretrained(project / "data/models/dense")
    for (method, sparsity), sizes in zip(VARIANTS, [(36, 4, 2, 3), (36, 2, 1, 2)], strict=True):
        model = AutoModelForCausalLM.from_pretrained(project / f"data/pruned/{method}/{sparsity}")
        config, found = model.config, metrics(project, method, sparsity)
        assert sizes == (
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.num_hidden_layers,
        )
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters == found["parameters"] < sum(p.numel() for p in dense.parameters())
        assert found["bytes"]["stored"] == parameters * next(model.parameters()).element_size()
        assert found["bytes"].keys() == {"stored", "read"}
        layers = json.loads((project / f"data/evaluation/{method}/{sparsity}.layers.json").read_text())["layers"]
        assert len(layers) == 21  # every layer of the dense model, those that are gone with an error of 1
        gone = [layer for layer in layers if layer["sparsity"] == 1.0]
        assert [layer["layer_error"] for layer in gone] == [1.0] * len(gone)
        assert len(gone) == (7 if sparsity == "mix" else 0)
        whole = sum(layer["weights"] for layer in layers)
        assert found["sparsity"] == pytest.approx(
            1 - sum((1 - la["sparsity"]) * la["weights"] for la in layers) / whole
        )


def test_streamed_it_is_the_same_to_the_byte(project: Path, tmp_path: Path) -> None:
    root = again(project, tmp_path, "machine.streaming", "always")
    run_variants(root)
    assert staged.artifacts(root) == staged.artifacts(project)


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_made_in_memory_it_has_the_same_numbers(project: Path, tmp_path: Path) -> None:
    root = again(project, tmp_path, "evaluation.checkpoints", [])
    run_variants(root)
    for variant in VARIANTS:
        assert metrics(root, *variant) == metrics(project, *variant)
        assert not list((root / "data/pruned" / variant[0] / variant[1]).glob("*.safetensors"))


def main_ends(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code


class Killed(BaseException):
    """Stands for a kill right after something was journalled."""


@pytest.mark.parametrize("project", ["pruned"], indirect=True)
@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_a_killed_stage_ends_with_the_same_bytes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    root = again(project, tmp_path, "machine.device", "cpu")
    method, sparsity = VARIANTS[1]
    score.run(method, root)
    record = Work.record
    for stage in (mask, apply):
        left = [after]

        def killed(self: Work, *args: Any, left: list[int] = left) -> None:
            record(self, *args)
            left[0] -= 1
            if not left[0]:
                raise Killed

        monkeypatch.setattr(Work, "record", killed)
        try:
            stage.run(method, sparsity, root)
        except Killed:
            monkeypatch.setattr(Work, "record", record)
            stage.run(method, sparsity, root)
    monkeypatch.setattr(Work, "record", record)
    for made in ("masks", "solved", "pruned"):
        expected, found = (tiny.files_of(where / f"data/{made}/{method}/{sparsity}") for where in (project, root))
        assert found == expected


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_the_report_takes_them_like_any_other(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "reported"
    shutil.copytree(project, root)
    staged.change_params(root, "methods", {"summed": METHODS["summed"]}, plan=False)
    staged.change_params(root, "packed", {"variants": ["summed/*"], "rounds": 1, "new_tokens": 2, "prefill": 8}, False)
    staged.change_params(root, "sparsities", {"w25": "neurons:0.25"})
    pack.run("summed", "w25", root)
    cost = Cost.read(root / "data/costs/pack/summed/w25.json", "")
    assert cost.packed is None
    assert cost.beside_dense is not None
    assert len(cost.beside_dense.decode) == len(cost.beside_dense.dense_prefill) == 1
    report.run(root=root)
    text = (root / "data/report/report.md").read_text(encoding="utf-8").replace("\u202f", " ")
    assert "neurons 25 %" in text
    assert "M parameters" in text
    assert "GFLOP per token" in text
    data = load_project(Layout(root), read_params(root / "params.yaml"), provenance={})
    (offer,) = [one for one in offers(data) if not one.is_dense]
    assert offer.decode is not None
    assert offer.decode.over_dense == pytest.approx(cost.beside_dense.decode_over_dense)
    assert offer.form == "plain"


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_what_cannot_be_is_told_before_anything_runs(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "refused"
    shutil.copytree(project, root)
    staged.change_params(root, "methods", {"summed": METHODS["summed"]}, plan=False)
    staged.change_params(root, "sparsities.e50", "experts:0.5", plan=False)
    with pytest.raises(InvalidPatternError, match=r"sparsities\.e50"):
        check.run(root)
    staged.change_params(root, "sparsities", {"w25": "neurons:0.25"}, plan=False)
    staged.change_params(root, "methods.solver", {"score": "alps"}, plan=False)
    with pytest.raises(InvalidSettingError, match=r"methods\.solver with sparsities\.w25: structures"):
        check.run(root)


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_it_is_exported_as_it_is_and_has_nothing_to_pack(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, code in (("dense", 0), ("packed", 1)):
        main_ends(
            ["export", "summed", "w25", "-o", str(tmp_path / form), "--root", str(project), "--format", form], code
        )
    assert "--format: got packed for neurons:0.25, expected dense" in capsys.readouterr().err
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert exported.config.intermediate_size == 36
    assert "Whole structures were removed" in (tmp_path / "dense/README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "packed").exists()


def test_quantised_it_is_packed_as_integers(project: Path, tmp_path: Path) -> None:
    root = again(project, tmp_path, "machine.device", "cpu")
    quantized = {**METHODS["ranked"], "quantize": {"bits": 4}}
    for name, value in {
        "methods": {"ranked": quantized},
        "sparsities": {"mix": SPARSITIES["mix"]},
        "packed": {"variants": "*/*", "rounds": 0},
    }.items():
        staged.change_params(root, name, value, plan=False)
    tiny.plan(root)
    score.run("ranked", root)
    for stage in (mask, apply, pack):
        stage.run("ranked", "mix", root)
    evaluate.run("ranked", "mix", root=root)
    (tmp_path / "back").mkdir()
    unpack(root / "data/packed/ranked/mix", tmp_path / "back")
    assert tiny.files_of(tmp_path / "back") == tiny.files_of(root / "data/pruned/ranked/mix")
    found = [t for path in packed_files(root / "data/packed/ranked/mix") for t in PackedFile(path).packed.values()]
    assert [(tensor.codes, tensor.masked) for tensor in found] == [(Codes(4, 32), False)] * 14
    saved = Cost.read(root / "data/costs/pack/ranked/mix.json", "").packed
    counted = metrics(root, "ranked", "mix")["bytes"]
    assert saved is not None
    assert counted["bitmask"] == saved.packed < saved.dense == counted["stored"]
    main_ends(["export", "ranked", "mix", "-o", str(tmp_path / "out"), "--root", str(root), "--format", "packed"], 0)
    packed, plain = (zpruner.load(folder, device="cpu")[0] for folder in (tmp_path / "out", tmp_path / "back"))
    ids = torch.randint(3, 90, (2, 24))
    assert torch.equal(packed(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_masks_name_what_stays(project: Path) -> None:
    """Rows of what makes a neuron, columns of what reads it: the same places."""
    from zpruner.artifacts.store import ArtifactReader

    masks = ArtifactReader(project / "data/masks/summed/w25", "masks")
    for block in range(3):
        down, gate = (
            masks.read_matrix(f"model.layers.{block}.mlp.{name}_proj", "keep", torch.bool, shape)
            for name, shape in (("down", (32, 48)), ("gate", (48, 32)))
        )
        assert torch.equal(down, gate.T)
        assert int(down[0].sum()) == 36


def test_layers_that_stay_keep_their_order() -> None:
    whole = [f"h.{block}.experts.{expert}.w" for block in (2, 10) for expert in (1, 9, 11)]
    smaller = [f"h.{block}.experts.{expert}.w" for block in (0, 1) for expert in (0, 1, 2)]
    assert counterparts(reversed(whole), smaller) == dict(zip(smaller, whole, strict=True))
