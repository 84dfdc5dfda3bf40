"""What a run leaves to be seen in Prefect: its name, its tags, the table of results and the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dvc.dvcfile import PROJECT_FILE
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows._charts import read_charts
from flows.graph import Graph
from zpruner.artifacts.result_file import Shown, shown_fields
from zpruner.artifacts.results import Metrics
from zpruner.errors import without_credentials
from zpruner.settings.plain_yaml import read_yaml

DENSE = "dense"
PERPLEXITY = ("perplexity",)
FIRST = [PERPLEXITY, ("bytes", "stored")]
FIELDS = {path: shown for path, shown in shown_fields(Metrics).items() if shown.in_table or shown.in_summary}
FIELDS = {path: FIELDS[path] for path in dict.fromkeys([*FIRST, *FIELDS])}
"""What the table of results shows of every variant, in its order."""


def model_name(root: Path) -> str:
    """Return a short name of the model in params.yaml: the last part of its source, without revision or suffix."""
    params: Any = read_yaml(root / "params.yaml")
    source = without_credentials(str(params["model"]["source"]), mark="")
    last = source.partition("@")[0].rstrip("/").rpartition("/")[2]
    return last.partition(".gguf")[0]


def run_name(root: Path, graph: Graph) -> str:
    """Return what a run does, e.g. `wanda, zpruner at s50, s24 on SmolLM2-135M`."""
    values: dict[str, dict[str, None]] = {}
    for instance in graph.values():
        for label, value in instance.labels.items():
            values.setdefault(label, {})[value] = None
    lists = [", ".join(names) if len(names) <= 4 else f"{len(names)} of {label}" for label, names in values.items()]
    return f"{' at '.join(lists) or ', '.join(graph)} on {model_name(root)}"


def run_tags(root: Path, graph: Graph) -> set[str]:
    """Return the tags to find a whole run by: model, methods and sparsities."""
    labels = {f"{label}:{value}" for one in graph.values() for label, value in one.labels.items()}
    return {f"model:{model_name(root)}", *labels}


def read_results(root: Path, graph: Graph) -> list[dict[str, Any]]:
    """Return one row per variant in the DVC metrics files of `graph` that are there: its name, then what it has.

    A file is an instance's, or one that dvc.yaml lists apart and that lies in an instance's output. It holds the
    numbers of one variant, named by the instance, or maps variants to theirs.
    """
    files = {name: one for one in graph.values() for name in one.metrics}
    for name in read_yaml(root / PROJECT_FILE).get("metrics", ()):
        files.update((name, one) for one in graph.values() if any(Path(name).is_relative_to(o) for o in one.outputs))
    rows = []
    for name, instance in files.items():
        path = root / name
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(value, dict) for value in found.values()):
                found = {instance.name.partition("@")[2] or path.stem: found}
            rows += [{**values, "variant": variant} for variant, values in found.items()]
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return results for a reader: variant, perplexity, change against dense, MB, sparsity, and what else is shown.

    Args:
        rows: of `read_results`; the dense model comes first.
    """
    dense = next((_at(row, PERPLEXITY) for row in rows if row["variant"] == DENSE), math.nan)
    found = []
    for row in sorted(rows, key=lambda row: row["variant"] != DENSE):
        cells: dict[str, Any] = {"variant": row["variant"]}
        for path, shown in FIELDS.items():
            value = _at(row, (shown.title,)) if shown.title in row else shown.number(_at(row, path))
            cells[shown.title] = "" if math.isnan(value) else _rounded(value, shown)
            if path == PERPLEXITY:
                change = math.nan if row["variant"] == DENSE else value / dense - 1
                cells["change"] = "" if math.isnan(change) else f"{change:+.1%}"
        found.append(cells)
    every = dict.fromkeys(title for cells in found for title in cells)
    titles = [title for title in every if any(cells.get(title, "") != "" for cells in found)]
    return [{title: cells.get(title, "") for title in titles} for cells in found]


def _at(row: dict[str, Any], path: tuple[str, ...]) -> float:
    """Return the number there, NaN where there is none."""
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else math.nan


def _rounded(value: float, shown: Shown) -> float:
    """Return four figures of a number, one decimal place of what is counted in millions."""
    return round(value, 1) if shown.is_size else float(f"{value:.4g}")


def publish(root: Path, graph: Graph) -> None:
    """Attach the results and every report to the current run: artifacts `results`, `report`, and `search`."""
    if rows := table(read_results(root, graph)):
        create_table_artifact(rows, key="results", description=f"Results on {model_name(root)}")
    for one in graph.values():
        for page in [path for out in one.outputs if (path := root / out / "report.md").is_file()]:
            key = "report" if one.file == PROJECT_FILE else Path(one.file).parent.name
            create_markdown_artifact(report(root / one.file, page), key=key)


def report(file: Path, page: Path) -> str:
    """Return a report in Markdown, with the plots of its DVC file as images before its first section."""
    text = page.read_text(encoding="utf-8")
    images = "".join(f"![{title}]({address})\n\n" for title, address in read_charts(file, page.parent))
    head, mark, rest = text.partition("\n## ")
    return f"{head.rstrip()}\n\n{images}{mark.lstrip()}{rest}" if images else text
