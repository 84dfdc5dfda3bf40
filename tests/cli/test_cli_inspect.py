"""`zpruner inspect`: a checkpoint, an artifact, and what is neither."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Command = Callable[..., tuple[int, str, str]]
PRUNE = ("--calibration", "source/text.txt", "--nsamples", "6", "--seqlen", "32")


def test_inspect_a_checkpoint_of_others(place: Path, command: Command) -> None:
    code, out, _ = command("inspect", "source/model")
    assert code == 0
    assert "no zpruner.json, so no checksums" in out
    assert "zeros 0.0000%" in out


def test_inspect_a_checkpoint_and_what_damage_does(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    code, out, _ = command("inspect", "out")
    assert code == 0
    assert "every checksum right" in out
    assert "model.layers.0.mlp.down_proj.weight: float32 (32, 48), zeros 50.0000%" in out
    assert "more (--all lists them)" in out
    weights = place / "out/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    code, _, err = command("inspect", "out")
    assert code == 1
    assert "model.safetensors: got checksum" in err


def test_a_file_of_the_users_own_is_not_to_be_deleted(place: Path, command: Command) -> None:
    code, _, err = command("inspect", "source/text.txt")
    assert code == 1
    assert "of other files there is nothing to say" in err


def test_inspect_artifacts(command: Command, tmp_path: Path) -> None:
    from zpruner.artifacts.store import Provenance, artifact_writer
    from zpruner.artifacts.work import Work

    keep = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with artifact_writer(Work(tmp_path / "work", "mask", "k"), "masks", Provenance(method="wanda")) as writer:
        writer.write("layer", {"keep": keep})
        writer.finish(tmp_path / "masks")
    code, out, _ = command("inspect", tmp_path / "masks")
    assert code == 0
    assert "kind      masks" in out
    assert "method    wanda" in out
    assert "layer: keep (2, 4)" in out
    assert "sparsity 62.5000%" in out
    code, out, _ = command("inspect", tmp_path / "masks/layer.arrow")
    assert "matches the index" in out
    file = tmp_path / "masks/layer.arrow"
    file.write_bytes(file.read_bytes()[:-9])
    for path in (file, tmp_path / "masks"):
        code, out, err = command("inspect", path)
        assert (code, out) == (1, "")
        assert str(file) in err


@pytest.mark.parametrize("name", ["missing", "folder", "text.txt"])
def test_inspect_what_is_no_artifact(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    code, _, err = command("inspect", tmp_path / name)
    assert code == 1
    assert str(tmp_path / name) in err


def test_inspect_lists_what_transformers_loads_and_names_what_lies_beside_it(place: Path, command: Command) -> None:
    folder = place / "source/model"
    whole = load_file(folder / "model.safetensors")
    for number, names in enumerate((sorted(whole)[:3], sorted(whole)[3:])):
        save_file({name: whole[name] for name in names}, folder / f"part{number}.safetensors", {"format": "pt"})
    weight_map = {name: f"part{int(name not in sorted(whole)[:3])}.safetensors" for name in whole}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    code, out, _ = command("inspect", folder, "--all")
    assert code == 0
    assert out.count("model.embed_tokens.weight") == 1
    assert re.search(r"^files +2, ", out, re.M)
    assert "consolidated.safetensors (no file that transformers loads)" in out
    (folder / "part1.safetensors").unlink()
    code, out, err = command("inspect", folder)
    assert (code, out) == (1, "")
    assert "part1.safetensors: got no file" in err
