"""Local models and texts that change under the same path are fetched again; the same content runs nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tiny

from stages import sources
from zpruner.errors import SourceError
from zpruner.sources import Content, Fingerprints, folder_sha256

pytestmark = pytest.mark.xdist_group("finished_project")


def content(root: Path, what: str) -> str:
    return Content.read(root / "data" / "sources" / f"{what}.json", "dvc repro").content


def test_hashes_are_taken_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.make_sources(tmp_path)
    model, text = tmp_path / "source" / "model", tmp_path / "source" / "text.txt"
    sources.run(tmp_path)
    assert content(tmp_path, "model") == folder_sha256(model)
    assert content(tmp_path, "calibration") == content(tmp_path, "evaluation") != content(tmp_path, "model")
    assert content(tmp_path, "packages") == ""

    with monkeypatch.context() as patch:
        patch.setattr("zpruner.sources._fingerprint.folder_sha256", None)
        patch.setattr("zpruner.sources._fingerprint.file_sha256", None)
        sources.run(tmp_path)  # nothing is read a second time

    before, facts = text.read_bytes(), text.stat()
    replaced = tmp_path / "source" / "other.txt"
    replaced.write_bytes(before.swapcase())
    os.utime(replaced, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    replaced.replace(text)  # of the same size and time of change
    old = content(tmp_path, "calibration")
    sources.run(tmp_path)
    assert content(tmp_path, "calibration") != old
    text.write_bytes(before)
    sources.run(tmp_path)
    assert content(tmp_path, "calibration") == old


def test_damaged_memory_is_forgotten(tmp_path: Path) -> None:
    file, memory = tmp_path / "a.txt", tmp_path / "memory.json"
    file.write_text("a")
    found = Fingerprints(memory).of("text", file)
    for damage in (b"", b"[]", b"{}", memory.read_bytes()[:-9], b"\xff"):
        memory.write_bytes(damage)
        assert Fingerprints(memory).of("text", file) == found


def test_a_source_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    tiny.make_sources(tmp_path)
    shutil.rmtree(tmp_path / "source" / "model")
    with pytest.raises(SourceError, match=r"^model\.source: got .*source/model: No such file.*params\.yaml names"):
        sources.run(tmp_path)


def test_dvc_fetches_a_changed_source_again_and_nothing_else_runs(finished_project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(finished_project, tmp_path / "project", symlinks=True)
    text = root / "source" / "text.txt"
    whole = text.read_text(encoding="utf-8")
    os.utime(text)  # touched: the same content
    both = ("fetch@calibration", "fetch@evaluation")
    assert tiny.repro(root, *both) == []
    lines = whole.splitlines()
    text.write_text("\n".join([*lines[:-1], tiny.words(60, seed=77)]), encoding="utf-8")
    assert sorted(tiny.repro(root, *both)) == list(both)
    assert tiny.repro(root, "calibrate") == [], "the part that calibration reads is as it was"
