"""`zpruner evaluate` and `zpruner export`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

import zpruner
from zpruner.artifacts.files import write_sealed_json

Command = Callable[..., tuple[int, str, str]]
PRUNE = ("--calibration", "source/text.txt", "--nsamples", "6", "--seqlen", "32")


def test_evaluate_measures_what_the_library_measures(place: Path, command: Command) -> None:
    code, out, _ = command("evaluate", "source/model", "--text", "source/text.txt", "--seqlen", "32", "--windows", "5")
    assert code == 0
    model, tokenizer = zpruner.load("source/model")
    ids = torch.tensor(tokenizer((place / "source/text.txt").read_text(), verbose=False)["input_ids"])[:160]
    expected = zpruner.perplexity(model, ids.reshape(5, 32), batch_size=5)
    assert float(out.split()[1]) == pytest.approx(expected, abs=1e-3)
    assert "windows     5 of 32 tokens" in out
    assert "0.00% of the prunable weights" in out


def test_evaluate_by_protocol_on_a_local_copy(place: Path, command: Command) -> None:
    rows = "".join(json.dumps({"sentence": tiny.words(9, seed)}) + "\n" for seed in range(30))
    (place / "ptb.jsonl").write_text(rows)
    options = ("--protocol", "ptb", "--text", "ptb.jsonl", "--seqlen", "32")
    code, out, _ = command("evaluate", "source/model", *options)
    assert code == 0
    model, tokenizer = zpruner.load("source/model")
    ids = torch.tensor(tokenizer(" ".join(tiny.words(9, seed) for seed in range(30)))["input_ids"])
    count = len(ids) // 32
    expected = zpruner.perplexity(model, ids[: count * 32].reshape(count, 32))
    assert float(out.split()[1]) == pytest.approx(expected, abs=1e-3)
    code, _, err = command("evaluate", "source/model", *options, "--windows", "3")
    assert code == 1
    assert "as the protocol 'ptb' is published" in err


def test_ctrl_c_speaks_of_no_folder(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zpruner.pruning.opening.load_model", interrupt)
    code, out, err = command("evaluate", "source/model", "--text", "source/text.txt", "--seqlen", "32")
    assert (code, out, err) == (130, "", "Interrupted.\n")


def test_evaluate_needs_a_text_or_a_task(place: Path, command: Command) -> None:
    code, _, err = command("evaluate", "source/model")
    assert code == 1
    assert "neither --text nor --protocol nor --tasks" in err


def test_evaluate_scores_own_tasks_beside_perplexity_and_logs(place: Path, command: Command) -> None:
    shutil.copytree(tiny.REPOSITORY / "tasks", place / "tasks")
    text = ("--text", "source/text.txt", "--seqlen", "32", "--windows", "2")
    tasks = ("--tasks", "hellaswag_local", "--limit", "4", "--log", "run.log")
    code, out, _ = command("evaluate", "source/model", *text, *tasks)
    assert code == 0
    scores = re.search(r"^hellaswag_local acc (0\.\d+) .*\(4 questions\)$", out, re.M)
    assert scores is not None
    assert float(scores[1]) * 4 % 1 == 0
    assert out.startswith("perplexity  ")
    lines = [line.split(" ", 1) for line in (place / "run.log").read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", time) for time, _ in lines)
    said = [line for _, line in lines]
    assert "evaluate source/model --text source/text.txt" in said[0]
    assert said[1:-1] == out.splitlines()
    assert said[-1].startswith("exit status 0 after ")


def test_a_log_has_the_error_and_is_appended_to(place: Path, command: Command) -> None:
    for sparsity in ("1.5", "no"):
        assert command("prune", "source/model", "--sparsity", sparsity, "-o", "out", "--log", "run.log")[0] == 1
    said = (place / "run.log").read_text()
    assert said.count(" error: --sparsity: ") == said.count("exit status 1 after ") == 2
    code, _, err = command("evaluate", "source/model", "--tasks", "x", "--log", "nowhere/run.log")
    assert code == 1
    assert err.startswith("error: --log nowhere/run.log: got No such file or directory")


@pytest.fixture
def evaluated(place: Path, command: Command) -> Path:
    """A project with one variant as the stages leave it."""
    assert command("prune", "source/model", *PRUNE, "-o", "data/pruned/wanda/s50")[0] == 0
    shared = {"windows": 4, "tokens": 128, "seqlen": 32, "loss": 3.4, "bytes": {"stored": 250_000}}
    tasks = {"boolq": {"acc": 0.5, "acc_stderr": 0.1, "version": 2.0, "samples": 9}}
    dense = {**shared, "perplexity": 27.5, "sparsity": 0.0, "layer_error": 0.0}
    dense |= {"zero_shot": {"sparsity": 0.0, "tasks": tasks}}
    pruned = {**shared, "perplexity": 31.25, "sparsity": 0.5, "layer_error": 0.0625}
    pruned |= {"zero_shot": {"sparsity": 0.5, "tasks": {"boolq": {"acc": 0.25}}}}
    pruned |= {"divergence": {"kl": 0.125, "top1_agreement": 0.75, "windows": 4}}
    for name, metrics in (("dense", dense), ("wanda/s50", pruned)):
        write_sealed_json(place / f"data/evaluation/{name}.json", metrics | {"place": f"{name}.json"})
    return place


def test_export_copies_a_variant_with_what_was_measured(evaluated: Path, command: Command) -> None:
    code, out, _ = command("export", "wanda", "s50", "-o", "release")
    assert (code, out) == (0, "release: 7 measurements in its README.md\n")
    card = (evaluated / "release/README.md").read_text()
    for line in (
        "| perplexity (4 windows of 32 tokens) | 27.5 | 31.25 |",
        "| layer error | 0 | 0.0625 |",
        "| sparsity | 0 | 0.5 |",
        "| KL from dense per token, nats | 0 | 0.125 |",
        "| MB | 0.25 | 0.25 |",
        "| same top token as dense | 1 | 0.75 |",
        "| boolq acc | 0.5 | 0.25 |",
    ):
        assert line in card
    before, after = tiny.files_of(evaluated / "data/pruned/wanda/s50"), tiny.files_of(evaluated / "release")
    assert {k for k in after if after[k] != before.get(k)} == {"README.md", "zpruner.json"}
    assert command("inspect", "release")[0] == 0, "its checksums fit"
    code, _, err = command("export", "wanda", "s50", "-o", "release")
    assert code == 1
    assert "--force" in err


def test_export_packs_a_variant(evaluated: Path, command: Command) -> None:
    code, out, err = command("export", "wanda", "s50", "--format", "packed", "-o", "release")
    assert code == 0, err
    assert "21 packed tensors hold 50.0% of their numbers" in out
    card = (evaluated / "release/README.md").read_text()
    assert "| perplexity (4 windows of 32 tokens) | 27.5 | 31.25 |" in card
    assert "The zeros are left out" in card
    assert "neither smaller nor faster" not in card
    assert command("inspect", "release")[0] == 0
    assert command("unpack", "release", "-o", "back")[0] == 0
    assert tiny.files_of(evaluated / "back") == tiny.files_of(evaluated / "data/pruned/wanda/s50")


def test_a_damaged_checkpoint_is_not_measured(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    path = place / "out/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for words in (["evaluate", "out", "--text", "source/text.txt", "--seqlen", "32"], ["prune", "out", *PRUNE]):
        code, _, err = command(*words, *(["-o", "again"] if words[0] == "prune" else []))
        assert code == 1
        assert "out/model.safetensors: got checksum" in err
    assert not (place / "again").exists()


def test_windows_longer_than_the_model_takes(place: Path, command: Command) -> None:
    code, _, err = command("prune", "source/model", *PRUNE, "--seqlen", "129", "-o", "out")
    assert code == 1
    assert "seqlen: got 129, expected at most 128, the most tokens that the model takes at once" in err
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["dense", "wanda/s50"])
@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_export_needs_a_whole_evaluation(evaluated: Path, command: Command, name: str, text: str | None) -> None:
    path = evaluated / f"data/evaluation/{name}.json"
    path.unlink() if text is None else path.write_text(text)
    code, _, err = command("export", "wanda", "s50", "-o", "release")
    assert code == 1
    assert f"data/evaluation/{name}.json" in err
    assert "`dvc repro evaluate_dense evaluate@wanda-s50`" in err
    assert not (evaluated / "release").exists()
