"""`zpruner validate`: what it finds, and what it estimates."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from zpruner.artifacts.costs import Cost
from zpruner.cli._estimate import Estimate, estimate, measured, read_shapes
from zpruner.cli._validate import check_compositions
from zpruner.settings.reading import read_params

Command = Callable[..., tuple[int, str, str]]
TEXT = {"source": "source/text.txt", "seqlen": 32}


def test_any_other_trouble_of_the_system_is_one_sentence(command: Command, place: Path) -> None:
    code, _, err = command("validate", "params.yaml")
    assert code == 1
    assert err.startswith("error: params.yaml/params.yaml: Not a directory.")
    assert err.count("\n") == 1


def test_validate_a_good_project(place: Path, command: Command) -> None:
    code, out, _ = command("validate")
    assert code == 0
    assert "2 methods x 2 sparsities = 4 variants" in out
    assert "21 prunable layers in 3 blocks" in out
    assert {line.split()[0] for line in out.splitlines() if line} >= {"fetch", "calibrate", "score", "mask", "apply"}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("methods", {"a": {"score": "wanda", "settings": {"p": 1}}}, "methods.a: pruning method 'wanda'"),
        ("methods", {"a": {"score": "wanda", "update": "obs"}}, "methods.a: got a calibration without gram"),
        ("methods", {"a": {"score": "wanda", "allocate": "owl"}}, "methods.a with sparsities.s24: allocation: got the"),
        ("sparsities", {"s": "3:7"}, "for the pattern 3:7"),
        ("evaluation", {"perplexity": {**TEXT, "seqlen": 129}}, "evaluation.perplexity.seqlen: got 129, expected at"),
        ("evaluation", {"perplexity": {**TEXT, "sha256": "x"}}, "sha256 of evaluation.perplexity.source: got 'x'"),
        ("evaluation", {"perplexity": {**TEXT, "protocol": "c4"}}, "as the protocol 'c4' is published"),
        (
            "evaluation",
            {"perplexity": TEXT, "zero_shot": {"tasks": ["a"], "include_path": "mine"}},
            "'mine', expected a folder",
        ),
    ],
)
def test_validate_finds_mistakes(
    place: Path, command: Command, section: str, change: dict[str, object], message: str
) -> None:
    params = tiny.read_params(place)
    params["calibration"]["gram"] = False
    params[section] = change
    tiny.write_params(place, params)
    code, _, err = command("validate")
    assert code == 1
    assert message in err


@pytest.mark.parametrize(
    ("source", "sha256", "message"),
    [
        ("gone.txt", None, "no file or folder"),
        ("pip:gensim==4.4.0/a.txt", None, "calibration.sha256: got null"),
        ("hf:acme/news@main", None, "'hf:acme/news@main' without sha256"),
    ],
)
def test_validate_checks_sources(place: Path, command: Command, source: str, sha256: str | None, message: str) -> None:
    params = tiny.read_params(place)
    params["calibration"] |= {"source": source, "sha256": sha256}
    tiny.write_params(place, params)
    code, _, err = command("validate")
    assert code == 1
    assert message in err


@pytest.mark.parametrize("key", ["calibration.min_expert_tokens", "evaluation.checkpoints", "model.ignore", "machine"])
def test_what_has_a_default_may_be_left_out(place: Path, command: Command, key: str) -> None:
    params = tiny.read_params(place)
    section = params
    *path, last = key.split(".")
    for part in path:
        section = section[part]
    del section[last]
    tiny.write_params(place, params)
    assert command("validate")[0] == 0


def test_a_spread_that_one_sparsity_has_no_room_for(place: Path, command: Command) -> None:
    params = tiny.read_params(place)
    params["methods"] = {"a": {"score": "wanda", "allocate": {"name": "owl", "settings": {"spread": 0.3}}}}
    params["sparsities"] = {"half": 0.5, "few": 0.2}
    tiny.write_params(place, params)
    code, _, err = command("validate")
    assert code == 1
    assert "methods.a with sparsities.few: allocation.spread: got 0.3 at sparsity 0.2" in err


def test_validate_checks_the_search(place: Path, command: Command) -> None:
    params = tiny.read_params(Path())
    params["search"] = {
        "text": {"source": "no/such.txt", "seqlen": 16},
        "sparsities": [0.5],
        "initial": ["W", "mul(W)"],
    }
    tiny.write_params(Path(), params)
    code, _, err = command("validate")
    assert code == 1
    assert "search.initial[1]: formula, column 6" in err
    params["search"]["initial"] = ["W"]
    tiny.write_params(Path(), params)
    code, _, err = command("validate")
    assert "search.text.source: got no file or folder no/such.txt" in err


def test_validate_without_the_model_says_what_it_cannot_check(place: Path, command: Command) -> None:
    params = tiny.read_params(place)
    params["model"] |= {"source": "pip:models==1.0/model.gguf", "sha256": "0" * 64}
    tiny.write_params(place, params)
    code, out, _ = command("validate")
    assert code == 0
    assert "comes from the package models 1.0" in out
    assert "nothing is estimated" in out


def test_a_model_that_cannot_be_fetched_is_found(place: Path, command: Command) -> None:
    config = place / "source/model/config.json"
    good = json.loads(config.read_text())
    for change, message in (
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights ('gptq')"),
        ({"num_attention_heads": 5}, "a checkpoint that cannot be read"),
        ({"intermediate_size": 4}, "of shape"),
    ):
        config.write_text(json.dumps(good | change))
        code, _, err = command("validate")
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
    params = tiny.read_params(place)
    params["model"]["source"] = "source/model.gguf"
    tiny.write_params(place, params)
    (place / "source/model.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    code, _, err = command("validate")
    assert code == 1
    assert "GGUF version 4294967295" in err


def table(place: Path, **changes: dict[str, object]) -> dict[str, Estimate]:
    """Return the estimate of the project with some sections of its settings changed."""
    data = json.loads((place / "params.yaml").read_text())
    for section, values in changes.items():
        data[section] |= values
    tiny.write_params(place, data)
    params = read_params(place / "params.yaml")
    shapes = read_shapes(params, place)
    assert shapes is not None
    assert shapes.prunable == sum(p.numel() for p in tiny.build("llama").model.layers.parameters() if p.ndim == 2)
    return {one.stage: one for one in estimate(params, check_compositions(params), shapes)}


def test_estimates_grow_with_what_causes_them(place: Path) -> None:
    before = table(place)
    weights = 2 * before["mask"].disk  # a bit each, 4 variants
    assert before["score"].disk == 2 * 4 * weights
    after = table(place, calibration={"gram": False}, sparsities={"s60": 0.6})
    assert after["calibrate"].disk < before["calibrate"].disk
    assert after["apply"].disk == pytest.approx(1.5 * before["apply"].disk)
    assert len(after["mask"].instances) == 6


def test_estimates_know_propagation_and_checkpoints(place: Path) -> None:
    before = table(place)
    after = table(place, evaluation={"checkpoints": ["*/s50"]}, calibration={"propagation": "pruned"})
    assert after["apply"].disk == before["apply"].disk / 2
    assert after["score"].disk == 0
    weights = before["score"].disk // (2 * 4)
    assert after["mask"].disk == before["mask"].disk + 4 * 4 * weights  # the float32 weights that each variant solved


def test_an_estimate_is_what_a_run_leaves(finished_project: Path, tmp_path: Path) -> None:
    """Beside weights and sums there are names, checksums, padding: much of so small a model, less of each stage."""
    root = tmp_path / "project"
    shutil.copytree(finished_project, root, symlinks=True)
    found = table(root)
    folders = {
        "fetch": "models",
        "calibrate": "activations/dense",
        "score": "scores",
        "mask": "masks",
        "apply": "pruned",
    }
    for stage, folder in folders.items():
        files = [path for path in (root / "data" / folder).rglob("*") if path.suffix in (".arrow", ".safetensors")]
        on_disk = sum(path.stat().st_size for path in files)
        overhead = 4096 * len(files)  # metadata of each
        assert found[stage].disk <= on_disk * 1.02 <= found[stage].disk * 1.1 + overhead, stage
        assert len(measured(root, found[stage])) == len(found[stage].instances), stage


def test_seconds_are_those_of_earlier_runs(place: Path, command: Command) -> None:
    code, out, _ = command("validate")
    assert code == 0
    assert re.search(r"^mask +4 .*\? +\?  0 of 4 runs$", out, re.MULTILINE)
    for sparsity, seconds in (("s50", 10.0), ("s24", 20.0)):
        cost = Cost(stage="mask", seconds=seconds, peak_memory_bytes=3 << 29)
        cost.write(place / "data" / "costs" / "mask" / "wanda" / f"{sparsity}.json")
        Cost(stage="mask", seconds=999, peak_memory_bytes=1).write(
            place / "data/costs/mask/removed" / f"{sparsity}.json"
        )
    out = command("validate")[1]
    assert re.search(r"^mask +4 .* 60 +1\.5 GiB  2 of 4 runs$", out, re.MULTILINE)
    assert re.search(r"^all .*\?$", out, re.MULTILINE)
