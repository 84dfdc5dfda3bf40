"""What the functions for programs take: windows in many forms, whole numbers, and one sentence for the rest."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel, MptConfig, MptForCausalLM

import zpruner
from zpruner.errors import InvalidSettingError, ShapeMismatchError
from zpruner.types import Stat

WINDOWS = torch.randint(3, tiny.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


@pytest.mark.parametrize("config", ["llama", "gpt2", "mpt"])
def test_windows_longer_than_the_model_takes(config):
    models = {
        "llama": lambda: tiny.llama(max_position_embeddings=20),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=160, n_embd=32, n_layer=2, n_head=4, n_positions=20)),
        "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=160, d_model=32, n_heads=4, n_layers=2, max_seq_len=20)),
    }
    model = models[config]().eval()
    for function in (zpruner.calibrate, zpruner.prune_sequentially, zpruner.perplexity):
        with pytest.raises(InvalidSettingError, match=r"windows: got 24 tokens each, expected at most 20"):
            function(model, WINDOWS)


@pytest.mark.parametrize("function", [zpruner.calibrate, zpruner.prune_sequentially, zpruner.perplexity])
def test_windows_that_the_models_code_does_not_take(function):
    """A limit that no configuration names, such as a table of positions shorter than it says, is found by trying."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=160, n_embd=32, n_layer=2, n_head=4, n_positions=20)).eval()
    model.config.n_positions = 1000
    with pytest.raises(InvalidSettingError, match=r"windows: got 24 tokens each, expected at most 20, on which"):
        function(model, WINDOWS)
    assert zpruner.perplexity(model, WINDOWS[:, :20]) > 1

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("not the windows")

    model.transformer.h[1].forward = broken
    with pytest.raises(RuntimeError, match="not the windows"):
        function(model, WINDOWS[:, :20])


ROWS = WINDOWS.tolist()


FORMS = {
    "lists": ROWS,
    "tuples of arrays": tuple(np.array(row) for row in ROWS),
    "int64": WINDOWS.long(),
    "uint16": WINDOWS.numpy().astype(np.uint16),
    "batches": [WINDOWS[:2], WINDOWS[2:]],
    "a tokenizer's": BatchEncoding({"input_ids": ROWS, "attention_mask": [[1] * 24] * 4}),
    "a mapping": UserDict(input_ids=WINDOWS),
    "a data set": Dataset.from_dict({"input_ids": ROWS}),
    "a column": Dataset.from_dict({"input_ids": ROWS})["input_ids"],
    "rows": [{"input_ids": row} for row in ROWS],
    "a generator": (row for row in ROWS),
}


@pytest.mark.parametrize("form", FORMS)
def test_windows_in_many_forms(form, llama_model):
    assert zpruner.perplexity(llama_model, FORMS[form]) == zpruner.perplexity(llama_model, WINDOWS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("some text", r"got text, expected token ids\. Make windows of a text or its file with zpruner\.load_windows"),
        (Path("file"), "got text"),
        (["some", "texts"], "got text"),
        (Dataset.from_dict({"text": ["a"]}), "got the keys text, expected input_ids"),
        ([[5, 6, 7], [5, 6]], "got rows of 2 and 3 tokens"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, 0]]}, "padded windows"),
        ([[5.5, 6.0]], r"torch\.float32 of shape \(1, 2\)"),
        ([[True, False]], r"torch\.(bool|int64)"),
        ([], r"of shape \(0,\)"),
        ([[]], r"of shape \(1, 0\)"),
        ([5, 6], r"of shape \(2,\)"),
        (None, r"got builtins\.NoneType"),
        ([[None]], "NoneType"),
        ([[1 << 70]], "no 64-bit integers"),
        (torch.zeros(2, 4, dtype=torch.complex64), r"torch\.complex64"),
        (torch.zeros(2, 4, dtype=torch.int32, device="meta"), "on meta"),
        (torch.zeros(2, 4, dtype=torch.int32).to_sparse(), r"torch\.int32"),
        (torch.full((2, 4), -100), "token id -100"),
    ],
)
def test_what_are_no_windows(given, words, llama_model):
    for function in (zpruner.calibrate, zpruner.perplexity, zpruner.prune_sequentially):
        with pytest.raises((InvalidSettingError, ShapeMismatchError), match=f"^windows: .*{words}"):
            function(llama_model, given)


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, "8", True, None, float("nan")])
def test_counts_are_whole_numbers(value, llama_model):
    words = rf"batch_size: got {value!r}, expected a whole number, at least 1\. Pass one\."
    for function in (zpruner.calibrate, zpruner.perplexity, zpruner.prune_sequentially):
        with pytest.raises(InvalidSettingError, match=words):
            function(llama_model, WINDOWS, batch_size=value)
    for name, least in (("nsamples", 1), ("seqlen", 2), ("seed", 0)):
        if value != least:
            with pytest.raises(InvalidSettingError, match=f"{name}: got .* a whole number, at least {least}"):
                zpruner.load_windows("nowhere.txt", llama_model, None, **{name: value})
    assert zpruner.perplexity(llama_model, WINDOWS, batch_size=np.int64(3)) > 1


REFUSED = {
    "no calibration": (
        lambda model: zpruner.prune(model, WINDOWS),
        "calibration: got Tensor, expected what zp",
    ),
    "a statistic": (
        lambda model: zpruner.calibrate(model, WINDOWS, stats=["gramm"]),
        "stats: got 'gramm'.* 'gram'",
    ),
    "patterns": (lambda model: zpruner.calibrate(model, WINDOWS, ignore=[1]), "`ignore`: got 1, expected patterns"),
    "blocks": (lambda model: zpruner.calibrate(model, WINDOWS, blocks=3), "`blocks`: got '3', expected the path"),
    "no method": (
        lambda model: zpruner.prune_sequentially(model, WINDOWS, method=None),
        "method: got None, expected",
    ),
    "a list": (lambda model: zpruner.needs(["wanda"]), r"method: got \['wanda'\], expected a name"),
    "keys": (lambda model: zpruner.needs({1: 2}), r"method: got \{1: 2\}, expected a name"),
    "a part": (
        lambda model: zpruner.load_windows("t", model, None, part=(0.5,)),
        r"part: got \(0\.5,\), expected two",
    ),
    "no model": (lambda model: zpruner.load_windows("t", None, None), r"model: got builtins\.NoneType, expected a tra"),
    "a stride": (lambda model: zpruner.perplexity(model, WINDOWS, stride=0.5), "stride: got 0.5, expected a whole"),
    "a dtype": (
        lambda model: zpruner.load("tests", dtype=torch.float16),
        "dtype`?: got torch.float16, expected one of",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_arguments_of_a_wrong_kind_are_one_sentence(kind, llama_model):
    call, words = REFUSED[kind]
    with pytest.raises(zpruner.ZprunerError, match=words) as refusal:
        call(llama_model)
    assert "params.yaml" not in str(refusal.value)


def test_one_statistic_and_one_pattern_may_stand_alone(llama_model):
    found = zpruner.calibrate(llama_model, WINDOWS, stats="gram", ignore="*.mlp.*")
    layer = found.inventory.layers[0].name
    assert found.stats(layer).require(Stat.GRAM).shape == (32, 32)
    assert not any(".mlp." in layer.name for layer in found.inventory.layers)
