"""A calibration on a text and on what the model writes itself, from the sources to the model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import staged
import tiny
import torch
from staged import METHOD, SPARSITY

import zpruner
from stages import calibrate, fetch, generate
from zpruner.artifacts.layout import Layout
from zpruner.artifacts.store import ArtifactReader
from zpruner.cli._export import calibrated_on
from zpruner.errors import ArtifactError, InvalidSettingError
from zpruner.report.load import load_project
from zpruner.settings.reading import read_params
from zpruner.sources import file_sha256
from zpruner.text import read_begin, read_sources, read_windows
from zpruner.text.sampling import draw

TEXT = {"source": "source/text.txt", "documents": "lines", "part": [0.0, 0.5]}
MIXTURE: list[Any] = [{**TEXT, "share": 0.7}, {"source": "self", "share": 0.3, "temperature": 1.0}]
BESIDE = ("sha256", "documents", "part", "sampling")


def mixed(root: Path, source: list[Any] = MIXTURE, **changes: Any) -> Path:
    """Make a project that calibrates on a mixture."""
    staged.make(root)
    return remixed(root, source, nsamples=10, **changes)


def remixed(root: Path, source: Any, **changes: Any) -> Path:
    params = tiny.read_params(root)
    kept = {key: value for key, value in params["calibration"].items() if key not in BESIDE}
    params["calibration"] = {**kept, "source": source, **changes}
    tiny.write_params(root, params)
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after every stage."""
    return staged.run_all(mixed(tmp_path_factory.mktemp("mixed") / "project"))


@pytest.fixture
def project(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "project", symlinks=True)


def windows_of(root: Path) -> torch.Tensor:
    return read_windows(root / "data" / "calibration" / "tokens.arrow")[0]


