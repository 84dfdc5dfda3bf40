"""pack, unpack and export --format packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

Command = Callable[..., tuple[int, str, str]]
PRUNE = ["--method", "wanda", "--calibration", "source/text.txt", "--nsamples", "6", "--seqlen", "32"]


@pytest.fixture
def pruned(place: Path, command: Command) -> Path:
    assert command("prune", "source/model", *PRUNE, "-o", "pruned")[0] == 0
    return place


def test_a_checkpoint_is_packed_evaluated_and_unpacked(pruned: Path, command: Command) -> None:
    code, out, err = command("pack", "pruned", "-o", "packed")
    assert code == 0, err
    assert out.startswith("packed: 0.1 MB of weights instead of 0.1 (0.")
    assert "21 packed tensors hold 50.0% of their numbers" in out
    assert "negative" not in out
    assert command("inspect", "packed")[0] == 0
    text = ["--text", "source/text.txt", "--seqlen", "32"]
    found = [command("evaluate", folder, *text) for folder in ("pruned", "packed")]
    assert found[0][0] == found[1][0] == 0, found[1][2]
    assert found[0][1].replace("pruned", "packed") == found[1][1]
    assert command("unpack", "packed", "-o", "again")[:2] == (0, "again: the checkpoint that was packed\n")
    assert tiny.files_of(pruned / "again") == tiny.files_of(pruned / "pruned")


def test_what_cannot_be_packed_leaves_nothing(pruned: Path, command: Command) -> None:
    for arguments, said in (
        (["pack", "source/model"], "no tensor with 10% of zeros or more"),
        (["pack", "nowhere"], "nowhere"),
        (["unpack", "pruned"], "neither zpruner.safetensors"),
    ):
        code, _, err = command(*arguments, "-o", "out")
        assert code == 1
        assert said in err
        assert err.count("\n") == 1
        assert not (pruned / "out").exists()
    assert command("pack", "pruned", "-o", "packed")[0] == 0
    for arguments in (["pack", "packed"], ["prune", "packed", *PRUNE]):
        code, _, err = command(*arguments, "-o", "out")
        assert code == 1
        assert "packed" in err or "zpruner made" in err
        assert not (pruned / "out").exists()
    code, _, err = command("pack", "pruned", "-o", "packed")
    assert code == 1
    assert "--force" in err


def test_a_damaged_checkpoint_is_not_packed(pruned: Path, command: Command) -> None:
    path = pruned / "pruned/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = command("pack", "pruned", "-o", "packed")
    assert code == 1
    assert "model.safetensors: got checksum" in err
    assert not (pruned / "packed").exists()
