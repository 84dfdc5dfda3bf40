"""The report of a formula search: one offline HTML page and Markdown, from the files that the search stage wrote."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.figures import facts
from zpruner.report.page import Figure, Page, Section, fill
from zpruner.report.search_data import COMMAND, SearchData, load_search
from zpruner.report.search_figures import course, formulas, material, time, verdict

__all__ = ["load_search", "write_search"]


def _provenance(data: SearchData) -> Figure:
    settings = fmt.flat(data.result.settings)
    return facts.groups(
        {
            "Settings": settings,
            "Provenance": {"stopped by": data.result.stopped, "inputs": data.log.context, "made by": COMMAND},
        }
    )


CONTENTS: tuple[Section[SearchData], ...] = (
    ("", (verdict.figure,)),
    ("Course", (course.figure,)),
    ("Formulas", (formulas.table, formulas.tree)),
    ("Operators", (material.figure,)),
    ("Time", (time.figure,)),
    ("Provenance", (_provenance,)),
)


def write_search(data: SearchData, out: Path) -> None:
    """Write report.html and report.md into `out`; equal data gives equal bytes.

    Raises:
        DiskFullError: no space left.
    """
    title = data.result.model.rstrip("/").rpartition("/")[2]
    Page("Formula search", title, _about(data), fill(CONTENTS, data)).write(out)


def _about(data: SearchData) -> Markup:
    evaluations = data.log.evaluations
    seconds = sum(e.seconds for e in evaluations)
    pace = f" ({60 * len(evaluations) / seconds:.1f} a minute)" if seconds else ""
    rejected = sum(e.fitness is None for e in evaluations)
    return Markup("{}").format(
        f"{fmt.count(len(evaluations))} evaluations of {fmt.count(data.formulas)} formulas in {fmt.seconds(seconds)} s"
        f"{pace}; {fmt.count(rejected)} were rejected as not finite"
    )
