"""Names as people write them: ORG/NAME is a path where there is one, else a commit of the hub's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zpruner.errors import InvalidSettingError, SourceError
from zpruner.sources import hub_name, resolve_source

COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))


def _answering(monkeypatch: pytest.MonkeyPatch, answer: str | Exception | None, kind: str = "model") -> list[Any]:
    """Let the hub's client answer with a commit, or raise; return what it is asked for."""
    asked = []

    def ask(repo: str, revision: str) -> Any:
        asked.append((repo, revision))
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    monkeypatch.setattr(huggingface_hub, f"{kind}_info", ask)
    return asked


def test_a_name_is_pinned_and_the_commit_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = _answering(monkeypatch, COMMIT)
    assert resolve_source("meta-llama/Llama-3.2-1B") == f"hf:meta-llama/Llama-3.2-1B@{COMMIT}"
    assert capsys.readouterr().err == (
        f"meta-llama/Llama-3.2-1B is now commit {COMMIT}: hf:meta-llama/Llama-3.2-1B@{COMMIT} names it for good.\n"
    )
    assert resolve_source("org/model@v1.0") == f"hf:org/model@{COMMIT}"
    assert resolve_source(f"org/model@{COMMIT}") == f"hf:org/model@{COMMIT}"
    assert asked == [("meta-llama/Llama-3.2-1B", "main"), ("org/model", "v1.0"), ("org/model", COMMIT)]
    assert capsys.readouterr().err.count("is now") == 1
    asked = _answering(monkeypatch, COMMIT, "dataset")
    assert resolve_source("org/data", "dataset") == f"hf:org/data@{COMMIT}"
    assert asked == [("org/data", "main")]


def test_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answering(monkeypatch, COMMIT)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve_source("org/model", root=tmp_path) == str(tmp_path / "org" / "model")
    (tmp_path / "org" / "broken").symlink_to("nowhere")
    assert resolve_source("org/broken", root=tmp_path) == str(tmp_path / "org" / "broken")
    assert resolve_source(str(tmp_path)) == str(tmp_path)
    for other in (f"hf:org/model@{COMMIT}", "pip:a==1/b"):
        assert resolve_source(other, root=tmp_path) == other
    assert not asked


@pytest.mark.parametrize(
    "source", ["model", "./org/model", "/org/model", "org/model/sub", "a/b@", "org/model.gguf/x", "~/m"]
)
def test_only_names_are_looked_for(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = _answering(monkeypatch, COMMIT)
    assert hub_name(source) is None
    with pytest.raises(SourceError, match="no such file or folder, expected a path on this machine, or a model on the"):
        resolve_source(source, root=tmp_path)
    assert not asked


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            GatedRepoError("403 Client Error.\nlong", response=RESPONSE),
            "ask for access at https://huggingface.co/org/m",
        ),
        (
            RepositoryNotFoundError("404 Client Error.", response=RESPONSE),
            "Nothing has this name here or there",
        ),
        (RevisionNotFoundError("404 Client Error.", response=RESPONSE), "Name a branch, tag or commit that https://"),
        (OfflineModeIsEnabled("offline mode is enabled"), "Unset HF_HUB_OFFLINE, or download it elsewhere"),
        (httpx2.ConnectError("Name or service not known"), "Check the name, your access to it and the network"),
        (TimeoutError("timed out"), "Check the name, your access to it and the network"),
        (ValueError("Repo id must be in the form"), "Check the name"),
    ],
)
def test_every_refusal_is_one_sentence_with_the_next_step(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering(monkeypatch, error)
    with pytest.raises(SourceError) as caught:
        resolve_source("org/m")
    message = str(caught.value)
    assert message.startswith("hf:org/m@main: got nothing from the hub (")
    assert said in message
    assert message.isprintable()
    assert caught.value.__suppress_context__


def test_an_answer_without_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (None, "main"):
        _answering(monkeypatch, answer)
        with pytest.raises(SourceError, match="expected 40 hexadecimal digits"):
            resolve_source("org/m")


def test_really_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="Unset HF_HUB_OFFLINE"):
        resolve_source("org/m")


def test_addresses_of_the_hub_say_the_name() -> None:
    with pytest.raises(InvalidSettingError, match=r"Write org/model\.$"):
        resolve_source("https://huggingface.co/org/model/")


@pytest.mark.parametrize(
    "name", ["texts/news.txt", "a/b.JSONL", "models/model.gguf", "a/b.parquet", "texts/c4.json.gz"]
)
def test_a_name_that_ends_as_a_file_is_no_name_on_the_hub(name: str) -> None:
    assert hub_name(name) is None
    assert hub_name("org/Name-3.2-1B") == ("org/Name-3.2-1B", "main")


@pytest.mark.parametrize("what", ["hub_commit('org/m', 'main', 'model')", "fetch_hub_model(ref, None, here, False)"])
def test_a_network_that_is_really_away_is_one_sentence(what: str, tmp_path: Path) -> None:
    """Nothing pretends here: whichever HTTP library the hub's client uses raises what it raises."""
    script = f"""
from pathlib import Path
from zpruner.errors import SourceError
from zpruner.sources._hub import HubRef, fetch_hub_model, hub_commit
here, ref = Path.cwd(), HubRef("org/m", "{COMMIT}")
try:
    {what}
except SourceError as error:
    assert error.__suppress_context__
    print(error)
"""
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **offline}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("hf:org/m@")
    assert "got nothing from the hub (" in ran.stdout
    assert ran.stdout.count("\n") == 1
