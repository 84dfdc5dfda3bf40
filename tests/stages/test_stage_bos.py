"""Perplexity of a model that expects a BOS: what is predicted, and from what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import staged
import tiny
import torch
from tokenizers import processors
from torch.nn.functional import cross_entropy

import zpruner
from stages import evaluate, fetch
from zpruner.errors import InvalidSettingError
from zpruner.evaluate import evaluation_text, protocol
from zpruner.settings.texts import PerplexitySettings
from zpruner.sources import read_text
from zpruner.text import counted_tokens, evaluation_windows, read_begin, read_windows


def with_bos(folder: Path, template: str = "<s> $A") -> None:
    """Let the tokenizer of a checkpoint put special tokens around every text."""
    tokenizer = tiny.tokenizer()
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tiny project whose tokenizer adds a BOS."""
    staged.make(tmp_path)
    with_bos(tmp_path / "source" / "model")
    tiny.plan(tmp_path)
    return tmp_path


def test_both_texts_and_the_dense_row_begin_with_it(project: Path) -> None:
    for name in ("fetch-model", "fetch-calibration", "fetch-evaluation", "evaluate_dense"):
        staged.INSTANCES[name](project)
    plain = tiny.tokenizer()
    for kind, part in (("calibration", slice(0, 10)), ("evaluation", slice(10, 20))):
        path = project / "data" / kind / "tokens.arrow"
        windows, _ = read_windows(path)
        assert read_begin(path) == (1,)
        assert windows[:, 0].tolist() == [1] * 6
        lines = (project / "source" / "text.txt").read_text().split("\n")[part]
        ids = plain("\n\n".join(lines))["input_ids"]
        if kind == "evaluation":
            assert windows[:, 1:].flatten().tolist() == ids[: 6 * 31]
        assert not (windows[:, 1:] == 1).any()
    model, _ = zpruner.load(project / "data" / "models" / "dense")
    logits = model(windows.long()).logits.float()
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].long().flatten(), reduction="none")
    found = json.loads((project / "data" / "evaluation" / "dense.json").read_text())
    assert found["loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-5)
    details = json.loads((project / "data" / "evaluation" / "dense.layers.json").read_text())["provenance"]
    assert (details["evaluation_bos"], details["evaluation_begin"]) == ("auto", "1")


def test_never_and_a_begin_of_two_tokens(project: Path) -> None:
    staged.change_params(project, "evaluation.perplexity.bos", "never")
    staged.INSTANCES["fetch-model"](project)
    fetch.run(fetch.What.evaluation, project)
    never, _ = read_windows(project / "data" / "evaluation" / "tokens.arrow")
    assert not (never == 1).any()
    with_bos(project / "source" / "model", "</s> <s> $A")
    staged.change_params(project, "evaluation.perplexity.bos", "auto")
    staged.INSTANCES["fetch-model"](project)
    fetch.run(fetch.What.evaluation, project)
    windows, _ = read_windows(project / "data" / "evaluation" / "tokens.arrow")
    assert windows[:, :2].tolist() == [[2, 1]] * 6
    assert torch.equal(windows[:, 2:].flatten(), never.flatten()[: 6 * 30])
    evaluate.run(dense=True, root=project)
    model, _ = zpruner.load(project / "data" / "models" / "dense")
    logits = model(windows.long()).logits.float()
    losses = cross_entropy(logits[:, 1:-1].flatten(0, 1), windows[:, 2:].long().flatten(), reduction="none")
    found = json.loads((project / "data" / "evaluation" / "dense.json").read_text())
    assert found["loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-5)


def test_in_memory_windows_follow_the_same_rule(project: Path) -> None:
    model, tokenizer = zpruner.load(project / "source" / "model")
    text = project / "source" / "text.txt"
    windows = zpruner.load_windows(text, model, tokenizer, nsamples=4, seqlen=32)
    assert windows[:, 0].tolist() == [1] * 4
    assert not (zpruner.load_windows(text, model, tokenizer, nsamples=4, seqlen=32, bos="never") == 1).any()
    with pytest.raises(InvalidSettingError, match=r"bos: got 'Always', expected auto, always or never. Did you mean"):
        zpruner.load_windows(text, model, tokenizer, nsamples=4, seqlen=32, bos="Always")


def test_a_protocol_keeps_its_own_rule(project: Path) -> None:
    _, tokenizer = zpruner.load(project / "source" / "model")
    settings = protocol("wikitext2", source=str(project / "source" / "text.txt"), seqlen=32)
    text = evaluation_text(read_text(settings.source, None, project), settings)
    windows = evaluation_windows(text, tokenizer, seqlen=32, vocab_size=tiny.VOCABULARY, bos=settings.begin)
    whole = tokenizer((project / "source" / "text.txt").read_text())["input_ids"]
    assert windows.flatten().tolist() == whole[: windows.numel()]
    assert (windows[:, 0] == 1).tolist() == [True] + [False] * (len(windows) - 1)
    with pytest.raises(InvalidSettingError, match=r"perplexity\.bos: got 'always', expected 'auto', as the protocol"):
        protocol("wikitext2", bos="always")
    assert PerplexitySettings(source="x", seqlen=8, bos="never").begin == "never"


def test_one_window_is_what_the_harness_calls_a_rolling_likelihood(project: Path) -> None:
    """lm-evaluation-harness predicts every token of a text once, the first from the BOS."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = zpruner.load(project / "source" / "model")
    text = tiny.words(12, 3)
    ids = tokenizer(text)["input_ids"]
    windows = torch.tensor([ids], dtype=torch.int32)
    mean = torch.log(torch.tensor(zpruner.perplexity(model, windows)))
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=False)
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (rolling,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    assert -rolling == pytest.approx(float(mean) * counted_tokens(len(ids), None, 1), rel=1e-5)
