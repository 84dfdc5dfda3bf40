"""The report of a formula search: one offline HTML page and Markdown, from the files that the search stage wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from zpruner.artifacts.results import FoundFormula
from zpruner.artifacts.work import atomic_file
from zpruner.errors import ArtifactError
from zpruner.report import _format as fmt
from zpruner.report import _theme
from zpruner.report._markdown import cell_code, code, escape
from zpruner.report._pages import environment
from zpruner.report._search_charts import OPERATORS, progress_panels
from zpruner.search import SearchLog, draw_svg, draw_text, name_frequencies, parse_formula, read_finished_log
from zpruner.search.log import Evaluation

COMMAND = "dvc repro search/dvc.yaml"
_NAMES = {"magnitude": "Magnitude", "wanda": "Wanda", "ria": "RIA", "pruner_zero": "Pruner-Zero"}


@dataclass(frozen=True)
class Found:
    """A formula among the best: its evaluation, its size in nodes and its correlations with known methods."""

    evaluation: Evaluation
    size: int
    correlations: dict[str, float]
    is_winner: bool


@dataclass(frozen=True)
class SearchData:
    """What a search's report shows."""

    log: SearchLog
    result: FoundFormula
    known: dict[str, float]
    """Method -> fitness, the best first."""
    found: tuple[Found, ...]


def load_search(folder: Path) -> SearchData:
    """Read log.jsonl and found.json.

    Raises:
        ArtifactError: a file is missing or damaged.
        FormulaError: a formula that cannot be read.
    """
    log = read_finished_log(folder / "log.jsonl")
    path = folder / "found.json"
    result = FoundFormula.read(path, COMMAND)
    by_formula = {e.formula: e for e in log.evaluations if e.rung == max(x.rung for x in log.evaluations)}
    found = []
    for entry in result.correlations:
        if entry.formula not in by_formula:
            raise ArtifactError(
                str(path), repr(entry.formula), "a formula of the log's highest rung", f"Run `{COMMAND}`."
            )
        size, is_winner = parse_formula(entry.formula).size, entry.formula == result.formula
        found.append(Found(by_formula[entry.formula], size, entry.correlations, is_winner))
    known = {name: value for name, value in result.known.items() if value is not None}
    return SearchData(log, result, dict(sorted(known.items(), key=lambda item: item[1])), tuple(found))


def write_search(data: SearchData, out: Path) -> None:
    """Write report.html and report.md into `out`; equal data gives equal bytes.

    Raises:
        DiskFullError: no space left.
    """
    context = _context(data)
    pages = {
        "report.html": environment(typeset=fmt.typeset).get_template("search.html.j2").render(context),
        "report.md": environment(md=escape, code=code, cell=cell_code).get_template("search.md.j2").render(context),
    }
    for name, text in pages.items():
        with atomic_file(out / name) as file:
            file.write(text.encode())


def _context(data: SearchData) -> dict[str, Any]:
    evaluations = data.log.evaluations
    trees = [parse_formula(e.formula) for e in evaluations if e.rung == 0]
    best = [parse_formula(found.evaluation.formula) for found in data.found]
    tree = parse_formula(data.result.formula)
    return {
        "title": data.result.model.rstrip("/").rsplit("/", 1)[-1],
        "data": data,
        "fmt": fmt,
        "theme": _theme,
        "exp": _perplexity,
        "names": _NAMES,
        "verdict": _verdict(data),
        "rungs": data.log.settings["rungs"],
        "formulas": len(trees),
        "rejected": sum(e.fitness is None for e in evaluations),
        "operators": OPERATORS,
        "panels": progress_panels(data.log, data.known, _NAMES),
        "svg": Markup(draw_svg(tree)),
        "drawn": draw_text(tree),
        "tree": tree,
        "frequencies": _frequencies(trees, best),
        "parts": _parts(evaluations),
        "speed": _speed(evaluations),
        "settings": {
            **fmt.flat(data.result.settings),
            **fmt.flat({"stopped by": data.result.stopped}),
            "inputs": data.log.context,
        },
        "command": COMMAND,
    }


def _perplexity(fitness: float) -> str:
    return fmt.perplexity(math.exp(min(fitness, 700.0)))


def _verdict(data: SearchData) -> str:
    """Return one sentence on what was found, on the text of the search."""
    if not data.known:
        return "No known method was measured."
    better = [_NAMES.get(name, name) for name, value in data.known.items() if data.result.fitness < value]
    name, value = next(iter(data.known.items()))
    against = f"{_NAMES.get(name, name)}, the best known method, stands at {_perplexity(value)}"
    if len(better) == len(data.known):
        return f"Better than every known method on the search's text: {against}."
    if better:
        return f"Better than {', '.join(better)} on the search's text, but not than all: {against}."
    return f"No better than any known method on the search's text: {against}."


def _frequencies(every: list[Any], best: list[Any]) -> list[tuple[str, float, float]]:
    """Return name, occurrences per formula among the best and among all, of those that occur, most frequent first."""
    top, whole = name_frequencies(best), name_frequencies(every)
    rows = [(n, top[n] / max(len(best), 1), whole[n] / max(len(every), 1)) for n in whole if whole[n] or top[n]]
    return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))


def _parts(evaluations: tuple[Evaluation, ...]) -> list[tuple[str, float]]:
    """Return what the evaluations' time went to, as shares."""
    totals: dict[str, float] = {}
    for e in evaluations:
        for part, seconds in e.parts.items():
            totals[part] = totals.get(part, 0.0) + seconds
    whole = sum(totals.values()) or 1.0
    return [(part, seconds / whole) for part, seconds in totals.items()]


def _speed(evaluations: tuple[Evaluation, ...]) -> tuple[str, str]:
    """Return seconds of all evaluations, and evaluations per minute."""
    seconds = sum(e.seconds for e in evaluations)
    return fmt.seconds(seconds), f"{60 * len(evaluations) / seconds:.1f}" if seconds else "-"
