"""What a run leaves to be seen in Prefect: its name, its tags, the table of results and a link to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.graph import Graph
from zpruner.errors import without_credentials
from zpruner.settings.plain_yaml import read_yaml


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
    """Return one row per DVC metrics file of `graph` that is there: its labels, then its numbers."""
    rows = []
    for instance in graph.values():
        for name in instance.metrics:
            path = root / name
            if path.exists():
                metrics = json.loads(path.read_text(encoding="utf-8"))
                numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
                rows.append({"variant": instance.name.partition("@")[2] or path.stem, **instance.labels, **numbers})
    return rows


def publish(root: Path, graph: Graph) -> None:
    """Attach the results and the report to the current run: artifacts `results` and `report`."""
    rows = read_results(root, graph)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [{column: row.get(column, "") for column in columns} for row in rows]
    if table:
        create_table_artifact(table, key="results", description=f"Results on {model_name(root)}")
    for page in [page for one in graph.values() for out in one.outputs for page in sorted((root / out).glob("*.html"))]:
        create_link_artifact(page.resolve().as_uri(), link_text=page.name, key="report")
