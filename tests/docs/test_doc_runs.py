"""What README and the first pages say to type runs, in their order, on a tiny model in place of the default's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from doc_pages import ROOT, blocks, commands

import zpruner
from zpruner.cli import main

TYPED = ("README.md", "docs/start/tutorial.md", "docs/start/command_line.md")
RUN = {"prune", "evaluate", "inspect", "pack", "unpack", "methods", "kernels"}
ELSEWHERE = ("ORG/NAME", "--protocol", "MODEL")
FETCHED = "pip:"
"""A text out of a package on the index: the tiny one takes its place."""
PYTHON = ("README.md", "docs/start/python.md")
NOTEBOOK = ROOT / "docs/start/first_steps.ipynb"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project after `make repro`, as far as single commands look at it; a text in place of the news."""
    model = tiny.llama(max_position_embeddings=1024, num_hidden_layers=2)
    model.save_pretrained(tmp_path / "data/models/dense")
    tiny.tokenizer().save_pretrained(tmp_path / "data/models/dense")
    text = tmp_path / "news.txt"
    text.write_text(tiny.words(66_000))
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    monkeypatch.setattr("zpruner.cli._options.NEWS", str(text))
    monkeypatch.setattr("zpruner.cli._options.NEWS_SHA256", None)
    monkeypatch.setattr("zpruner.NEWS", str(text), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(page: str) -> list[list[str]]:
    """The commands of a page that one tiny model is enough for."""
    found = [
        words for block in blocks(ROOT / page) if block.language in ("bash", "console") for words in commands(block)
    ]
    return [
        ["news.txt" if word.startswith(FETCHED) else word for word in words[1:]]
        for words in found
        if words[0] == "zpruner" and words[1] in RUN and not any(word in ELSEWHERE for word in words)
    ]


@pytest.mark.parametrize("page", TYPED)
def test_commands_run_in_their_order(page: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = typed(page)
    assert found
    for words in found:
        with pytest.raises(SystemExit) as end:
            main(words if "prune" not in words else [*words, "--force"])
        said = capsys.readouterr()
        assert not end.value.code, f"zpruner {' '.join(words)}: {said.err}"
        assert said.out


def python_of(page: str) -> str:
    return "\n".join(block.text for block in blocks(ROOT / page) if block.language == "python")


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs_as_it_stands(page: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = python_of(page)
    assert "zpruner.NEWS" in code
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out
    assert (project / "OUT/model.safetensors").is_file()


def test_the_notebook_runs(project: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert any(cell.get("outputs") for cell in notebook["cells"]), "run docs/_execute.py"
    assert isinstance(names["found"], zpruner.Sweep)
    assert len(names["found"]) == 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kernel_shows_tables_and_lines_that_are_drawn_over(project: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells.insert(0, nbformat.v4.new_code_cell("import zpruner\nzpruner.NEWS = 'news.txt'"))
    notebook.cells = cells
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project)}}).execute()
    said = ["".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in cells]
    assert not any("\x1b" in text for text in said), "a notebook cannot move up"
    bars = [[line.rpartition("\r")[2].partition(":")[0] for line in text.split("\n") if "\r" in line] for text in said]
    assert ["calibrate", "sweep"] in bars
    assert all(len(names) <= 2 for names in bars), bars
    shown = [out.data for cell in cells for out in cell.outputs if out.output_type == "execute_result"]
    assert any("<table>" in data.get("text/html", "") for data in shown)
