"""`zpruner validate`: what it finds, and what it estimates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from zpruner.cli._estimate import estimate, read_shapes
from zpruner.cli._validate import check_compositions
from zpruner.settings.params import load

Command = Callable[..., tuple[int, str, str]]
TEXT = {"source": "source/text.txt", "seqlen": 32}


def test_any_other_trouble_of_the_system_is_one_sentence(command: Command, place: Path) -> None:
    code, _, err = command("validate", "params.yaml")
    assert code == 1
    assert err.startswith("error: params.yaml/params.yaml: got Not a directory, expected a file of YAML.")
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


def test_estimates_grow_with_what_causes_them(place: Path) -> None:
    params = load(place / "params.yaml")
    shapes = read_shapes(params, place)
    assert shapes is not None
    assert shapes.prunable == sum(p.numel() for p in tiny.build("llama").model.layers.parameters() if p.ndim == 2)
    rate = {"model": 1e9, "float32": 1e9}

    def table(changed: object) -> dict[str, object]:
        return {e.stage: e for e in estimate(changed, check_compositions(changed), shapes, rate)}  # type: ignore[arg-type]

    before = table(params)
    assert before["mask"].disk == 4 * shapes.prunable / 8
    assert before["score"].disk == 2 * 4 * shapes.prunable
    data = json.loads((place / "params.yaml").read_text())
    data["calibration"]["gram"] = False
    data["sparsities"]["s60"] = 0.6
    tiny.write_params(place, data)
    after = table(load(place / "params.yaml"))
    assert after["calibrate"].disk < before["calibrate"].disk
    assert after["apply"].disk == pytest.approx(1.5 * before["apply"].disk)
