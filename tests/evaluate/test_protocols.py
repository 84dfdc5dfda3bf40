"""Published protocols, spelled out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from ruamel.yaml import YAML

from zpruner.errors import InvalidSettingError, SourceError, UnknownNameError
from zpruner.evaluate import PROTOCOLS, check_protocol, evaluation_text, protocol
from zpruner.settings.params import EvaluationSettings
from zpruner.settings.reading import read_params
from zpruner.settings.texts import CalibrationSettings, PerplexitySettings
from zpruner.sources import Documents, TokenTable, read_text
from zpruner.text import evaluation_windows


def tokens_of(name: str, texts: list[str], seqlen: int = 16, windows: int | None = None) -> torch.Tensor:
    """Windows by our code from documents, in the protocol's manner."""
    settings = protocol(name, seqlen=seqlen)
    text = evaluation_text(Documents("test", tuple(texts)), settings)
    return evaluation_windows(text, tiny.tokenizer(), seqlen=seqlen, vocab_size=tiny.VOCABULARY, windows=windows)


def plain(joined: str, seqlen: int, windows: int | None = None) -> torch.Tensor:
    ids = torch.tensor(tiny.tokenizer()(joined)["input_ids"])
    count = min(len(ids) // seqlen, windows or len(ids))
    return ids[: count * seqlen].reshape(count, seqlen).int()


def test_wikitext2_joins_with_blank_lines() -> None:
    texts = ["", tiny.words(30, 1), "", tiny.words(40, 2), tiny.words(9, 3)]
    assert torch.equal(tokens_of("wikitext2", texts), plain("\n\n".join(texts), 16))


def test_ptb_joins_with_spaces() -> None:
    texts = [tiny.words(12, seed) for seed in range(9)]
    found = tokens_of("ptb", texts)
    assert torch.equal(found, plain(" ".join(texts), 16))
    assert not torch.equal(found, plain("\n\n".join(texts), 16)[: len(found)])


def test_c4_takes_the_first_1100_documents_and_256_windows() -> None:
    texts = [tiny.words(4, seed) for seed in range(1300)]
    joined = " ".join(texts[:1100])
    found = tokens_of("c4", texts, seqlen=8, windows=PROTOCOLS["c4"]["windows"])
    assert found.shape == (256, 8)
    assert torch.equal(found, plain(joined, 8, 256))
    everything = tokens_of("c4", texts, seqlen=8)
    assert torch.equal(everything, plain(joined, 8)), "more than the first 1100 documents"


def test_every_protocol_says_everything() -> None:
    for name in PROTOCOLS:
        settings = protocol(name)
        assert settings.protocol == name
        assert settings.seqlen == 2048
        assert settings.part == (0.0, 1.0)
        assert settings.documents == "file"
        assert settings.source.startswith("hf:")
    assert protocol("wikitext2").config == "wikitext-2-raw-v1"
    assert protocol("c4").windows == 256


class FakeData:
    """What `datasets.load_dataset` returns, as far as we use it."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def with_format(self, kind: str) -> FakeData:
        assert kind == "arrow"
        return self

    def __getitem__(self, rows: slice) -> pa.Table:
        assert rows == slice(None)
        return self.table


def test_wikitext2_asks_the_hub_for_the_pinned_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(name: str, config: str, **options: Any) -> FakeData:
        asked.update(name=name, config=config, **options)
        return FakeData(pa.table({"text": ["", "one two", "three"]}))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    settings = protocol("wikitext2")
    text = read_text(
        settings.source, settings.sha256, tmp_path, column=settings.column, config=settings.config, split=settings.split
    )
    assert isinstance(text, Documents)
    assert text.texts == ("", "one two", "three")
    assert (asked["name"], asked["config"], asked["split"]) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    assert len(asked["revision"]) == 40


def test_c4_asks_the_hub_for_one_pinned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c4.json"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')

    def download(repo: str, name: str, *, revision: str, repo_type: str, local_dir: Path) -> str:
        assert (repo, name, repo_type) == ("allenai/c4", "en/c4-validation.00000-of-00008.json.gz", "dataset")
        assert len(revision) == 40
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    text = read_text(protocol("c4").source, None, tmp_path)
    assert isinstance(text, Documents)
    assert text.texts == ("one", "two")


def test_ptb_must_be_pinned_by_its_user(tmp_path: Path) -> None:
    settings = protocol("ptb")
    with pytest.raises(InvalidSettingError, match="a revision that can move"):
        read_text(settings.source, None, tmp_path, config=settings.config, split=settings.split)


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nwith details")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    settings = protocol("wikitext2")
    with pytest.raises(SourceError, match=r"nothing from the hub \(Couldn't reach the hub\)"):
        read_text(settings.source, None, tmp_path, config=settings.config, split=settings.split)


def test_a_local_copy_under_the_protocol(tmp_path: Path) -> None:
    found = protocol("ptb", source="ptb.test.parquet", seqlen=1024)
    assert (found.source, found.split, found.joiner, found.seqlen) == ("ptb.test.parquet", None, " ", 1024)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("wikitext2", {"joiner": " "}),
        ("wikitext2", {"windows": 32}),
        ("wikitext2", {"stride": 512}),
        ("wikitext2", {"part": (0.5, 1.0)}),
        ("wikitext2", {"documents": "lines"}),
        ("c4", {"max_documents": None}),
        ("c4", {"windows": 128}),
        ("ptb", {"joiner": "\n\n"}),
    ],
)
def test_a_claim_that_is_not_kept_is_refused(name: str, change: dict[str, Any]) -> None:
    settings = PerplexitySettings(protocol=name, **{**PROTOCOLS[name], **change})
    with pytest.raises(InvalidSettingError, match=f"as the protocol '{name}' is published"):
        check_protocol(settings)
    check_protocol(settings.model_copy(update={"protocol": None}))


def test_a_stride_longer_than_the_window_is_no_setting() -> None:
    with pytest.raises(ValueError, match="at most seqlen, 8"):
        PerplexitySettings(source="a.txt", seqlen=8, stride=9)
    assert PerplexitySettings(source="a.txt", seqlen=8, stride=8).stride == 8


def test_the_profile_of_the_published_tables_keeps_their_protocol() -> None:
    params = read_params(tiny.REPOSITORY / "docs/profiles/llama-2-7b.yaml")
    assert params.evaluation.perplexity == protocol("wikitext2", batch_size=1, divergence=8)
    check_protocol(params.evaluation.perplexity)
    assert params.evaluation.zero_shot is not None
    assert params.evaluation.zero_shot.tasks == ("hellaswag", "boolq", "winogrande", "mnli", "wnli")
    assert (params.calibration.nsamples, params.calibration.seqlen, params.calibration.propagation) == (
        128,
        2048,
        "pruned",
    )
    assert params.sparsities == {"s50": 0.5}


def test_an_unknown_protocol() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'wikitext2'"):
        protocol("wikitext")
    with pytest.raises(UnknownNameError, match="Did you mean 'wikitext2'"):
        check_protocol(PerplexitySettings(protocol="wikitext", source="a.txt", seqlen=8))


def test_blank_lines_leave_documents_apart_and_other_joiners_refuse_a_part() -> None:
    text = Documents("t", ("a", "b", "c", "d"))
    halves = PerplexitySettings(source="t", seqlen=8, part=(0.5, 1.0))
    assert evaluation_text(text, halves) == text
    with pytest.raises(InvalidSettingError, match="the whole text"):
        evaluation_text(text, halves.model_copy(update={"joiner": " "}))
    table = TokenTable("t", np.zeros((2, 8), dtype=np.int32))
    assert evaluation_text(table, halves) is table


@pytest.mark.parametrize("page", ["evaluation.md", "zero_shot.md"])
def test_documented_settings_are_accepted_and_keep_their_claims(page: str) -> None:
    text = (tiny.REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        data = YAML(typ="safe", pure=True).load(block)
        ask = data["evaluation"]
        filler = {"perplexity": {"source": "text.txt", "seqlen": 8}}
        settings = EvaluationSettings.model_validate(filler | ask)
        check_protocol(settings.perplexity)
        if "calibration" in data:
            CalibrationSettings.model_validate(data["calibration"])
