"""`zpruner validate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpruner.artifacts.layout import Layout
from zpruner.cli import _options as option
from zpruner.cli._early import check_names
from zpruner.errors import InvalidSettingError, MissingStatisticError

if TYPE_CHECKING:
    from zpruner.pruning.composition import Composition
    from zpruner.settings.params import Params
    from zpruner.settings.texts import SourceSettings


def validate(
    root: Annotated[
        Path,
        typer.Argument(metavar="ROOT", parser=option.folder, help="The project folder, which holds params.yaml."),
    ] = Path(),
    log: option.Log = None,
) -> None:
    """Check params.yaml, every composition and every source before a long run, and estimate what it will take."""
    from zpruner.settings.reading import read_params_with_advice

    params, advice = read_params_with_advice(root / "params.yaml")
    for label, method in params.methods.items():
        parts = {"score": method.score}
        parts |= {key: part.name for key, part in (("refine", method.refine), ("update", method.update)) if part}
        check_names(parts, where=f"methods.{label}.")

    from zpruner.cli._estimate import estimate_table, read_shapes
    from zpruner.evaluate import check_protocol, find_tasks
    from zpruner.pruning.fitting import check_fit, check_moved
    from zpruner.text import check_length

    if advice:
        typer.echo(advice)
    compositions = check_compositions(params)
    if params.search is not None:
        check_formulas(params.search.initial)
    typer.echo(
        f"params.yaml: {len(params.methods)} methods x {len(params.sparsities)} sparsities = "
        f"{len(params.methods) * len(params.sparsities)} variants, every setting known and in range"
    )
    if not (params.methods and params.sparsities):
        empty = "methods" if not params.methods else "sparsities"
        typer.echo(f"{empty} is empty: only the dense model will be evaluated")
    check_protocol(params.evaluation.perplexity)
    for line in check_sources(params, root):
        typer.echo(line)
    if (tasks := params.evaluation.zero_shot) is not None:
        find_tasks(tasks, root)
        typer.echo(f"zero-shot: every one of {', '.join(tasks.tasks)} is known; their data is read when they run")
    shapes = read_shapes(params, root)
    if shapes is None:
        typer.echo(
            "model: not here yet, so that widths are not checked and nothing is estimated (`dvc repro fetch@model`)"
        )
        return
    for where, seqlen in (
        ("calibration", params.calibration.seqlen),
        ("evaluation.perplexity", params.evaluation.perplexity.seqlen),
        *([] if params.search is None else [("search.text", params.search.text.seqlen)]),
    ):
        check_length(seqlen, shapes.longest, f"{where}.seqlen")
    patterns = {f"sparsities.{label}": params.pattern(label) for label in params.sparsities}
    stays = check_fit(patterns, shapes.model, shapes.inventory)
    named = {f"methods.{label}": composition for label, composition in compositions.items()}
    check_moved(named, patterns, shapes.model, shapes.inventory)
    typer.echo(
        f"model: {len(shapes.layers)} prunable layers in {shapes.inventory.n_blocks} blocks; every pattern fits them"
    )
    for name, words in stays.items():
        typer.echo(f"{name}: {words}")
    typer.echo("")
    for line in estimate_table(params, compositions, shapes, root):
        typer.echo(line)


def check_compositions(params: Params) -> dict[str, Composition]:
    """Return label -> composition.

    Raises:
        InvalidSettingError, UnknownNameError, InvalidPatternError: as `compose_all`.
        MissingStatisticError: it needs Gram matrices and calibration.gram is false.
    """
    from zpruner.pruning.compose import compose_all
    from zpruner.pruning.composition import statistics_of
    from zpruner.types import Stat

    calibration = params.calibration
    compositions = compose_all(params)
    for label, composition in compositions.items():
        if calibration.gram is False and Stat.GRAM in statistics_of([composition], calibration.propagation):
            raise MissingStatisticError(
                f"methods.{label}",
                "a calibration without gram",
                "gram, which it needs",
                "Set calibration.gram to auto or true.",
            )
    return compositions


def check_formulas(formulas: Sequence[str]) -> None:
    """Raise FormulaError naming the first of search.initial that cannot be read."""
    from zpruner.search import FormulaError, parse_formula

    for index, formula in enumerate(formulas):
        try:
            parse_formula(formula)
        except FormulaError as error:
            where = f"search.initial[{index}]: {error.where}"
            raise FormulaError(where, error.got, error.expected, error.action) from None


def check_sources(params: Params, root: Path) -> list[str]:
    """Return what will be fetched, one line per source, and whether a local one has changed since it was.

    Raises:
        InvalidSettingError: a malformed source, or one that nothing pins.
        SourceError: a local path that does not exist.
    """
    from zpruner.settings.texts import SELF

    calibration = params.calibration
    texts: list[tuple[str, str, SourceSettings]] = [
        (f"calibration.source.{index}" if calibration.mixed else "calibration", "calibration", source)
        for index, source in enumerate(calibration.sources)
    ]
    texts.append(("evaluation.perplexity", "evaluation", params.evaluation.perplexity))
    if params.search is not None:
        texts.append(("search.text", "search", params.search.text))
    lines = [_check_source("model", "model", params.model.source, params.model.sha256, root)]
    for where, name, text in texts:
        if name == "calibration" and text.source == SELF:
            lines.append(f"{where}: the dense model writes it itself (stage generate)")
        else:
            lines.append(_check_source(where, name, text.source, text.sha256, root))
    return lines


def _check_source(where: str, name: str, source: str, sha256: str | None, root: Path) -> str:
    from zpruner.errors import SourceError
    from zpruner.sources import LocalPath, Remote, checked_sha256, hub_name, parse_source

    parsed = parse_source(source)
    checked_sha256(f"{where}.source", sha256)
    match parsed:
        case LocalPath(path) if (root / path).exists():
            return f"{where}: {source} {_since_fetched(root, name, root / path)}"
        case LocalPath() if (named := hub_name(source)) is not None:
            return f"{where}: {named[0]} comes from the Hugging Face hub, at the commit of the day it is first fetched"
        case LocalPath(path):
            raise SourceError(
                f"{where}.source",
                f"no file or folder {root / path}",
                "one that exists",
                f"Put it there, or name another in {where}.source.",
            )
        case Remote():
            if sha256 is None and not parsed.is_pinned:
                got = f"null ('{source}' without sha256)"
                expected = "the SHA-256 of what is fetched, or of the hub a commit of 40 digits"
                raise InvalidSettingError(f"{where}.sha256", got, expected, "Add it.")
            return f"{where}: {parsed.origin}"


def _since_fetched(root: Path, name: str, path: Path) -> str:
    """Return whether a local source is what was fetched, where something was."""
    from zpruner.artifacts.costs import Cost
    from zpruner.errors import ArtifactError
    from zpruner.sources import content_sha256

    layout = Layout(root)
    try:
        fetched = Cost.read(layout.costs(name == "search") / "fetch" / f"{name}.json", "dvc repro").source
    except ArtifactError:  # nothing was fetched yet
        fetched = None
    if not fetched:
        return "is here"
    if content_sha256(path, layout.downloads / "hashes") in fetched.split():
        return "is here, as it was fetched"
    return "has changed since it was fetched: `dvc repro` fetches it again"
