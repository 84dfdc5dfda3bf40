"""What the command line refuses at once, and what it never destroys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from zpruner.cli._output import check_apart
from zpruner.errors import InvalidSettingError

Command = Callable[..., tuple[int, str, str]]
PRUNE = ("--calibration", "source/text.txt", "--nsamples", "6", "--seqlen", "32")
TELL = """
import contextlib, io, json, sys, time
from zpruner.cli import main
heavy = {"torch", "transformers", "pyarrow"}
told = {}
for kind, words in json.load(sys.stdin).items():
    start = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(words.split())
        except SystemExit as end:
            told[kind] = [end.code, err.getvalue(), sorted(heavy & set(sys.modules)), time.process_time() - start < 2]
print(json.dumps(told))
"""
"""Runs command lines in one process."""

MISTAKES = {
    "a method": ("prune source/model -o out --method wnada", "--method: got 'wnada', expected a name that `zpruner m"),
    "a refinement": ("prune source/model -o out --refine swap", "Did you mean 'swaps'?"),
    "an update": ("prune source/model -o out --update ob", "Did you mean 'obs'?"),
    "a group": ("prune source/model -o out --group rows", "--group: got 'rows'"),
    "a setting": ("prune source/model -o out --set power", "--set: got 'power', expected NAME=VALUE"),
    "settings": ("prune source/model -o out --set a=[1", "--set a: got text that is not YAML"),
    "a sparsity": ("prune source/model -o out --sparsity 1.5", "--sparsity: got 1.5, expected a ratio in [0, 1)"),
    "no sparsity": ("prune source/model -o out --sparsity 0", "--sparsity: got 0, expected more than 0"),
    "no ratio": ("prune source/model -o out --sparsity-ratio 0.0", "--sparsity-ratio: got 0.0, expected more than 0"),
    "N:M": ("prune source/model -o out --sparsity 4:2", "--sparsity: got '4:2'"),
    "a ratio": ("prune source/model -o out --sparsity-ratio 2:4", "Write --sparsity 2:4."),
    "both": ("prune source/model -o out --sparsity 2:4 --sparsity-ratio 0.5", "Leave one out."),
    "a model": ("prune source/modl -o out", "source/modl: got no such file or folder, expected one that is there. Did"),
    "a folder": ("prune nowhere/at/all -o out", "nowhere/at/all: got no such file or folder"),
    "a text": ("prune source/model -o out --calibration source/txt.txt", "Did you mean 'text.txt'?"),
    "an evaluation": ("prune source/model -o out --evaluate no.txt", "no.txt: got no such file or folder"),
    "a hash": ("prune source/model -o out --sha256 12", "expected 64 hexadecimal digits"),
    "an output": ("prune source/model -o params.yaml", "--output params.yaml: got a path that exists"),
    "a text to evaluate": ("evaluate source/model --text no.txt", "no.txt: got no such file or folder"),
    "a model to evaluate": ("evaluate source/modl --text source/text.txt", "Did you mean 'model'?"),
    "a label": ("export wandaa s50 -o out", "label 'wandaa', expected one listed in params.yaml. Did you mean 'wanda'"),
    "another label": ("export wanda s5 -o out", "Did you mean 's50'?"),
    "a method in params.yaml": ("validate unknown", "methods.wanda.score: got 'wnada'"),
    "an artifact": ("inspect nowhere", "nowhere: got no such path"),
    "nothing to pack": ("pack nowhere -o out", "nowhere: got no"),
    "no project": ("export wanda s50 -o out --root nowhere", "nowhere/params.yaml: got no file"),
    "no such user": ("prune source/model --output=~nobody-at-all/x", "the home folder of a user"),
}


def test_a_mistake_is_told_before_torch_is_there(place: Path) -> None:
    (place / "unknown").mkdir()
    tiny.write_params(place / "unknown", {**tiny.PARAMS, "methods": {"wanda": {"score": "wnada"}}})
    given = json.dumps({kind: words for kind, (words, _) in MISTAKES.items()})
    done = subprocess.run([sys.executable, "-c", TELL], input=given, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    for kind, (_, said) in MISTAKES.items():
        code, err, heavy, soon = told[kind]
        assert (code, heavy, soon) == (1, [], True), kind
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == ["params.yaml", "source", "unknown"]


def test_what_the_model_cannot_have_is_told_before_a_text_is_read(place: Path, command: Command) -> None:
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity", "3:7", "--nsamples", "10000000")
    assert (code, "32 inputs for the pattern 3:7" in err, "--ignore" in err) == (1, True, True)
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--device", "tpu:9")
    assert code == 1
    assert err.startswith("error: --device: got 'tpu:9', expected a device of this machine")
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--ignore", "*.nothing")
    assert err.startswith("error: --ignore: got '*.nothing', which matches no layer")
    assert "params.yaml" not in err


def test_n_of_m_as_sparsity(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity", "2:4", "--method", "wanda")[0] == 0
    assert "2:4 (2 of every 4 inputs kept)" in (place / "out/README.md").read_text()


def test_a_model_that_was_pruned_before_says_so(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    code, out, _ = command("prune", "out", *PRUNE, "-o", "again", "--sparsity", "0.7")
    assert code == 0
    assert "layer error unknown: 50.00% of MODEL's weights were zero before" in out
    assert "nan" not in (place / "again/README.md").read_text()


@pytest.mark.parametrize("way", ["itself", "a link", "a roundabout way", "inside", "around", "a name of ours"])
def test_the_model_is_never_overwritten(place: Path, command: Command, way: str) -> None:
    model, out = "source/model", "source/model"
    if way == "a link":
        (place / "link").symlink_to("source/model")
        out = "link"
    elif way == "a roundabout way":
        out = "source/../source/./model/"
    elif way == "inside":
        out = "source/model/pruned/a"
    elif way == "around":
        (place / "source/config.json").write_text("{}")
        out = "source"
    elif way == "a name of ours":
        (place / "source/model").rename(place / ".out.tmp")
        model, out = ".out.tmp", "out"
    before = tiny.files_of(place / model)
    code, _, err = command("prune", model, *PRUNE, "-o", out, "--force")
    assert code == 1
    assert "expected a folder apart from what is read. Choose another folder." in err
    assert tiny.files_of(place / model) == before


def test_a_text_is_not_replaced_with_the_folder_that_holds_it(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    (place / "source/text.txt").rename(place / "out/text.txt")
    code, _, err = command("prune", "source/model", "--calibration", "out/text.txt", "-o", "out", "--force")
    assert code == 1
    assert "a folder that holds the calibration text (out/text.txt)" in err
    assert (place / "out/text.txt").exists()


def test_one_folder_under_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where upper and lower case are one: the system says whether two paths are the same."""
    (tmp_path / "Model").mkdir()
    (tmp_path / "model").mkdir()
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **given: stat(str(path).replace("Model", "model"), **given))
    for out in ("Model", "Model/inside"):
        with pytest.raises(InvalidSettingError, match="MODEL"):
            check_apart(tmp_path / out, tmp_path / "model")


@pytest.mark.parametrize("option", ["--output=~/x", "-o~/x"])
def test_a_tilde_is_the_home_folder(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    (place / "home").mkdir()
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("ZPRUNER_DOWNLOADS", "~/downloads")
    assert command("prune", "source/model", *PRUNE, option)[0] == 0
    assert (place / "home/x/config.json").exists()
    assert command("inspect", "~/x")[0] == 0
    assert not (place / "~").exists()
