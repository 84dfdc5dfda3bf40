"""What model and texts come from, where DVC sees it change."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import staged
import tiny

from stages import fetch, sources
from zpruner.checkpoint import Checkpoint
from zpruner.errors import SourceError, UnknownNameError

FIRST, SECOND = "1" * 40, "2" * 40
ALL = ["model", "calibration", "evaluation"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return staged.make(tmp_path / "project")


def _links(root: Path) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in (root / "data" / "sources").iterdir()}


def _change(file: Path) -> None:
    """Change one bit of the last weights, size and time of change left as they are, as rsync may leave them."""
    data, times = bytearray(file.read_bytes()), file.stat()
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_local_sources_are_linked_to(project: Path) -> None:
    outside = shutil.copy(project / "source" / "text.txt", project.parent / "text.txt")
    staged.change_params(project, "calibration.source", str(outside))
    staged.change_params(project, "evaluation.perplexity.source", "../text.txt")
    sources.run(ALL, project)
    links = _links(project)
    assert links == {"model": "../../source/model", "calibration": str(outside), "evaluation": "../../../text.txt"}
    assert all((project / "data" / "sources" / name).exists() for name in links)
    sources.run(ALL, project)
    assert _links(project) == links
    # A project that was copied with what its links point to.
    copied = shutil.copytree(project / "data" / "sources", project / "copied")
    shutil.rmtree(project / "data" / "sources")
    copied.rename(project / "data" / "sources")
    sources.run(ALL, project)
    assert _links(project) == links
    assert (project / "source" / "model" / "config.json").is_file()


def test_a_source_that_is_not_here(project: Path) -> None:
    staged.change_params(project, "calibration.source", "gone.txt")
    with pytest.raises(
        SourceError, match=r"no file or folder .*gone.txt.*`dvc repro --downstream calibrate` continues"
    ):
        sources.run(ALL, project)


def test_what_comes_from_elsewhere_is_noted(project: Path) -> None:
    source = "pip:some==1.0/model.gguf"
    sources.run(ALL, project)
    staged.change_params(project, "model.source", source)
    sources.run(ALL, project)
    place = project / "data" / "sources" / "model"
    assert not place.is_symlink()
    assert json.loads(place.read_text()) == {"given": source, "source": source}
    assert (project / "source" / "model" / "config.json").is_file()
    staged.change_params(project, "model.source", "source/model")
    sources.run(ALL, project)
    assert place.is_symlink()


def test_a_name_on_the_hub_keeps_its_first_commit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [FIRST]

    def ask(repo: str, revision: str) -> Any:
        assert (repo, revision) == ("org/tiny", "main")
        return SimpleNamespace(sha=now[0])

    def download(repo: str, **settings: Any) -> None:
        assert (repo, settings["revision"]) == ("org/tiny", FIRST)
        shutil.copytree(project / "source" / "model", settings["local_dir"])

    monkeypatch.setattr(huggingface_hub, "model_info", ask)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    staged.change_params(project, "model.source", "org/tiny")
    sources.run(ALL, project)
    assert f"org/tiny is now commit {FIRST}: hf:org/tiny@{FIRST} names it for good." in capsys.readouterr().err
    now[0] = SECOND
    tiny.plan(project)
    fetch.run(fetch.What.model, project)
    dense = Checkpoint(project / "data" / "models" / "dense")
    assert dense.manifest["model"] == "org/tiny"
    assert dense.manifest["fetched"] == f"hf:org/tiny@{FIRST}"
    assert capsys.readouterr().err.count("now commit") == 0
    place = project / "data" / "sources" / "model"
    place.write_text(json.dumps({"given": "org/tiny", "source": f"hf:org/other@{FIRST}"}))  # not of this name
    sources.run(ALL, project)
    assert f"hf:org/tiny@{SECOND}" in place.read_text()
    with pytest.raises(UnknownNameError, match="Did you mean 'model'"):
        sources.run(["modle"], project)
    staged.change_params(project, "model.source", "org/tiny@main")
    sources.run(ALL, project)
    assert f"hf:org/tiny@{SECOND}" in (project / "data" / "sources" / "model").read_text()


def test_a_changed_local_model_is_fetched_anew_and_an_equal_one_is_not(project: Path) -> None:
    tiny.plan(project)
    fetch.run(fetch.What.model, project)
    dense = project / "data" / "models" / "dense" / "model.safetensors"
    before = (dense.read_bytes(), dense.stat().st_ino)
    weights = project / "source" / "model" / "model.safetensors"
    os.utime(weights)
    fetch.run(fetch.What.model, project)
    assert (dense.read_bytes(), dense.stat().st_ino) == before
    _change(weights)
    fetch.run(fetch.What.model, project)
    assert dense.read_bytes() != before[0]


@pytest.fixture
def finished(finished_project: Path, tmp_path: Path) -> Path:
    """A copy of a finished project, whose sources another process has touched."""
    root = shutil.copytree(finished_project, tmp_path / "project", symlinks=True)
    assert _links(root)["model"] == "../../source/model"
    os.utime(root / "source" / "text.txt")
    os.utime(root / "source" / "model" / "model.safetensors")
    return root


@pytest.mark.xdist_group("finished_project")
def test_dvc_and_validate_see_a_local_model_change(finished: Path) -> None:
    weights = finished / "source" / "model" / "model.safetensors"
    _change(weights)
    os.utime(weights)
    dense = finished / "data" / "models" / "dense" / "model.safetensors"
    before = dense.read_bytes()
    said = tiny.run(["python", "-m", "zpruner", "validate"], finished).stdout
    assert "model: source/model has changed since it was fetched: `dvc repro` fetches it again" in said
    assert "calibration: source/text.txt is here, as it was fetched" in said
    assert tiny.repro(finished, "fetch@model") == ["sources", "fetch@model"]
    assert dense.read_bytes() != before


@pytest.mark.slow
@pytest.mark.xdist_group("finished_project")
def test_text_that_no_window_takes_runs_nothing_else(finished: Path) -> None:
    assert tiny.repro(finished) == []
    text = finished / "source" / "text.txt"
    text.write_text(text.read_text() + tiny.words(5))
    assert tiny.repro(finished) == ["sources", "fetch@calibration", "fetch@evaluation", "report"]
