"""Writing the report folder."""

from __future__ import annotations

from pathlib import Path

from zpruner.artifacts.work import atomic_file, write_json
from zpruner.report._html import render_html
from zpruner.report._markdown import render_markdown
from zpruner.report._plots import layer_points, perplexity_points
from zpruner.report.data import ReportData


def write(data: ReportData, folder: Path) -> None:
    """Write report.html, report.md, plots/perplexity.json and plots/layers.json into `folder`.

    Everything is rendered before the first file is replaced, and each file is replaced whole. Equal data gives equal
    bytes.

    Raises:
        DiskFullError: no space left.
    """
    pages = {"report.html": render_html(data), "report.md": render_markdown(data)}
    for name, text in pages.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    write_json(folder / "plots" / "perplexity.json", perplexity_points(data))
    write_json(folder / "plots" / "layers.json", layer_points(data))
