"""params.yaml -> checked, frozen settings. An unknown key is an error with the nearest known one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from zpruner.errors import InvalidSettingError, did_you_mean, shown
from zpruner.settings.explain import explain
from zpruner.settings.mixture import check_mixture
from zpruner.settings.moved import settle
from zpruner.settings.params import Params
from zpruner.settings.plain_yaml import read_yaml
from zpruner.settings.setting_files import FORMULAS, read_files
from zpruner.settings.texts import SourceSettings

_LABEL = re.compile(r"[A-Za-z0-9_]{1,100}")
_VARIANTS = 10_000
"""More than DVC's graph can hold."""


def read_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InvalidSettingError: not YAML, an unknown or missing key, a value out of range, a bad label.
        InvalidPatternError: a sparsity that is neither a ratio in [0, 1) nor N:M.
    """
    return read_params_with_advice(path)[0]


def read_params_with_advice(path: Path) -> tuple[Params, str]:
    """Read params.yaml as `read_params` does; return also what the user should know of it, empty if there is nothing.

    That is: keys that have moved since it was written, and an evaluation of text that calibration has seen.
    """
    try:
        data = read_yaml(path)
    except FileNotFoundError:
        raise InvalidSettingError(
            str(path), "no file", "the settings of the run", "Run in the folder that holds params.yaml."
        ) from None
    if isinstance(data, dict) and isinstance(methods := data.get("methods"), dict):
        for label, method in methods.items():
            if isinstance(method, dict) and isinstance(settings := method.get("settings"), dict):
                method["settings"] = read_files(settings, path.parent / FORMULAS, f"{path}: methods.{label}.settings")
    data, advice = settle(data, str(path))
    params = check_params(data, str(path))
    return params, " ".join(filter(None, (advice, _held_out(params, str(path)))))


def check_params(data: object, where: str) -> Params:
    """Return the checked settings of already parsed YAML; see `read_params`."""
    if not isinstance(data, dict):
        raise InvalidSettingError(
            where, type(data).__name__, "a mapping", "Start from the params.yaml of the repository."
        )
    try:
        params = Params.model_validate(data)
    except ValidationError as error:
        raise explain(error, where, Params) from None
    for kind, labels in (("methods", params.methods), ("sparsities", params.sparsities)):
        _check_labels(labels, f"{where}: {kind}")
    if (count := len(params.methods) * len(params.sparsities)) > _VARIANTS:
        raise InvalidSettingError(
            where, f"{count:,} variants (methods x sparsities)", f"at most {_VARIANTS:,}", "List fewer."
        )
    for label in params.sparsities:
        params.pattern(label)
    check_mixture(params.calibration, f"{where}: calibration.", f"{where}: calibration.source")
    if params.search is not None:
        _check_apart(params, params.search.text, where)
    variants = [f"{method}/{sparsity}" for method in params.methods for sparsity in params.sparsities]
    checkpoints = params.evaluation.checkpoints
    chosen = {
        "evaluation.checkpoints": () if checkpoints == "all" else checkpoints,
        "packed.variants": params.packed.variants,
    }
    for key, pattern in ((key, pattern) for key, patterns in chosen.items() for pattern in patterns):
        if not any(fnmatchcase(variant, pattern) for variant in variants):
            raise InvalidSettingError(
                f"{where}: {key}",
                f"'{pattern}', which matches no variant",
                "patterns of METHOD/SPARSITY" + (", or all" if key == "evaluation.checkpoints" else ""),
                did_you_mean(pattern, variants),
            )
    for variant in variants:
        method, sparsity = variant.split("/")
        used = params.packs(method, sparsity) or params.times(method, sparsity)
        if used and not params.keeps_checkpoint(method, sparsity):
            raise InvalidSettingError(
                f"{where}: packed.variants",
                f"'{variant}', whose checkpoint is not written",
                "variants of evaluation.checkpoints",
                f"Add '{variant}' to evaluation.checkpoints.",
            )
    return params


def _check_labels(labels: Iterable[str], where: str) -> None:
    """Refuse labels that cannot be a part of a path, of a DVC stage's name and of a DVC parameter's name alike.

    DVC takes a dot for a level of params.yaml, and joins the labels of a stage's name by hyphens.
    """
    for label in labels:
        if not _LABEL.fullmatch(label) or label == "dense":
            better = re.sub(r"[^A-Za-z0-9_]+", "_", label)[:100].strip("_") or "label"
            raise InvalidSettingError(
                where,
                f"the label {shown(label)}",
                "at most 100 letters, digits and '_', and not 'dense', which is the unpruned model",
                f"Name it e.g. {better if better != 'dense' else 'dense_'}: labels become file and stage names.",
            )


def _held_out(params: Params, where: str) -> str:
    """Return a sentence if the evaluation reads text that calibration has seen, else nothing."""
    evaluation = params.evaluation.perplexity
    seen = next((source for source in params.calibration.sources if source.overlaps(evaluation)), None)
    if seen is None:
        return ""
    return (
        f"{where}: evaluation.perplexity reads {list(evaluation.part)} of the text of which calibration reads "
        f"{list(seen.part)}: its perplexities are of text that pruning has seen, and too good. Give them parts "
        "that do not overlap, or another source."
    )


def _check_apart(params: Params, text: SourceSettings, where: str) -> None:
    """Raise InvalidSettingError if the search's text overlaps with another: fitness would not be held out."""
    calibration = params.calibration
    others: dict[str, SourceSettings] = {
        f"calibration.source.{index}" if calibration.mixed else "calibration": source
        for index, source in enumerate(calibration.sources)
    }
    others["evaluation.perplexity"] = params.evaluation.perplexity
    for name, other in others.items():
        if text.overlaps(other):
            raise InvalidSettingError(
                f"{where}: search.text.part",
                f"{list(text.part)}, which overlaps with {name}.part, {list(other.part)}, of the same source",
                "a text that only the search reads",
                "Choose parts that do not overlap, or another source.",
            )
