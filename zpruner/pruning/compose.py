"""From an entry of params.yaml to its composition: every name is looked up, every setting checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from zpruner.allocations import ALLOCATIONS
from zpruner.corrections import CORRECTIONS
from zpruner.errors import InvalidSettingError, UnknownNameError, ZprunerError, did_you_mean, shown
from zpruner.masks import REFINEMENTS
from zpruner.methods import METHODS, MaskSolver, PruningMethod
from zpruner.parts.registry import Part, Registry
from zpruner.patterns import StructureKind
from zpruner.pruning.composition import Composition
from zpruner.pruning.composition_parts import RANKED_BY
from zpruner.pruning.presets import PRESETS
from zpruner.quantization import ROUNDINGS
from zpruner.rankings import RANKINGS, Ranking
from zpruner.settings.explain import explain
from zpruner.settings.params import Choice, MethodSettings, Params
from zpruner.tuning import TUNINGS
from zpruner.updates import UPDATES

P = TypeVar("P", bound=Part)
Method = str | Mapping[str, Any]
"""A preset's or a score's name, or a composition as in params.yaml."""


def compose(settings: MethodSettings) -> Composition:
    """Return the composition that an entry of params.yaml describes.

    Raises:
        UnknownNameError: a part that is not registered.
        InvalidSettingError: a hyper-parameter that is unknown or out of range; a group that the method cannot use.
    """
    method = build(METHODS, settings.score, settings.settings)
    own = None
    if isinstance(method, MaskSolver):
        if settings.group not in (None, method.default_group):
            raise InvalidSettingError(
                f"method '{settings.score}'",
                f"group '{settings.group}'",
                f"none, or '{method.default_group}': it chooses its mask itself",
                "Remove the group.",
            )
        own = method.same_as_update()
    update = _chosen(UPDATES, settings.update)
    return Composition(
        method,
        settings.group or method.default_group,
        _chosen(REFINEMENTS, settings.refine),
        update,
        _chosen(ALLOCATIONS, settings.allocate),
        _chosen(CORRECTIONS, settings.correct),
        own is not None and build(UPDATES, *own) == update,
        settings.measure == "submodule",
        _chosen(TUNINGS, settings.tune),
        _chosen(ROUNDINGS, settings.quantize),
        {kind: _ranking(kind, choice) for kind, choice in settings.structures.items()},
        settings.correct_bias,
        frozenset(settings.permute),
    )


def composition_of(method: Method, quantize: Mapping[str, Any] | None = None) -> Composition:
    """Return the composition that a preset's or score's name, or an entry of params.yaml, stands for.

    `quantize`, where it is given, takes the place of the entry's.
    """
    named = isinstance(method, str)
    if not (named or (isinstance(method, Mapping) and all(isinstance(key, str) for key in method))):
        expected = 'a name, or a composition such as {"score": "wanda", "group": "row"}'
        raise InvalidSettingError("method", shown(method), expected, "`zpruner methods` lists them.")
    data = dict(PRESETS.get(method, {"score": method})) if isinstance(method, str) else dict(method)
    if quantize is not None:
        data["quantize"] = quantize
    try:
        return compose(MethodSettings(**data))
    except ValidationError as error:
        raise explain(error, "method", MethodSettings) from None


def compose_all(params: Params) -> dict[str, Composition]:
    """Return label -> composition of every entry under `methods`.

    Raises:
        UnknownNameError, InvalidSettingError, InvalidPatternError: names the label, and the sparsity that it cannot be
            combined with.
    """
    found = {}
    for label, settings in params.methods.items():
        where = f"methods.{label}"
        try:
            found[label] = compose(settings)
            found[label].check_propagation(params.calibration.propagation)
            for sparsity in params.sparsities:
                where = f"methods.{label} with sparsities.{sparsity}"
                found[label].check(params.pattern(sparsity))
        except ZprunerError as error:
            raise type(error)(f"{where}: {error.where}", error.got, error.expected, error.action) from None
    return found


def build(registry: Registry[P], name: str, settings: Mapping[str, object]) -> P:
    """Return the part registered as `name` with these settings.

    Raises:
        UnknownNameError: no such name.
        InvalidSettingError: a setting that is unknown, was renamed or is out of range.
    """
    found, where = registry.find(name), f"{registry.noun} '{name}'"
    for old in sorted(settings.keys() & found.renamed.keys()):
        new = found.renamed[old]
        raise InvalidSettingError(where, f"'{old}'", f"'{new}'", f"{old} is called {new} now: rename it.")
    try:
        return found(**settings)
    except ValidationError as error:
        raise explain(error, where, found) from None


def _chosen(registry: Registry[P], choice: Choice | None) -> P | None:
    return None if choice is None else build(registry, choice.name, choice.settings)


def _ranking(kind: StructureKind, choice: Choice) -> PruningMethod | Ranking:
    """Return what an entry of `structures` names: a ranking, or a score that is summed."""
    where = f"structures.{kind}"
    if choice.name in RANKINGS.names():
        ranking = build(RANKINGS, choice.name, choice.settings)
        if kind in ranking.kinds:
            return ranking
        ranks = f"ranks {' and '.join(other for other in StructureKind if other in ranking.kinds)}"
    elif choice.name in METHODS.names():
        method = build(METHODS, choice.name, choice.settings)
        if isinstance(method, PruningMethod):
            return method
        ranks = "chooses single weights"
    else:
        known = [*RANKINGS.names(), *METHODS.names()]
        raise UnknownNameError(where, f"'{choice.name}'", "a ranking or a score", did_you_mean(choice.name, known))
    expected = f"a score, or what ranks {kind}"
    raise InvalidSettingError(where, f"'{choice.name}', which {ranks}", expected, f"Write {kind}: {RANKED_BY[kind]}.")
