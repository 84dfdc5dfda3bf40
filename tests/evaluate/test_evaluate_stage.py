"""The evaluate stage: everything it measures, on a tiny project in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from comparing import compare

import zpruner
from stages import apply, calibrate, evaluate, fetch, mask, score
from zpruner.errors import InvalidSettingError, SourceError
from zpruner.evaluate import ZeroShot, jaccard
from zpruner.kernels.parts import Layout
from zpruner.model import take_inventory
from zpruner.packed.size import packed_bytes
from zpruner.settings.params import ZeroShotSettings
from zpruner.text import read_windows

TASKS: dict[str, Any] = {
    "tasks": ["words_local", "words_again"],
    "num_fewshot": 0,
    "limit": None,
    "batch_size": 4,
    "include_path": "tasks",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project up to apply, with two tasks of its own."""
    folder = tmp_path_factory.mktemp("evaluate-stage")
    tiny.make_sources(folder)
    params = tiny.read_params(folder)
    params["model"]["source"] = str(folder / "source/model")
    for text in (params["calibration"], params["evaluation"]["perplexity"]):
        text["source"] = str(folder / "source/text.txt")
    params["evaluation"]["zero_shot"] = TASKS
    tiny.write_params(folder, params)
    (folder / "tasks").mkdir()
    shipped = (tiny.REPOSITORY / "tasks/hellaswag_local.yaml").read_text()
    for task in TASKS["tasks"]:
        (folder / f"tasks/{task}.yaml").write_text(shipped.replace("hellaswag_local", task))
        questions = [
            {"query": tiny.words(5, i), "choices": [tiny.words(2, 9 * i + k) for k in range(4)], "gold": i % 4}
            for i in range(6)
        ]
        (folder / f"tasks/{task}.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    tiny.plan(folder)
    for what in (fetch.What.model, fetch.What.calibration, fetch.What.evaluation):
        fetch.run(what, folder)
    calibrate.run(folder)
    for method in ("wanda", "zpruner"):
        score.run(method, folder)
        mask.run(method, "s24", folder)
        apply.run(method, "s24", folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def results(root: Path, method: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    paths = (
        f"evaluation/{method}/s24.json",
        f"evaluation/{method}/s24.layers.json",
        f"costs/evaluate/{method}/s24.json",
    )
    metrics, details, cost = (json.loads((root / "data" / path).read_text()) for path in paths)
    return metrics, details, cost


def test_an_interrupted_task_does_not_repeat_the_finished_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = ZeroShot.run

    def counted(self: ZeroShot, task: str) -> dict[str, dict[str, float | str]]:
        ran.append(task)
        if ran == ["words_local", "words_again"]:
            raise SourceError("task", "nothing", "data", "Look.")
        return run(self, task)

    monkeypatch.setattr(ZeroShot, "run", counted)
    with pytest.raises(SourceError):
        evaluate.run("wanda", "s24", root=root)
    assert not (root / "data/evaluation/wanda/s24.json").exists()
    evaluate.run("wanda", "s24", root=root)
    assert ran == ["words_local", "words_again", "words_again"]
    metrics, _, _ = results(root, "wanda")
    assert list(metrics["zero_shot"]["tasks"]) == sorted(TASKS["tasks"])


def test_everything_is_that_of_the_pruned_model(root: Path) -> None:
    evaluate.run("wanda", "s24", root=root)
    metrics, details, cost = results(root, "wanda")
    pruned, tokenizer = zpruner.load(root / "data/pruned/wanda/s24")
    dense, _ = zpruner.load(root / "data/models/dense")
    windows, _ = read_windows(root / "data/evaluation/tokens.arrow")
    assert metrics["perplexity"] == pytest.approx(zpruner.perplexity(pruned, windows), rel=1e-6)
    expected = compare(pruned, dense, windows[:2])
    assert details["window_kl"] == pytest.approx(expected.kl, rel=1e-6)
    found = metrics["divergence"]
    assert found["kl"] == pytest.approx(sum(expected.kl) / 2)
    assert found["top1_agreement"] == pytest.approx(sum(expected.agreement) / 2)
    assert found["windows"] == 2
    # Student's quantile for two windows is 12.706, the standard error of their mean half their distance.
    half = 12.7062 * abs(expected.kl[0] - expected.kl[1]) / 2
    assert found["kl_interval"] == {
        "low": pytest.approx(max(0.0, found["kl"] - half), rel=1e-5),
        "high": pytest.approx(found["kl"] + half, rel=1e-5),
    }
    assert set(found["top1_agreement_interval"]) == {"low", "high"}
    interval = metrics["perplexity_interval"]
    assert interval["low"] < metrics["perplexity"] < interval["high"]
    assert metrics["zero_shot"]["sparsity"] == 0.5
    alone = ZeroShot(pruned, tokenizer, ZeroShotSettings.model_validate(TASKS), root).run("words_local")
    assert metrics["zero_shot"]["tasks"]["words_local"] == alone["words_local"]
    prunable = sum(entry["weights"] for entry in details["layers"])
    rest = metrics["bytes"]["stored"] - 4 * prunable
    assert metrics["bytes"]["packed"] == rest + 4 * prunable // 2 + 2 * (prunable // 2) // 8
    shapes = [layer.shape for layer in take_inventory(pruned).layers]
    halves = [(Layout(*shape, torch.float32), torch.full((shape[0],), shape[1] // 2)) for shape in shapes]
    sizes = [packed_bytes(*half) or 4 * shape[0] * shape[1] for half, shape in zip(halves, shapes, strict=True)]
    assert metrics["bytes"]["bitmask"] == rest + sum(sizes)
    assert cost["speed_tokens"] == 64
    assert cost["tokens_per_second"] > 0
    assert "tokens_per_second" not in json.dumps(metrics), "timings would make metrics differ from run to run"


def test_the_sample_is_what_the_model_ranks_first(root: Path) -> None:
    evaluate.run("wanda", "s24", root=root)
    evaluate.run(dense=True, root=root)
    _, details, _ = results(root, "wanda")
    whole = json.loads((root / "data/evaluation/dense.layers.json").read_text())
    windows, _ = read_windows(root / "data/evaluation/tokens.arrow")
    for folder, found in (("pruned/wanda/s24", details), ("models/dense", whole)):
        model, tokenizer = zpruner.load(root / "data" / folder)
        with torch.no_grad():
            choices = model(input_ids=windows[:1].long()).logits[0, -25:-1].argmax(dim=-1)
        assert found["sample"]["text"] == [tokenizer.decode([token]) for token in windows[0, -24:].tolist()]
        assert found["sample"]["choices"] == [tokenizer.decode([token]) for token in choices.tolist()]
    assert details["sample"]["choices"] != whole["sample"]["choices"]


def test_histograms_and_samples(root: Path) -> None:
    for method in ("wanda", "zpruner"):
        evaluate.run(method, "s24", root=root)
    (_, first, _), (_, second, _) = results(root, "wanda"), results(root, "zpruner")
    index = jaccard(first["mask_sample"], second["mask_sample"])
    assert index is not None
    assert 0.34 < index < 1.0
    assert [h["layer"] for h in first["score_histograms"]] == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]
    for histogram, weights in zip(first["score_histograms"], (32 * 32, 32 * 48), strict=True):
        assert sum(histogram["kept"]) == sum(histogram["pruned"]) == weights // 2


def test_metrics_are_the_same_every_time(root: Path) -> None:
    files = [root / f"data/evaluation/zpruner/s24{end}" for end in (".json", ".layers.json")]
    evaluate.run("zpruner", "s24", root=root)
    before = [file.read_bytes() for file in files]
    for folder in (root / "data/.work").glob("evaluate-*"):
        shutil.rmtree(folder)
    evaluate.run("zpruner", "s24", root=root)
    assert [file.read_bytes() for file in files] == before


def test_the_dense_model(root: Path) -> None:
    evaluate.run(dense=True, root=root)
    metrics = json.loads((root / "data/evaluation/dense.json").read_text())
    assert metrics["zero_shot"]["sparsity"] == 0.0
    assert set(metrics["bytes"]) == {"stored", "read"}
    assert "divergence" not in metrics


def test_a_protocol_that_the_settings_do_not_keep(root: Path, tmp_path: Path) -> None:
    params = tiny.read_params(root)
    params["evaluation"]["perplexity"]["protocol"] = "wikitext2"
    tiny.write_params(tmp_path, params)
    with pytest.raises(InvalidSettingError, match="as the protocol 'wikitext2' is published"):
        evaluate.run(dense=True, root=tmp_path)


def test_a_stride_reaches_losses_divergence_and_provenance(root: Path) -> None:
    original, tokens = tiny.read_params(root), root / "data/evaluation/tokens.arrow"
    windows_before = tokens.read_bytes()
    params = tiny.read_params(root)
    params["evaluation"]["perplexity"] |= {"stride": 8}
    tiny.write_params(root, params)
    try:
        fetch.run(fetch.What.evaluation, root)
        evaluate.run("zpruner", "s24", root=root)
        metrics, details, _ = results(root, "zpruner")
        windows, _ = read_windows(tokens)
    finally:
        tiny.write_params(root, original)
        tokens.write_bytes(windows_before)
    assert torch.equal(windows[1, :24], windows[0, 8:])
    model, _ = zpruner.load(root / "data/pruned/zpruner/s24")
    dense, _ = zpruner.load(root / "data/models/dense")
    assert metrics["perplexity"] == pytest.approx(zpruner.perplexity(model, windows, stride=8), rel=1e-6)
    assert details["window_kl"] == pytest.approx(compare(model, dense, windows[:2], 8).kl, rel=1e-6)
    assert details["provenance"]["evaluation_stride"] == 8


def test_fewer_compared_windows_change_no_loss(root: Path) -> None:
    evaluate.run("zpruner", "s24", root=root)
    before = results(root, "zpruner")
    params = tiny.read_params(root)
    params["evaluation"]["perplexity"]["divergence"] = 0
    original = tiny.read_params(root)
    tiny.write_params(root, params)
    try:
        evaluate.run("zpruner", "s24", root=root)
        after = results(root, "zpruner")
    finally:
        tiny.write_params(root, original)
    torch.testing.assert_close(after[1]["window_losses"], before[1]["window_losses"])
    assert after[1]["window_kl"] == []
    assert "divergence" not in after[0]
    assert "tokens_per_second" not in after[2]
