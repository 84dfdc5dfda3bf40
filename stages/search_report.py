"""The search's report, from the files that the search stage wrote."""

from __future__ import annotations

from pathlib import Path

from stages._project import Project, Root, main, say
from zpruner.report.search import load_search, write_search


def run(root: Root = Path()) -> None:
    """Write data/search/report: report.html and report.md.

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    out = project.search / "report"
    write_search(load_search(project.search), out)
    say(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    main(run)
