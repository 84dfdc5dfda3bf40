"""The flow `nightly`: refresh sources, run the grid, share it, and fail loudly when a result got worse.

python -m flows.nightly --refresh fetch --share                      # once, now
python -m flows.nightly --refresh fetch --share --cron "0 2 * * *"   # every night, for as long as this process lives
prefect deploy --all && prefect worker start --pool zpruner          # on the schedule in prefect.yaml
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from flows._api import ready
from flows._ending import ENDS, as_state, exit_status
from flows.graph import read_graph
from flows.pipeline import pipeline
from flows.publish import model_name, read_results
from zpruner.artifacts.files import write_json
from zpruner.errors import ArtifactError, InvalidSettingError, UnknownNameError, ZprunerError, did_you_mean
from zpruner.runtime.plain_json import read_json

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
) -> dict[str, float] | State[Any]:
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
        UnknownNameError: a number that no result has.
        ArtifactError: a damaged `.zpruner/nightly.json`.
    """
    folder = Path(root).resolve()
    try:
        pipeline(root, parallel=parallel, share=share, force=refresh)
    except ENDS as end:
        return as_state(end)
    rows = read_results(folder, read_graph(folder))
    results = {row["variant"]: float(row[metric]) for row in rows if metric in row}
    if not results:
        known = {name for row in rows for name in row}
        raise UnknownNameError("metric", f"'{metric}'", "what a result has", did_you_mean(metric, known))
    baseline = folder / BASELINE
    before = _read_baseline(baseline)
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


def _read_baseline(path: Path) -> dict[str, float]:
    """Return the results of the last good night, none before the first.

    Raises:
        ArtifactError: a file that `nightly` did not write.
    """
    try:
        return {str(name): float(value) for name, value in read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        got, action = "content that is no table of results", "Delete it: the next night starts a new one."
        raise ArtifactError(str(path), got, "the last good night's", action) from None


def compare(before: dict[str, float], now: dict[str, float], margin: float) -> list[str]:
    """Return a phrase for every variant whose number grew by more than `margin`, or is no number any more."""
    return [
        f"{name} ({before[name]:.4g} -> {value:.4g})"
        for name, value in now.items()
        if name in before and (value > before[name] * (1 + margin) or math.isnan(value))
    ]


def main(arguments: list[str]) -> int:
    """Run the flow once, or serve it on a schedule; returns the exit status."""
    parser = argparse.ArgumentParser("python -m flows.nightly", description="Run the grid, compare with last time.")
    parser.add_argument("--refresh", nargs="+", metavar="STAGE", help="stages to run even if nothing changed")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="see flows.pipeline")
    parser.add_argument("--share", action="store_true", help="pull from the default remote before, push after")
    parser.add_argument("--margin", type=float, default=0.02, help="by which share perplexity may grow (%(default)s)")
    parser.add_argument("--cron", help="serve it on this schedule (UTC) to the Prefect server at PREFECT_API_URL")
    options = vars(parser.parse_args(arguments)) | {"root": str(Path.cwd())}
    cron = options.pop("cron")
    return exit_status(lambda: once(options) if cron is None else serve(cron, options))


def once(options: dict[str, Any]) -> None:
    """Run the flow now."""
    read_graph(Path(options["root"]))  # what is wrong with the project is said before a server is started
    with ready():
        nightly(**options)


def serve(cron: str, options: dict[str, Any]) -> None:
    """Run the flow whenever it is time, one run at a time, until this process ends.

    Raises:
        InvalidSettingError: no server is configured that could tell when it is time.
    """
    if not PREFECT_API_URL.value():
        raise InvalidSettingError(
            "PREFECT_API_URL", "nothing", "a Prefect server's address", "Start `prefect server start`, and set it."
        )
    nightly.serve("served", cron=cron, parameters=options, limit=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