def test_each_source_gives_its_share(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(done)
    assert windows.shape == (10, 32)
    monkeypatch.chdir(done)
    model, tokenizer = zpruner.load("data/models/dense", device="cpu")
    assert torch.equal(windows, zpruner.load_windows(MIXTURE, model, tokenizer, nsamples=10, seqlen=32))
    own = zpruner.load_windows({**MIXTURE[1], "share": 1}, model, tokenizer, nsamples=3, seqlen=32)
    held = [index for index, row in enumerate(windows) if (own == row).all(dim=1).any()]
    assert held == [1, 5, 8], "three of ten, spread over them"
    text = zpruner.load_windows("source/text.txt", model, tokenizer, nsamples=4, seqlen=32)
    assert not any((windows == row).all(dim=1).any() for row in text), "cut otherwise: one document"
    stored = ArtifactReader(done / "data" / "generated", "generated")
    assert stored.provenance.windows == 4, "four were written, and the least likely one dropped"
    whole = zpruner.load_windows("self", model, tokenizer, nsamples=3, seqlen=32)
    assert not torch.equal(whole, own), "at another temperature"


def test_what_it_was_calibrated_on_is_told(done: Path) -> None:
    tokens = done / "data" / "calibration" / "tokens.arrow"
    sha256 = file_sha256(done / "source" / "text.txt")
    text, own = read_sources(tokens)
    assert text == {**TEXT, "share": 0.7, "windows": 7, "sha256": sha256}
    assert own == {
        **{"source": "self", "share": 0.3, "windows": 3, "sha256": None},
        **{"temperature": 1.0, "top_p": 0.95, "drop": 0.2},
    }
    assert read_begin(tokens) == ()
    card = calibrated_on(done, done / "data" / "pruned" / METHOD / SPARSITY / "README.md")
    assert card == {"source": {"1": text, "2": own}, "bos": "auto", "seed": 0, "seqlen": 32}
    params = read_params(done / "params.yaml")
    shown = load_project(Layout(done), params, provenance={}).calibration
    assert shown["source"] == {
        "1": {**TEXT, "share": 0.7, "windows": 7},
        "2": {"source": "self", "share": 0.3, "windows": 3, "temperature": 1.0, "top_p": 0.95, "drop": 0.2},
    }
    page = (done / "data" / "report" / "report.html").read_text(encoding="utf-8")
    assert "source.2.temperature" in page
    assert "generate" in page
    links = done / "data" / "sources" / "calibration"
    assert str((links / "0").readlink()) == "../../../source/text.txt"
    assert json.loads((links / "1").read_text()) == {"given": "self", "source": "self"}


def test_killed_it_continues_with_the_next_windows(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "TOGETHER", 1)
    for folder in ("generated", ".work"):
        shutil.rmtree(project / "data" / folder)
    generate.run(project)
    whole = tiny.files_of(project / "data" / "generated")
    assert sorted(whole) == ["index.json", *(f"windows-{index:06}.arrow" for index in range(4))]
    for folder in ("generated", ".work"):
        shutil.rmtree(project / "data" / folder)
    calls: list[int] = []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 * 32 + 7:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr("zpruner.text.writing.draw", failing)
    with pytest.raises(KeyboardInterrupt):
        generate.run(project)
    assert not (project / "data" / "generated").exists()
    calls.clear()
    monkeypatch.setattr("zpruner.text.writing.draw", lambda *args: (calls.append(1), draw(*args))[1])
    generate.run(project)
    assert len(calls) == 2 * 32, "two windows of four were on disk"
    assert tiny.files_of(project / "data" / "generated") == whole
    calls.clear()
    generate.run(project)
    assert not calls


def test_block_by_block_it_writes_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.files_of(project / "data" / "generated")
    for folder in ("generated", ".work"):
        shutil.rmtree(project / "data" / folder)
    staged.change_params(project, "machine.streaming", "always")
    capsys.readouterr()
    generate.run(project)
    assert (
        "generate: block by block: machine.streaming is always; every token needs all of it" in capsys.readouterr().err
    )
    assert tiny.files_of(project / "data" / "generated") == before


def test_nothing_is_written_where_no_source_asks_for_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remixed(project, "source/text.txt", documents="lines", part=[0.0, 0.5], nsamples=6)
    monkeypatch.setattr(generate, "open_runner", None)
    generate.run(project)
    assert list(tiny.files_of(project / "data" / "generated")) == ["index.json"]
    fetch.run(fetch.What.calibration, project)
    assert read_sources(project / "data" / "calibration" / "tokens.arrow") == []
    assert not (project / "data" / "sources" / "calibration").is_dir()
    assert json.loads((project / "data" / "plan" / "generate.json").read_text())["settings"] == {}


def test_what_decides_the_text(project: Path) -> None:
    def settings() -> Any:
        return json.loads((project / "data" / "plan" / "generate.json").read_text())["settings"]["written"]

    before = settings()
    assert before == {
        **{"windows": 3, "temperature": 1.0, "top_p": 0.95, "drop": 0.2},
        **{"seqlen": 32, "bos": "auto", "seed": 0, "trust_remote_code": False},
    }
    staged.change_params(project, "calibration.batch_size", 5)
    staged.change_params(project, "calibration.propagation", "pruned")
    staged.change_params(project, "calibration.source", [{**TEXT, "part": [0.0, 0.4], "share": 0.7}, MIXTURE[1]])
    assert settings() == before
    for key, value in (("seed", 1), ("seqlen", 16), ("nsamples", 20)):
        staged.change_params(project, f"calibration.{key}", value)
        assert settings() != before, key
        before = settings()


def test_a_text_of_another_model_or_of_other_settings_is_refused(project: Path) -> None:
    staged.change_params(project, "calibration.seed", 1)
    with pytest.raises(ArtifactError, match=r"generated/index\.json: got settings .*\"seed\": 0"):
        fetch.run(fetch.What.calibration, project)
    generate.run(project)
    fetch.run(fetch.What.calibration, project)
    calibrate.run(project)
    found = ArtifactReader(project / "data" / "generated", "generated")
    file = project / "data" / "generated" / found.files["windows-000000"]["file"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"windows-000000\.arrow: got checksum"):
        fetch.run(fetch.What.calibration, project)


def test_what_cannot_be_written_is_told_before_anything_is(tmp_path: Path) -> None:
    root = staged.run_all(mixed(tmp_path / "long", seqlen=128), "fetch-model")
    remixed(root, [TEXT, {"source": "self", "prompt": "ab cd"}])
    with pytest.raises(InvalidSettingError, match=r"tokens to read .* at most 128, .* Lower seqlen, or shorten the pr"):
        generate.run(root)
    assert not (root / "data" / "generated").exists()


def test_a_seed_is_a_text(project: Path) -> None:
    before = tiny.files_of(project / "data" / "generated")
    first = windows_of(project)
    staged.change_params(project, "calibration.seed", 1)
    generate.run(project)
    fetch.run(fetch.What.calibration, project)
    assert tiny.files_of(project / "data" / "generated")["windows-000000.arrow"] != before["windows-000000.arrow"]
    assert not torch.equal(windows_of(project), first)
    staged.change_params(project, "calibration.seed", 0)
    generate.run(project)
    fetch.run(fetch.What.calibration, project)
    assert tiny.files_of(project / "data" / "generated") == before
    assert torch.equal(windows_of(project), first)
