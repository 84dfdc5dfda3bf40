"""One field of the schema, and one figure, are all that a new metric and a new chart take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from markupsafe import Markup
from report_tree import make_tree, read

from zpruner.report import contents
from zpruner.report.page import Figure
from zpruner.report.ranking import Report

FIELD = "    perplexity_interval: Interval | None = None\n"
SCRIPT = """
import json, sys
from pathlib import Path
from report_tree import make_tree, read
from zpruner.checkpoint.card import with_results
from zpruner.artifacts.layout import Layout
from zpruner.cli._export import measured
from zpruner.report import render_table, write

root = Path(sys.argv[1])
data = read(make_tree(root))
write(data, root / "out")
for name in ("out/report.html", "out/report.md"):
    assert "bits per token" in (root / name).read_text(), name
assert "6.5" in render_table(data, width=120, color=False)
summary = json.loads((root / "out/summary.json").read_text())
assert all(values["bits per token"] == 6.5 for values in summary.values())
card = with_results("## Calibration\\n", measured(Layout(root), "wanda", "s50"))
assert "| bits per token | 6.5 | 6.5 |" in card
"""


def test_a_metric_is_one_field(tmp_path: Path) -> None:
    """The same line in the schema puts it into DVC's metrics, the report's tables and the model card."""
    shutil.copytree(tiny.REPOSITORY / "zpruner", tmp_path / "zpruner", ignore=shutil.ignore_patterns("__pycache__"))
    schema = tmp_path / "zpruner/artifacts/results.py"
    text = schema.read_text()
    assert text.count(FIELD) == 1
    schema.write_text(text.replace(FIELD, FIELD + '    bits: Annotated[float, Shown("bits per token")] = 6.5\n'))
    path = os.pathsep.join([str(tmp_path), str(tiny.REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_figure_is_one_function_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figure(report: Report) -> Figure | None:
        return Figure(Markup("<p>{}</p>").format(len(report.standings)), "Variants", markdown="Twelve.\n")

    def nothing(report: Report) -> Figure | None:
        return None

    monkeypatch.setattr(
        contents, "CONTENTS", (*contents.CONTENTS[:2], ("Count & more", (figure,)), ("Empty", (nothing,)))
    )
    page = contents.page_of(read(make_tree(tmp_path)))
    assert '<section id="count-more" aria-labelledby="count-more-h">' in page.html()
    assert '<a href="#count-more">Count &amp; more</a>' in page.html()
    assert "<b>Variants.</b>" in page.html()
    assert page.markdown().endswith("## Count & more\n\nTwelve.\n")
    assert "Empty" not in page.html()
