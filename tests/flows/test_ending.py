"""How flows started by hand end where there is nothing for them to work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from toys import Toy

from flows import nightly, pipeline, search, share


@pytest.fixture
def no_server() -> Iterator[None]:
    """What fails so early needs none."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


COMMANDS = [(pipeline.main, []), (nightly.main, []), (search.main, []), (share.main, ["pull"])]


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize(("main", "arguments"), COMMANDS)
def test_no_project(
    main: Callable[[list[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: you are not inside of a DVC repository")


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize(("main", "arguments"), COMMANDS[:3])
def test_a_graph_that_dvc_refuses(
    main: Callable[[list[str]], int],
    arguments: list[str],
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(toy.root)
    path = toy.root / "dvc.yaml"
    path.write_text(path.read_text().replace("deps", "depends"))
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: './dvc.yaml' validation failed")
    assert toy.runs() == []


@pytest.mark.usefixtures("no_server", "worker")
def test_a_server_that_does_not_answer(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy.root)
    assert nightly.main([]) == 1
    said = capsys.readouterr().err
    assert "error: http://127.0.0.1:9/api: got ConnectError:" in said
    assert said.rstrip().endswith("Finished instances are kept.")
    assert "Traceback" not in said
    assert toy.runs() == []
