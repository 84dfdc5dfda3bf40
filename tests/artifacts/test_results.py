"""Files of results: what is written is read, every altered character is refused or harmless, and complaints name it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.artifacts.costs import Cost
from zpruner.artifacts.files import read_sealed_json, write_sealed_json
from zpruner.artifacts.result_file import Result, Shown, in_words, shown_fields, value_at
from zpruner.artifacts.results import (
    Details,
    Divergence,
    FoundFormula,
    Histogram,
    Interval,
    Layer,
    Likeness,
    Metrics,
    Storage,
    Task,
    ZeroShot,
)
from zpruner.errors import ArtifactError

METRICS = Metrics(
    perplexity=31.25,
    perplexity_interval=Interval(low=28.5, high=34.0),
    loss=math.log(31.25),
    sparsity=0.5,
    layer_error=0.0625,
    windows=6,
    tokens=3072,
    seqlen=512,
    bytes=Storage(stored=269_000_000, bitmask=151_000_000),
    divergence=Divergence(kl=0.125, top1_agreement=0.75, windows=6),
    zero_shot=ZeroShot(
        sparsity=0.5, tasks={"boolq": Task.model_validate({"acc": 0.5, "acc_stderr": 0.01, "version": 2.0})}
    ),
)
LAYER = Layer(layer="model.layers.0.q", block=0, kind="q", weights=64, sparsity=0.5, layer_error=0.1)
DETAILS = Details(
    layers=(LAYER,),
    layer_error_from="gram",
    window_losses=(3.25, math.inf, 3.5),
    mask_sample="q80=",
    score_histograms=(Histogram(layer="q", edges=(0.0, 1.0), kept=(3,), pruned=(4,)),),
    provenance={"evaluation_hash": "c0ffee", "evaluation_stride": 512},
)
COST = Cost(stage="evaluate", seconds=1.5, peak_memory_bytes=1 << 30, layers=210, streamed=False)
FOUND = FoundFormula(
    formula="mul(W, X)",
    fitness=3.5,
    evaluations=40,
    stopped="seconds",
    known={"wanda": 3.75, "magnitude": None},
    correlations=(Likeness(formula="mul(W, X)", fitness=3.5, correlations={"wanda": 0.875}),),
    settings={"seed": 11},
    model="tiny",
)
RESULTS: list[Result] = [METRICS, DETAILS, COST, FOUND]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_what_is_written_is_read(tmp_path: Path, result: Result) -> None:
    path = tmp_path / "result.json"
    result.write(path)
    assert type(result).read(path, "dvc repro") == result
    stored = json.loads(path.read_text())
    assert isinstance(stored.pop("content_checksum"), str), "no number that DVC would count among the metrics"
    assert None not in stored.values()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every result, written once."""
    made = tmp_path_factory.mktemp("results")
    for number, result in enumerate(RESULTS):
        result.write(made / f"{number}.json")
    return made


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_one_altered_character_is_refused_or_harmless(folder: Path, data: Any) -> None:
    path = folder / "altered.json"
    number = data.draw(st.integers(0, len(RESULTS) - 1))
    result, text = RESULTS[number], (folder / f"{number}.json").read_text()
    at = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from([*'0123456789.-+eE"\\{}[],: \n', "", "ä", "x", text[at] * 2]))
    path.write_text(text[:at] + character + text[at + 1 :])
    try:
        found = type(result).read(path, "dvc repro evaluate@wanda-s50")
    except ArtifactError as error:
        words = str(error)
    else:
        assert found == result
        return
    assert str(path) in words
    assert "dvc repro evaluate@wanda-s50" in words


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"3", b"\xff\xfe\x00", b"[" * 9999, b'{"perplexity": 3}'],
    ids=range(7),
)
def test_what_is_no_sealed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s50.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"s50\.json: got an altered or truncated file"):
        Metrics.read(path, "dvc repro")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"s50\.json: got no file, .* Run `dvc repro`"):
        Metrics.read(path, "dvc repro")
    path.mkdir()
    with pytest.raises(ArtifactError, match=r"s50\.json: got a folder"):
        Metrics.read(path, "dvc repro")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perplexity": "3"}, "got '3' under 'perplexity', expected a valid number"),
        ({"perplexity": True}, "got True under 'perplexity', expected a valid number"),
        ({"perplexity": None}, "got None under 'perplexity', expected a valid number"),
        ({"sparsity": 1.5}, "got 1.5 under 'sparsity', expected less than or equal to 1"),
        ({"windows": 3.5}, "got 3.5 under 'windows', expected a valid integer"),
        ({"bytes": {"bitmask": 3}}, "got no such key under 'bytes.stored', expected a value"),
        ({"speed": 3}, "got 3 under 'speed', expected a key of this version"),
        ({"zero_shot": {"sparsity": 0, "tasks": {"a": {"acc": "x"}}}}, "got 'x' under 'zero_shot.tasks.a.acc'"),
    ],
)
def test_a_wrong_value_in_a_whole_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "s50.json"
    write_sealed_json(path, METRICS.model_dump(mode="json", exclude_none=True) | {"place": "s50.json"} | changes)
    with pytest.raises(ArtifactError) as caught:
        Metrics.read(path, "dvc repro")
    assert f"{path}: {message.removeprefix(' ')}"[:-1] in str(caught.value)


def test_nan_and_infinity_are_values(tmp_path: Path) -> None:
    path = tmp_path / "s50.json"
    METRICS.model_copy(update={"perplexity": math.inf, "loss": math.nan}).write(path)
    found = Metrics.read(path, "dvc repro")
    assert math.isinf(found.perplexity)
    assert math.isnan(found.loss)


def test_one_annotated_field_is_a_metric_everywhere() -> None:
    class More(Metrics):
        bits: Annotated[float, Shown("bits per token", detail="{seqlen} tokens")] = 5.0

    fields = shown_fields(More)
    assert {shown.title for shown in shown_fields(Metrics).values()} < {shown.title for shown in fields.values()}
    more = More(**dict(METRICS))
    assert value_at(more, ("bits",)) == 5.0
    assert in_words(fields["bits",], more) == "bits per token (512 tokens)"
    assert value_at(more, ("divergence", "kl")) == 0.125
    assert value_at(more.model_copy(update={"divergence": None}), ("divergence", "kl")) is None
    assert fields["bytes", "stored"].number(269_000_000) == 269.0


@pytest.mark.parametrize("result", [METRICS, DETAILS])
def test_the_results_of_another_variant_are_refused(tmp_path: Path, result: Any) -> None:
    path, other = (tmp_path / "data" / "evaluation" / method / "s50.json" for method in ("wanda", "ria"))
    result.write(path)
    assert type(result).read(path, "dvc repro") == result
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    with pytest.raises(
        ArtifactError, match=r"ria/s50\.json: got results of wanda/s50\.json, expected those of ria/s50"
    ):
        type(result).read(other, "dvc repro")
    left = {key: value for key, value in read_sealed_json(path, "results").items() if key != "place"}
    write_sealed_json(other, left)
    with pytest.raises(ArtifactError, match="got results that do not say whose they are, expected those of ria/s50"):
        type(result).read(other, "dvc repro")
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere") / "evaluation" / "wanda" / "s50.json"
    assert type(result).read(moved, "dvc repro") == result
