"""The flow `search`: search for pruning formulas, with all that it rests on, and show what was found.

python -m flows.search [--share]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State

from flows._api import ready
from flows._ending import ENDS, as_state, exit_status
from flows.graph import read_graph
from flows.pipeline import pipeline
from flows.publish import model_name
from zpruner.artifacts.layout import Layout
from zpruner.artifacts.results import FoundFormula

DVC_FILE = "search/dvc.yaml"


def _flow_run_name() -> str:
    from prefect.runtime import flow_run

    return f"search on {model_name(Path(flow_run.parameters.get('root') or '.'))}"


@flow(name="search", flow_run_name=_flow_run_name, persist_result=False)
def search(root: str = ".", share: bool = False) -> dict[str, Any] | State[Any]:
    """Bring the search up to date, as `dvc repro search/dvc.yaml` does; its settings stand in params.yaml.

    A run that was cancelled or killed continues with the next one. Stage output is in the logs, the report an artifact.

    Args:
        root: the project folder.
        share: pull from the default remote before, and push to it after.

    Returns:
        The best formula, its fitness, and how many evaluations it took.
    """
    try:
        pipeline(root, targets=[DVC_FILE], share=share)
    except ENDS as end:
        return as_state(end)
    folder = Layout(Path(root).resolve()).search
    found = FoundFormula.read(folder / "found.json", f"dvc repro {DVC_FILE}")
    get_run_logger().info("best formula: %s", found.formula)
    return found.model_dump(include={"formula", "fitness", "evaluations"})


def main(arguments: list[str]) -> int:
    """Run the flow once; returns 0 if the search has ended."""
    parser = argparse.ArgumentParser("python -m flows.search", description="Search for pruning formulas.")
    parser.add_argument("--share", action="store_true", help="pull from the default remote before, push after")
    options = parser.parse_args(arguments)

    def run() -> None:
        read_graph(Path.cwd())  # what is wrong with the project is said before a server is started
        with ready():
            found = search(**vars(options))
        print(f"{found['formula']}  (fitness {found['fitness']:.4f}, {found['evaluations']} evaluations)")

    return exit_status(run, "Evaluations")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
