"""`zpruner prune --calibration`: several texts with shares, and text that the model writes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

import zpruner

Command = Callable[..., tuple[int, str, str]]
SIZE = ("--nsamples", "8", "--seqlen", "32", "--method", "wanda", "-o", "out")


def test_a_mixture_prunes_as_in_python_and_is_told(place: Path, command: Command) -> None:
    given = ("--calibration", "source/text.txt,documents=lines,part=[0, 0.5],share=0.75", "--calibration")
    code, _, err = command("prune", "source/model", *SIZE, *given, "self,share=0.25,temperature=1.0,drop=0")
    assert (code, err) == (0, "")
    model, tokenizer = zpruner.load("source/model", device="cpu")
    text = {"source": "source/text.txt", "documents": "lines", "part": [0, 0.5], "share": 0.75}
    own = {"source": "self", "share": 0.25, "temperature": 1.0, "drop": 0}
    windows = zpruner.load_windows([text, own], model, tokenizer, nsamples=8, seqlen=32)
    zpruner.prune(model, zpruner.calibrate(model, windows, for_methods="wanda"), method="wanda")
    written = load_file("out/model.safetensors")
    for name, value in model.named_parameters():
        assert torch.equal(value, written[name]), name
    card = (place / "out/README.md").read_text()
    for row in ("source.1.source | `source/text.txt`", "source.1.windows | `6`", "source.2.windows | `2`"):
        assert f"| {row} |" in card
    assert "| source.2.temperature | `1.0` |" in card
    assert "| propagation | `dense` |" in card
    assert "sha256" not in card


def test_the_models_own_text_alone(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *SIZE, "--calibration", "self")[0] == 0
    assert "| source.1.source | `self` |" in (place / "out/README.md").read_text()


MISTAKES = {
    "a key": (["self,shar=1"], "error: --calibration: got unknown key 'shar', expected one of sha256,"),
    "no such file": (["self", "nowhere.txt"], "error: nowhere.txt: got no such file or folder"),
    "shares": (
        ["self,share=0.5", "source/text.txt,share=0.6"],
        "error: --calibration: got shares that sum to 1.1, expected 1",
    ),
    "no share": (
        ["self,share=0.5", "source/text.txt"],
        "error: --calibration.1: got no share beside shares of others, expected a share for every source",
    ),
    "no number": (["self,share=half", "source/text.txt"], "error: the options: source.0.share: got 'half', expected"),
    "twice": (["source/text.txt", "source/text.txt"], "which source.0 reads with part [0.0, 1.0], too"),
    "no windows": ([f"source/{number}.txt" for number in range(9)], "got no window of 8, expected at least one"),
    "self with a part": (["self,part=[0, 0.5]"], "got part for text that the model writes, expected it for texts only"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_mixture_is_told_in_one_line(kind: str, place: Path, command: Command) -> None:
    texts, said = MISTAKES[kind]
    code, _, err = command(
        "prune", "source/model", *SIZE, *(word for text in texts for word in ("--calibration", text))
    )
    assert (code, err.count("\n")) == (1, 1)
    assert said in err
    assert "params.yaml" not in err
    assert not (place / "out").exists()


def test_a_hash_is_of_one_text(place: Path, command: Command) -> None:
    several = ("--calibration", "self", "--calibration", "source/text.txt", "--calibration-sha256", "0" * 64)
    code, _, err = command("prune", "source/model", *SIZE, *several)
    assert code == 1
    assert "got it beside several texts, expected one text. Write --calibration SOURCE,sha256=HASH" in err
    wrong = f"source/text.txt,sha256={'0' * 64}"
    code, _, err = command("prune", "source/model", *SIZE, "--calibration", "self", "--calibration", wrong)
    assert (code, f"expected {'0' * 64}" in err) == (1, True), err


def test_a_file_whose_name_has_a_comma_is_a_file(place: Path, command: Command) -> None:
    (place / "a,b=1.txt").write_text(tiny.words(400))
    assert command("prune", "source/model", *SIZE, "--calibration", "a,b=1.txt")[0] == 0
    assert "| text | `a,b=1.txt` |" in (place / "out/README.md").read_text()
