"""`zpruner inspect`: a checkpoint, an artifact, and what is neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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
