from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import httpx2
import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils._paths import filter_repo_objects

from zpruner.errors import DiskFullError, HashMismatchError, InvalidSettingError, SourceError
from zpruner.sources import Documents, TokenTable, fetch_model, file_sha256, folder_sha256, read_text, texts_sha256

COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
MODEL = f"hf:some/model@{COMMIT}"
DATA = f"hf:some/data@{COMMIT}"


def _raising(error: Exception) -> Callable[..., None]:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("Cannot reach the hub:\noffline mode is enabled."),
        RepositoryNotFoundError("404 Client Error.", response=RESPONSE),
        httpx2.ConnectError("Name or service not known"),
        TimeoutError("timed out"),
    ],
)
def test_unreachable_model_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raising(error))
    with pytest.raises(SourceError) as caught:
        fetch_model(MODEL, None, tmp_path / "out", tmp_path, "auto")
    message = str(caught.value)
    assert str(error).splitlines()[0].rstrip(".:") in message
    assert f"some/model at revision {COMMIT}" in message
    assert "set source in params.yaml to its local path" in message
    assert "\n" not in message
    assert caught.value.__suppress_context__


def test_really_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="nothing from the hub"):
        fetch_model(MODEL, None, tmp_path / "out", tmp_path, "auto")
    with pytest.raises(SourceError, match="nothing from the hub"):
        read_text(f"{DATA}/x.txt", None, tmp_path)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raising(OSError(28, "No space left on device")))
    with pytest.raises(DiskFullError):
        fetch_model(MODEL, None, tmp_path / "out", tmp_path, "auto")


def test_a_moving_revision_needs_a_hash(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="commit"):
        fetch_model("hf:some/model@main", None, tmp_path / "out", tmp_path, "auto")
    with pytest.raises(InvalidSettingError, match="commit"):
        read_text("hf:some/data@main", None, tmp_path, split="train")


def test_model_asks_for_safe_top_level_files(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/config.json", "run.py", "x.pt"]
    repository += ["tokenizer.json", "tokenizer.model", "merges.txt"]
    asked: dict[str, Any] = {}

    def download(repo: str, **settings: Any) -> None:
        asked.update(settings, repo=repo)
        settings["local_dir"].mkdir(parents=True)
        for path in llama.iterdir():
            (settings["local_dir"] / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch_model("hf:some/model@main", folder_sha256(llama), tmp_path / "out", tmp_path / "d", "auto")
    assert (asked["repo"], asked["revision"]) == ("some/model", "main")
    wanted = filter_repo_objects(
        repository, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert sorted(wanted) == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json", "tokenizer.model"]


def test_one_file_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, file: str, **settings: Any) -> str:
        assert (repo, file) == ("some/data", "en/a.txt")
        assert (settings["revision"], settings["repo_type"]) == (COMMIT, "dataset")
        path: Path = settings["local_dir"] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n\ntwo\n")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = f"{DATA}/en/a.txt"
    text = read_text(source, None, tmp_path, documents="lines")
    assert text == Documents(source, ("one", "two"))
    with pytest.raises(HashMismatchError):
        read_text(source, "0" * 64, tmp_path)
    (path,) = tmp_path.rglob("a.txt")
    assert read_text(source, file_sha256(path), tmp_path) == Documents(source, ("one\n\ntwo\n",))


def test_whole_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "one", "two"]

    def load(repo: str, config: str, **settings: Any) -> datasets.Dataset:
        assert (repo, config, settings["split"], settings["revision"]) == ("some/data", "raw", "test", COMMIT)
        return datasets.Dataset.from_dict({"page": texts})

    monkeypatch.setattr(datasets, "load_dataset", load)

    def read(sha256: str | None) -> object:
        return read_text(DATA, sha256, tmp_path, column="page", config="raw", split="test")

    # Empty rows stay: the published protocol joins all of WikiText-2's lines.
    assert read(None) == Documents(DATA, ("", "one", "two"))
    assert read(texts_sha256(texts)) == Documents(DATA, ("", "one", "two"))
    with pytest.raises(HashMismatchError):
        read("0" * 64)
    with pytest.raises(InvalidSettingError, match="name of a split"):
        read_text(DATA, None, tmp_path)


def test_token_table_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.table({"input_ids": [[1, 2], [3, 4]]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(rows))
    table = read_text(DATA, None, tmp_path, split="test")
    assert isinstance(table, TokenTable)
    assert table.input_ids.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'some/data' doesn't exist on the Hub"),
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        ValueError("BuilderConfig 'x' not found. Available: ['y']"),
        ConnectionError("Couldn't reach 'some/data' on the Hub"),
    ],
)
def test_unobtainable_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(datasets, "load_dataset", _raising(error))
    with pytest.raises(SourceError, match=r"some/data at revision") as caught:
        read_text(DATA, None, tmp_path, split="test")
    assert str(error)[:30] in str(caught.value)
    assert caught.value.__suppress_context__


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SourceError, match=r"zpruner\[sources\]"):
        read_text(DATA, None, tmp_path, split="test")
