"""`zpruner advise`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpruner.artifacts.layout import Layout
from zpruner.cli import _options as option
from zpruner.errors import InvalidSettingError, shown

if TYPE_CHECKING:
    from zpruner.report.verdict import Advice


def advise(
    root: option.Root = Path(),
    perplexity: Annotated[float | None, typer.Option(min=1.0, help="Perplexity at most.")] = None,
    increase: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Increase over dense at most, such as 10%.  [default: 10%]")
    ] = None,
    mb: Annotated[
        float | None, typer.Option(min=0.0, help="MB on disk at most.  [default: 70 % of the dense model's]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say which variant of the pipeline to ship, and whether pruning is worth it, from what was evaluated."""
    share = None if increase is None else _share(increase)

    from zpruner.report.figures.offers import COMPUTED, COMPUTED_WORDS, PARETO_WORDS, broken_words, table_of
    from zpruner.report.load import load_project
    from zpruner.report.offers import offers
    from zpruner.report.ranking import Report
    from zpruner.report.terminal import render
    from zpruner.report.verdict import advise as answer
    from zpruner.settings.reading import read_params

    data = load_project(Layout(root), read_params(root / "params.yaml"), provenance={}, partial=True)
    every = offers(data)
    if not every:
        got = f"a dense model of perplexity {data.dense.metrics.perplexity}"
        raise InvalidSettingError("advise", got, "a finite one to compare with", "Check model.dtype in params.yaml.")
    found = answer(every, perplexity=perplexity, increase=share, megabytes=mb)
    if as_json:
        typer.echo(json.dumps(as_values(found) | {"not_evaluated": data.missing}, indent=2))
        return
    typer.echo(render(table_of(Report.of(data), found.offers), PARETO_WORDS), nl=False)
    if any(offer.computed for offer in every):
        typer.echo(f"{COMPUTED} {COMPUTED_WORDS}")
    if broken := broken_words(every):
        typer.echo(broken)
    typer.echo()
    for question, words in found.words.items():
        typer.echo(f"{question}: {words}")
    typer.echo(f"\n{found.verdict}")
    if data.missing:
        typer.echo(f"Not evaluated yet, and left out: {', '.join(data.missing)}.")


def as_values(advice: Advice) -> dict[str, Any]:
    """Return the advice as JSON values; offers without their losses."""
    return {
        "offers": [{key: value for key, value in _offer(offer).items() if key != "losses"} for offer in advice.offers],
        "limits": asdict(advice.limits),
        "answers": {
            question: {
                name: None if (offer := getattr(answer, name)) is None else offer.variant
                for name in ("winner", "pruned", "unpruned", "nearest")
            }
            for question, answer in advice.answers.items()
        },
        "words": advice.words,
        "verdict": advice.verdict,
    }


def _offer(offer: Any) -> dict[str, Any]:
    interval = offer.interval
    return vars(offer) | {
        "kind": offer.kind,
        "interval": None if interval is None else [interval.low, interval.high],
        "decode": None if offer.decode is None else vars(offer.decode),
        "tasks": dict(offer.tasks),
    }


def _share(text: str) -> float:
    """Return the share that a percentage says: `10%`, `10 %` or `10`."""
    try:
        found = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise InvalidSettingError("--increase", shown(text), "a percentage from 0 on", "Write e.g. --increase 10%.")
    return found
