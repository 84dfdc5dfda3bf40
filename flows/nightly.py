"""The flow `nightly`: refresh sources, run the grid, share it, and fail loudly when a result got worse.

python -m flows.nightly                      # once, now
prefect deploy --all && prefect worker start --pool zpruner    # on the schedule in prefect.yaml
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prefect import flow, get_run_logger

from flows._api import api
from flows.graph import read_graph
from flows.pipeline import pipeline
from flows.publish import model_name, read_results
from zpruner.errors import ZprunerError
from zpruner.work import write_json

BASELINE = Path(".zpruner") / "nightly.json"
"""The results of the last good night, in each clone."""


class WorseResultError(ZprunerError):
    """A variant's result is worse than last time by more than the margin."""


def _flow_run_name() -> str:
    from prefect.runtime import flow_run

    return f"nightly on {model_name(Path(flow_run.parameters.get('root') or '.'))}"


@flow(name="nightly", flow_run_name=_flow_run_name, persist_result=False)
def nightly(
    root: str = ".",
    refresh: list[str] | None = None,
    parallel: int = 1,
    share: bool = False,
    metric: str = "perplexity",
    margin: float = 0.02,
) -> dict[str, float]:
    """Bring everything up to date and compare with the last good night.

    Args:
        root: the project folder.
        refresh: stages to run even if nothing changed: those that fetch what may have moved.
        parallel: see `pipeline`.
        share: pull from the default remote before, and push to it after.
        metric: which number to watch; smaller is better.
        margin: by which share it may grow.

    Returns:
        The watched number of every variant.

    Raises:
        WorseResultError: it grew by more; the comparison stays with the last good night until
            `.zpruner/nightly.json` is deleted.
    """
    folder = Path(root).resolve()
    pipeline(root, parallel=parallel, share=share, force=refresh)
    results = {row["variant"]: float(row[metric]) for row in read_results(folder, read_graph(folder)) if metric in row}
    baseline = folder / BASELINE
    before = json.loads(baseline.read_text(encoding="utf-8")) if baseline.exists() else {}
    worse = compare(before, results, margin)
    if worse:
        raise WorseResultError(
            str(baseline),
            f"a higher {metric} for {', '.join(worse)}",
            f"none to grow by more than {margin:.1%}",
            f"Find what changed since the last good night; delete {BASELINE} to accept the new numbers.",
        )
    write_json(baseline, before | results)
    get_run_logger().info("%d results, none worse than last time by more than %.1f %%", len(results), 100 * margin)
    return results


def compare(before: dict[str, float], now: dict[str, float], margin: float) -> list[str]:
    """Return a phrase for every variant whose number grew by more than `margin`, or is no number any more."""
    return [
        f"{name} ({before[name]:.4g} -> {value:.4g})"
        for name, value in now.items()
        if name in before and not value <= before[name] * (1 + margin)
    ]


def main() -> int:
    """Run the flow once, with its defaults."""
    with api() as server:
        if server is not None:
            server.wait()
        try:
            nightly()
        except ZprunerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except RuntimeError:  # the failed instances are in the log
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
