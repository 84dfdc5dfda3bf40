"""Harness tasks on a model in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from zpruner.errors import InvalidSettingError, SourceError, UnknownNameError
from zpruner.evaluate.zero_shot import ZeroShot, scores
from zpruner.settings.params import ZeroShotSettings

SETTINGS = ZeroShotSettings(tasks=("words_local",), num_fewshot=0, batch_size=4, include_path="tasks")
QUESTIONS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero-shot")
    (folder / "tasks").mkdir()
    shipped = (tiny.REPOSITORY / "tasks/hellaswag_local.yaml").read_text()
    (folder / "tasks/words.yaml").write_text(shipped.replace("hellaswag_local", "words_local"))
    lines = [
        {
            "query": tiny.words(6, seed),
            "choices": [tiny.words(2 + i, 100 * seed + i) for i in range(4)],
            "gold": seed % 4,
        }
        for seed in range(QUESTIONS)
    ]
    (folder / "tasks/words_local.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def log_likelihood(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(context) - 1
    return sum(float(log_p[start + i, token]) for i, token in enumerate(continuation))


def test_scores_are_those_of_a_plain_loop(root: Path, llama_model: PreTrainedModel) -> None:
    tokenizer = tiny.tokenizer()
    found = ZeroShot(llama_model, tokenizer, SETTINGS, root).run("words_local")["words_local"]
    right = normalised = 0
    for line in (root / "tasks/words_local.jsonl").read_text().splitlines():
        doc = json.loads(line)
        context = tokenizer(doc["query"])["input_ids"]
        totals = []
        for choice in doc["choices"]:
            whole = tokenizer(f"{doc['query']} {choice}")["input_ids"]
            totals.append(log_likelihood(llama_model, context, whole[len(context) :]))
        right += totals.index(max(totals)) == doc["gold"]
        by_length = [t / len(c) for t, c in zip(totals, doc["choices"], strict=True)]
        normalised += by_length.index(max(by_length)) == doc["gold"]
    assert found["acc"] == pytest.approx(right / QUESTIONS)
    assert found["acc_norm"] == pytest.approx(normalised / QUESTIONS)
    p = right / QUESTIONS
    assert found["acc_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (QUESTIONS - 1)))
    assert (found["version"], found["samples"], found["num_fewshot"]) == (1.0, QUESTIONS, 0)


def test_the_model_in_memory_is_the_one_that_is_scored(root: Path, llama_model: PreTrainedModel) -> None:
    dense = ZeroShot(llama_model, tiny.tokenizer(), SETTINGS, root).run("words_local")
    broken = tiny.build("llama")
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.zero_()
    assert ZeroShot(broken, tiny.tokenizer(), SETTINGS, root).run("words_local") != dense


def test_limit_and_few_shot_examples_arrive(root: Path, llama_model: PreTrainedModel) -> None:
    settings = SETTINGS.model_copy(update={"limit": 5, "num_fewshot": 1})
    found = ZeroShot(llama_model, tiny.tokenizer(), settings, root).run("words_local")["words_local"]
    assert (found["samples"], found["num_fewshot"]) == (5, 1)


def test_it_is_quiet_outside_git_too(
    root: Path, llama_model: PreTrainedModel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    ZeroShot(llama_model, tiny.tokenizer(), SETTINGS, root).run("words_local")
    out, err = capfd.readouterr()
    assert out == ""
    assert "it/s" not in err
    assert "fatal" not in err


@pytest.mark.parametrize("num_fewshot", [None, 0, 2])
def test_results_are_those_of_the_harness_itself(
    root: Path, llama_model: PreTrainedModel, num_fewshot: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = SETTINGS.model_copy(update={"num_fewshot": num_fewshot, "limit": 6})
    ours = ZeroShot(llama_model, tiny.tokenizer(), settings, root).run("words_local")
    monkeypatch.chdir(root)
    theirs = simple_evaluate(
        HFLM(pretrained=llama_model, tokenizer=tiny.tokenizer(), batch_size=4),
        tasks=["words_local"],
        num_fewshot=num_fewshot,
        limit=6,
        task_manager=TaskManager(include_path="tasks", include_defaults=False),
        log_samples=False,
    )
    assert ours == scores(theirs)


def test_missing_data_is_one_sentence(tmp_path: Path, root: Path, llama_model: PreTrainedModel) -> None:
    (tmp_path / "tasks").mkdir()
    text = (root / "tasks/words.yaml").read_text()
    (tmp_path / "tasks/words.yaml").write_text(text)
    (tmp_path / "tasks/hub.yaml").write_text(
        text.replace("words_local", "hub_task").replace("dataset_path: json", "dataset_path: acme/nothing")
    )
    settings = SETTINGS.model_copy(update={"tasks": ("words_local", "hub_task")})
    harness = ZeroShot(llama_model, tiny.tokenizer(), settings, tmp_path)
    for task in settings.tasks:
        with pytest.raises(SourceError, match=rf"zero-shot task '{task}': got no data set \(") as caught:
            harness.run(task)
        assert "\n" not in str(caught.value)


def test_an_unknown_task_is_answered_with_the_nearest(root: Path, llama_model: PreTrainedModel) -> None:
    settings = SETTINGS.model_copy(update={"tasks": ("hellaswagg",)})
    with pytest.raises(UnknownNameError, match=r"'hellaswagg', expected a task of the harness\. Did you mean 'hellasw"):
        ZeroShot(llama_model, tiny.tokenizer(), settings, root)


@pytest.mark.parametrize(
    ("change", "tokenizer", "message"),
    [({"include_path": "nowhere"}, True, "'nowhere', expected a folder"), ({}, False, "without a tokenizer")],
)
def test_bad_settings(
    root: Path, llama_model: PreTrainedModel, change: dict[str, str], tokenizer: bool, message: str
) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        ZeroShot(llama_model, tiny.tokenizer() if tokenizer else None, SETTINGS.model_copy(update=change), root)


def test_filters_and_groups_of_the_harness() -> None:
    found = scores(
        {
            "results": {
                "gsm": {"alias": "gsm", "exact_match,strict": 0.25, "exact_match_stderr,strict": "N/A"},
                "group": {"acc,none": 1, " ": " "},
            },
            "versions": {"gsm": 3.0},
            "n-shot": {"gsm": 5},
            "n-samples": {"gsm": {"original": 9, "effective": 7}},
        }
    )
    assert found == {
        "gsm": {"exact_match.strict": 0.25, "version": 3.0, "num_fewshot": 5, "samples": 7},
        "group": {"acc": 1.0},
    }


def test_the_shipped_example_task_runs(llama_model: PreTrainedModel) -> None:
    settings = ZeroShotSettings(tasks=("hellaswag_local",), include_path="tasks")
    found = ZeroShot(llama_model, tiny.tokenizer(), settings, tiny.REPOSITORY).run("hellaswag_local")
    assert found["hellaswag_local"]["samples"] == 8
