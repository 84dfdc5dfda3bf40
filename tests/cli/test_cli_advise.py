"""`zpruner advise`: from cached evaluations to a table, three answers and a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from report_extras import make_full_tree

Command = Callable[..., tuple[int, str, str]]
PARAMS = """
model: {source: models/m}
calibration: {source: text.txt, seqlen: 512, nsamples: 32}
methods:
  magnitude: {score: magnitude}
  wanda: {score: wanda}
  ria: {score: ria}
  zpruner: {score: zpruner}
sparsities: {s50: 0.5, s60: 0.6, s24: "2:4"}
evaluation: {perplexity: {source: other.txt, seqlen: 512}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    make_full_tree(root)
    (root / "params.yaml").write_text(PARAMS)
    return root


def test_a_table_three_answers_and_a_verdict(project: Path, command: Command) -> None:
    code, out, err = command("advise", "--root", project, "--increase", "20 %", "--mb", "140")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    titles = ["model", "as", "perplexity", "MB on disk", "MB a token", "decode, x dense"]
    assert [cell.strip() for cell in lines[0].split("|")] == titles
    cells = {line.split(" |")[0].strip(): line.split("|")[1:] for line in lines[2:15]}
    assert [cell.strip() for cell in cells["zpruner 60 %"]] == ["packed", "37.79", "130.0*", "73.0*", "1.75*"]
    assert [cell.strip() for cell in cells["wanda 60 %"]] == ["packed", "46.97", "~124.4", "~67.4", "-"]
    assert max(map(len, lines[:16])) <= 80
    assert lines[15:17] == [
        "* no other model has a lower perplexity at that cost or less",
        "~ computed by the format's arithmetic from the zeros that were counted; the others were packed",
    ]
    assert "Smallest at no worse than 33.89 (+20.0 %): zpruner 50 % packed (150.0 MB, 0.56 x dense;" in out
    assert "Best at no more than 140.0 MB: zpruner 60 % packed (130.0 MB" in out
    assert "Fastest at no worse than 33.89 (+20.0 %): zpruner 50 % packed" in out
    assert lines[-1].startswith("Of the pruned variants zpruner 50 % loses least")


def test_as_json(project: Path, command: Command) -> None:
    code, out, _ = command("advise", "--root", project, "--json", "--perplexity", "50")
    assert code == 0
    found = json.loads(out)
    assert found["limits"] == {"perplexity": 50.0, "disk": 188_300_000}
    assert found["answers"]["smallest"]["winner"] == "ria-s60"
    assert found["answers"]["fastest"]["winner"] == "zpruner-s60"
    assert len(found["offers"]) == 13
    assert found["offers"][0]["kind"] == "dense"
    assert "losses" not in found["offers"][0]
    assert found["not_evaluated"] == []


def test_what_was_not_evaluated_is_named(project: Path, command: Command, tmp_path: Path) -> None:
    make_full_tree(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    for path in (tmp_path / "data/evaluation/ria").iterdir():
        path.unlink()
    code, out, _ = command("advise", "--root", tmp_path)
    assert code == 0
    assert out.splitlines()[-1] == "Not evaluated yet, and left out: ria-s50, ria-s60, ria-s24."
    (tmp_path / "data/evaluation/dense.json").unlink()
    code, _, err = command("advise", "--root", tmp_path)
    assert code == 1
    assert "dvc repro evaluate_dense" in err


@pytest.mark.parametrize("text", ["much", "-1%", "inf", ""])
def test_an_increase_is_a_percentage(text: str, command: Command) -> None:
    code, _, err = command("advise", f"--increase={text}")
    assert code == 1
    assert "--increase 10%" in err
