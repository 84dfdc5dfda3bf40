"""`zpruner prune`: what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import zpruner
from zpruner.checkpoint import write_manifest

Command = Callable[..., tuple[int, str, str]]
PRUNE = ("--calibration", "source/text.txt", "--nsamples", "6", "--seqlen", "32")


def test_prune_writes_an_ordinary_checkpoint(place: Path, command: Command) -> None:
    code, out, err = command(
        "prune", "source/model", *PRUNE, "-o", "out", "--evaluate", "source/text.txt", "--evaluate-windows", "4"
    )
    assert (code, err) == (0, ""), "not quiet although standard error is no terminal"
    assert "21 layers, 50.00% of their weights removed" in out
    model = AutoModelForCausalLM.from_pretrained("out")
    dense = AutoModelForCausalLM.from_pretrained("source/model")
    assert AutoTokenizer.from_pretrained("out")("abc")["input_ids"]
    for (name, pruned), (_, before) in zip(model.named_parameters(), dense.named_parameters(), strict=True):
        if ".layers." in name and pruned.ndim == 2:
            assert int((pruned == 0).sum()) == pruned.numel() // 2, name
            kept = pruned != 0
            assert torch.equal(pruned[kept], before[kept])
        else:
            assert torch.equal(pruned, before), name
    assert len({path.stat().st_mode for path in (place / "out").iterdir()}) == 1, "as readable as each other"
    card = (place / "out/README.md").read_text()
    assert "neither smaller nor faster" in card
    assert "| perplexity (source/text.txt, 4 windows of 32) |" in card
    assert not [p for p in place.iterdir() if p.name.startswith(".")], "leftovers"


def test_the_card_says_where_a_copy_came_from(place: Path, command: Command) -> None:
    """A fetched model, as data/models/dense is, and what is pruned from it: source, maker and licence go along."""
    original = "---\nlicense: apache-2.0\nmodel_creator: Acme\nmodel_name: Tiny\n---\n"
    (place / "source/model/README.md").write_text(original)
    write_manifest(place / "source/model", "pip:tiny==1/tiny.gguf", role="dense")
    assert command("prune", "source/model", *PRUNE, "-o", "once")[0] == 0
    assert command("prune", "once", *PRUNE, "--sparsity", "0.7", "-o", "twice")[0] == 0
    for base, out in (("source/model", "once"), ("once", "twice")):
        card = (place / out / "README.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\nmodel_name: Tiny\nmodel_creator: Acme\n"), out
        assert (
            f"from `{base}`, made from `pip:tiny==1/tiny.gguf`, a model by Acme (Tiny). "
            "Licence of the original: apache-2.0." in card
        )


def test_prune_with_a_pattern_an_update_and_propagation_equals_the_library(place: Path, command: Command) -> None:
    options = ("--method", "wanda", "--sparsity-type", "2:4", "--update", "least_squares", "--propagation", "pruned")
    assert command("prune", "source/model", *PRUNE, "-o", "out", *options)[0] == 0
    model, tokenizer = zpruner.load("source/model")
    windows = zpruner.load_windows("source/text.txt", model, tokenizer, nsamples=6, seqlen=32)
    zpruner.prune_sequentially(model, windows, method={"score": "wanda", "update": "least_squares"}, sparsity="2:4")
    written = AutoModelForCausalLM.from_pretrained("out")
    for (name, expected), (_, found) in zip(model.named_parameters(), written.named_parameters(), strict=True):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
def test_neurons_in_another_order_equal_the_library(place: Path, command: Command, propagation: str) -> None:
    options = ("--method", "wanda", "--sparsity", "2:4", "--permute", "--propagation", propagation)
    assert command("prune", "source/model", *PRUNE, "-o", "out", *options)[0] == 0
    model, tokenizer = zpruner.load("source/model")
    windows = zpruner.load_windows("source/text.txt", model, tokenizer, nsamples=6, seqlen=32)
    calibration = zpruner.calibrate(model, windows)
    orders = zpruner.permute_neurons(model, calibration)
    if propagation == "dense":
        zpruner.prune(model, calibration, method="wanda", sparsity="2:4")
    else:
        zpruner.prune_sequentially(model, windows, method="wanda", sparsity="2:4")
    written = AutoModelForCausalLM.from_pretrained("out")
    for (name, expected), (_, found) in zip(model.named_parameters(), written.named_parameters(), strict=True):
        assert torch.equal(expected, found), name
    stored = load_file(place / "out/neuron_orders.safetensors")
    assert stored.keys() == orders.keys()
    assert all(torch.equal(stored[name], order) for name, order in orders.items())
    assert "neuron_orders.safetensors has the old place of each" in (place / "out/README.md").read_text()


def test_heads_and_the_stream_in_another_order_are_stored_beside_the_neurons(place: Path, command: Command) -> None:
    options = ("--method", "wanda", "--sparsity", "2:4", "--permute-heads", "--permute-stream")
    assert command("prune", "source/model", *PRUNE, "-o", "out", *options)[0] == 0
    stored = load_file(place / "out/neuron_orders.safetensors")
    assert {name.rpartition(".")[2] for name in stored} == {"o_proj", "stream"}
    assert "The heads and stream are in another order" in (place / "out/README.md").read_text()
    code, _, said = command("prune", "source/model", *PRUNE, "-o", "other", *options, "--sparsity", "8:16")
    assert code == 1
    assert "--method wanda with --sparsity: permute 'heads': got 8 that may change places in" in said


def test_an_order_matters_to_n_m_alone(place: Path, command: Command) -> None:
    code, _, said = command("prune", "source/model", *PRUNE, "-o", "out", "--permute")
    assert code == 1
    assert not (place / "out").exists()
    assert "--permute: got the pattern 0.5, expected N:M such as 2:4. Leave --permute out." in said


def test_an_existing_folder_is_kept_without_force(place: Path, command: Command) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    before = tiny.files_of(place / "out")
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity-ratio", "0.25")
    assert code == 1
    assert err == (
        "error: --output out: got a path that exists, expected a new folder. "
        "Choose another, or add --force to replace it.\n"
    )
    assert tiny.files_of(place / "out") == before
    assert command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity-ratio", "0.25", "--force")[0] == 0
    assert "0.25 of the weights removed" in (place / "out/README.md").read_text()


def test_the_folder_itself_can_be_replaced_whatever_a_killed_run_left(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    (place / ".out.old").mkdir()
    (place / ".out.old" / "config.json").write_text("{}")
    monkeypatch.chdir(place / "out")
    options = ("--calibration", "../source/text.txt", *PRUNE[2:], "--sparsity-ratio", "0.25")
    assert command("prune", "../source/model", *options, "-o", ".", "--force")[0] == 0
    assert "0.25 of the weights removed" in (place / "out/README.md").read_text()
    assert sorted(p.name for p in place.iterdir()) == ["out", "params.yaml", "source"]


def test_force_never_replaces_what_is_no_checkpoint(place: Path, command: Command) -> None:
    (place / "thesis").mkdir()
    (place / "thesis/text.txt").write_text("years of work")
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "thesis", "--force")
    assert code == 1
    assert "no checkpoint folder" in err
    assert (place / "thesis/text.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_failed_write_leaves_the_old_checkpoint(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert command("prune", "source/model", *PRUNE, "-o", "out")[0] == 0
    before = tiny.files_of(place / "out")

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("zpruner.checkpoint.write_manifest", full)
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", "--force")
    assert code == 1
    assert "no space left" in err
    assert tiny.files_of(place / "out") == before
    assert sorted(p.name for p in place.iterdir()) == ["out", "params.yaml", "source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "wnada"), "Did you mean 'wanda'?"),
        (("--sparsity-ratio", "1.5"), "--sparsity-ratio: got 1.5, expected a ratio in [0, 1)"),
        (("--sparsity", "nan"), "got nan, expected a ratio in [0, 1)"),
        (("--sparsity-type", "4:2"), "--sparsity-type: got '4:2'"),
        (("--sparsity-type", "3:7"), "32 inputs for the pattern 3:7"),
        (("--set", "power"), "expected NAME=VALUE"),
        (("--set", "powr=2.0"), "unknown key 'powr'"),
        (("--nsamples", "9000"), "at least 288000 for 9000 windows"),
        (("--calibration", "nothing.txt"), "nothing.txt: got no such file"),
        (("--sha256", "0" * 64), "content with SHA-256"),
    ],
)
def test_mistakes_are_one_sentence(place: Path, command: Command, options: tuple[str, str], message: str) -> None:
    code, out, err = command("prune", "source/model", *PRUNE, "-o", "out", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (place / "out").exists()


@pytest.mark.filterwarnings("default::zpruner.errors.ZprunerWarning")
def test_what_was_decided_for_the_user_is_one_line(place: Path, command: Command) -> None:
    config = json.loads((place / "source/model/config.json").read_text())
    (place / "source/model/config.json").write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2"}))
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out")
    assert code == 0
    assert (
        err
        == "note: source/model: config.json asks for the attention 'flash_attention_2'; torch's own is used instead.\n"
    )


def test_ctrl_c_is_one_sentence(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zpruner.checkpoint.write_manifest", interrupt)  # at the worst moment: the weights are written
    code, out, err = command("prune", "source/model", *PRUNE, "-o", "out")
    assert (code, out, err) == (130, "", "Interrupted; OUT was not written.\n")
    assert sorted(p.name for p in place.iterdir()) == ["params.yaml", "source"]


@pytest.mark.parametrize("folder", ["source/text.txt/out", "/proc/out"])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_computed(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr("zpruner.cli._options.open_model", lambda *_: pytest.fail("a long run for nothing"))
    code, _, err = command("prune", "source/model", *PRUNE, "-o", folder)
    assert code == 1
    assert err.startswith(f"error: --output {folder}: got ")
    assert err.count("\n") == 1


def test_a_dense_model_is_quantised(place: Path, command: Command) -> None:
    code, out, err = command(
        "prune", "source/model", "--method", "magnitude", *PRUNE, "--sparsity", "0", "--quantize", "3", "-o", "out"
    )
    assert code == 0, err
    assert out.startswith("21 layers, 0.00% of their weights removed")
    model, _ = zpruner.load(place / "out")
    assert max(len(row.unique()) for row in model.model.layers[0].mlp.up_proj.weight) <= 8
    code, _, err = command("prune", "source/model", *PRUNE, "--quantize", "5", "-o", "none")
    assert code == 1
    assert "bits" in err


def test_layers_named_by_ignore_stay_dense(place: Path, command: Command) -> None:
    ignore = ["--ignore", "*.mlp.*", "--ignore", "*.0.*"]
    for propagation in ("dense", "pruned"):
        code, out, _ = command(
            "prune", "source/model", *PRUNE, *ignore, "--blocks", "model.layers", "--propagation", propagation, "-o",
            f"out-{propagation}",
        )  # fmt: skip
        assert code == 0
        assert out.startswith("8 layers, 50.00% of their weights removed")
    code, _, err = command("prune", "source/model", *PRUNE, "--blocks", "model.nothing", "-o", "none")
    assert code == 1
    assert "model.nothing" in err


def test_structures_leave_an_ordinary_smaller_model(place: Path, command: Command) -> None:
    code, out, _ = command("prune", "source/model", *PRUNE, "-o", "out", "--sparsity", "neurons:0.25 groups:1/2")
    assert code == 0
    assert "of their weights removed" in out
    config = json.loads((place / "out/config.json").read_text())
    assert (config["intermediate_size"], config["num_key_value_heads"]) == (36, 1)
    card = (place / "out/README.md").read_text()
    assert "Whole structures were removed" in card
    assert "- structured" in card
    assert "neurons:0.25 groups:0.5" in card
    assert AutoModelForCausalLM.from_pretrained(place / "out").config.num_attention_heads == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sparsity", "neuron:0.25"), "--sparsity: got 'neuron:0.25'"),
        (("--sparsity-type", "neurons", "--sparsity-ratio", "1"), "--sparsity-ratio: got 'neurons:1'"),
        (("--sparsity-type", "neurons:0.5", "--sparsity-ratio", "0.5"), "none beside neurons:0.5"),
        (("--sparsity", "experts:0.5"), "--sparsity: "),
        (("--method", "sparsegpt", "--sparsity", "neurons:0.5"), "Add structures: {neurons: obs}"),
    ],
)
def test_structures_that_cannot_go_are_told(place: Path, command: Command, options: tuple[str, ...], told: str) -> None:
    code, _, err = command("prune", "source/model", *PRUNE, "-o", "out", *options)
    assert code == 1
    assert told in err
    assert not (place / "out").exists()
