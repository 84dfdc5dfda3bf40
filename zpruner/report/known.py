"""Compositions that have a name, and what the field published about them (published.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from zpruner.pruning.compose import compose
from zpruner.pruning.presets import PRESETS
from zpruner.report import format as fmt
from zpruner.report.ranking import Leaderboard, Report, Standing
from zpruner.settings.params import MethodSettings

BEST = "best"
"""The label of the most accurate composition (zpruner/pruning/presets.py)."""
FLAGSHIPS = (BEST, "zpruner")
"""Labels that a reader looks for: the most accurate composition, and the project's namesake."""
_SMALL = 1_000_000_000


def published() -> dict[str, Any]:
    """Return published.json: perplexity by preset and model, and what pruning costs a larger model."""
    found: dict[str, Any] = json.loads((files("zpruner.report") / "published.json").read_text(encoding="utf-8"))
    return found


def is_preset(settings: Mapping[str, object], preset: str) -> bool:
    """Return whether a method's settings are those of a preset, however they are written."""
    ours = compose(MethodSettings.model_validate(settings))
    return ours == compose(MethodSettings.model_validate(PRESETS[preset]))


def flagship(ranking: Leaderboard) -> tuple[int, Standing] | None:
    """Return place (from 0) and standing of the first flagship that is listed; None where none is."""
    places = {standing.variant.spec.method: place for place, standing in enumerate(ranking.standings)}
    found = next((places[label] for label in FLAGSHIPS if label in places), None)
    return None if found is None else (found, ranking.standings[found])


def why_so_much(report: Report) -> str:
    """Return why a small model loses so much; empty where it is large, or loses no more than a large one."""
    larger = published()["larger"]
    weights = max((sum(layer.weights for layer in v.details.layers) for v in report.data.variants), default=0)
    ratio = larger["pruned"] / larger["dense"]
    firsts = [ranking.standings[0] for ranking in report.rankings]
    mild = [s for s in firsts if s.variant.spec.kind == "unstructured" and s.variant.spec.removed <= 0.5]
    if weights >= _SMALL or not any(best.ratio is not None and best.ratio > ratio for best in mild):
        return ""
    return (
        f"Small models have few weights to spare: this one has {weights / 1e6:,.0f} million that can be pruned. "
        f"{larger['model']}, with {larger['weights'] / 1e6:,.0f} million, loses {fmt.change(ratio)} at 50 % by "
        f"{larger['method']} ({larger['source']})."
    )
