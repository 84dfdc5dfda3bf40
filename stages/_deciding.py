"""Which settings decide the result of each stage instance: the only list of them.

The plan writes them down, one file per instance, and DVC runs an instance again when its file has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zpruner.errors import UnknownNameError
from zpruner.methods import METHODS
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import Composition, statistics_of
from zpruner.settings.mixture import window_counts
from zpruner.settings.params import MethodSettings, Params
from zpruner.settings.texts import SELF, CalibrationSettings, MixedSettings, TextSettings
from zpruner.types import CHANNEL_SUMS, SQUARES, Stat

_READ_LATER = {"batch_size", "gram", "min_expert_tokens", "propagation", "divergence"}
"""Settings beside a text that say what is done with its windows, not which ones they are."""

Instance = tuple[str, ...]
"""A stage and its labels, e.g. ("mask", "wanda", "s24")."""


def instances(params: Params) -> Iterator[Instance]:
    """Yield every stage instance of the pipeline but the plan's own."""
    yield from (("fetch", what) for what in ("model", "calibration", "evaluation"))
    yield ("generate",)
    yield from (("calibrate",), ("gradients",), ("evaluate", "dense"), ("report",))
    for method in params.methods:
        yield ("score", method)
        yield from ((stage, method, s) for s in params.sparsities for stage in ("mask", "apply", "pack", "evaluate"))


def search_instances() -> Iterator[Instance]:
    """Yield every stage instance of the search."""
    yield from (("fetch", "search"), ("gradients", "search"), ("search",), ("search_report",))


def deciding(params: Params, instance: Instance) -> dict[str, Any]:
    """Return the settings that decide the result of a stage instance, as JSON values; what is null is left out.

    Raises:
        InvalidSettingError: labels that params.yaml does not list.
    """
    found: dict[str, Any] = _present(_deciding(params, instance))
    return found


def _present(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _present(each) for key, each in value.items() if each is not None}
        case list() | tuple():
            return [_present(each) for each in value]
    return value


def _deciding(params: Params, instance: Instance) -> dict[str, Any]:
    model, calibration = params.model, params.calibration
    layers = _json(model, "blocks", "ignore", "trust_remote_code")
    match instance:
        case ("fetch", "model"):
            return _json(model, "source", "sha256", "dtype", "trust_remote_code")
        case ("fetch", what):
            text = _text(params, what)
            rungs = {"windows": params.the_search().rungs[-1]} if what == "search" else {}
            return {**text.model_dump(mode="json", exclude=_READ_LATER), **_json(model, "trust_remote_code"), **rungs}
        case ("generate",):
            return {"written": _written(params)}
        case ("calibrate",):
            found = _json(calibration, "batch_size", "min_expert_tokens")
            return {**layers, **found, "statistics": sorted(_inputs(params))}
        case ("gradients",):
            return {**layers, "wanted": Stat.GRAD_SQ in _needed(params)}
        case ("gradients", "search"):
            return {**layers, "wanted": _search_reads_gradients(params)}
        case ("score", method):
            found = _json(params.method(method), "score", "settings")
            reads = Stat.GRAD_SQ in compose(params.method(method)).needs
            return {**found, "propagation": calibration.propagation, "gradients": reads}
        case ("mask", method, sparsity):
            measuring = ("batch_size", "min_expert_tokens") if calibration.propagation == "pruned" else ()
            steps = _json(calibration, "propagation", *measuring)
            return {**_variant(params, method, sparsity), **layers, **steps}
        case ("apply", method, sparsity):
            return {**_variant(params, method, sparsity), "checkpoint": params.keeps_checkpoint(method, sparsity)}
        case ("pack", method, sparsity):
            bench = _json(params.packed, "rounds", "new_tokens", "prefill")
            said = {"continuation": _continued(params)}
            used = params.packs(method, sparsity) or params.times(method, sparsity)
            return {"packed": {**layers, **bench, **said} if used else None}
        case ("evaluate", "dense"):
            return {**layers, **_measured(params)}
        case ("evaluate", method, sparsity):
            steps = _json(calibration, "propagation")
            return {**_variant(params, method, sparsity), **layers, **_measured(params), **steps}
        case ("report",):
            return params.model_dump(mode="json", exclude={"machine", "search"})
        case ("search",):
            return {**layers, **params.the_search().identity(), "budget": _json(params.the_search(), *_BUDGET)}
        case ("search_report",):
            return {}
    raise UnknownNameError("stages", repr(instance), "a stage instance of the graph", "See dvc.yaml.")


def parts(params: Params, instance: Instance) -> list[object]:
    """Return the parts of a composition whose code runs in a stage instance."""
    match instance:
        case ("score", method):
            return [compose(params.method(method)).method]
        case ("mask" | "apply" | "evaluate", method, _):
            return _all_parts(compose(params.method(method)))
        case ("search",):
            return [METHODS.find(name)() for name in KNOWN]
    return []


KNOWN = ("magnitude", "wanda", "ria", "pruner_zero")
"""Methods that the search compares formulas with."""
_BUDGET = ("generations", "max_evaluations", "max_seconds")


def _needed(params: Params) -> frozenset[Stat]:
    """Return the statistics of the unpruned model that the listed methods read."""
    return statistics_of([compose(method) for method in params.methods.values()], params.calibration.propagation)


def _inputs(params: Params) -> frozenset[Stat]:
    """Return the statistics of layers' inputs that calibration takes."""
    needed = CHANNEL_SUMS | _needed(params) - {Stat.GRAD_SQ}
    if any(method.correct_bias for method in params.methods.values()):
        needed |= {Stat.SUM}  # layer errors of biases that changed are taken from it
    gram = params.calibration.gram
    return needed if gram == "auto" else needed | {Stat.GRAM} if gram else needed - SQUARES


def _all_parts(found: Composition) -> list[object]:
    fixed = (found.method, *found.structures.values(), found.refinement, found.update, found.allocation)
    every = (*fixed, found.correction, found.tuning, found.rounding)
    return [part for part in every if part is not None]


def _variant(params: Params, method: str, sparsity: str) -> dict[str, Any]:
    return {"method": params.method(method).model_dump(mode="json"), "pattern": str(params.pattern(sparsity))}


def _measured(params: Params) -> dict[str, Any]:
    tasks = params.evaluation.zero_shot
    return {
        "continuation": _continued(params),
        "perplexity": params.evaluation.perplexity.model_dump(mode="json"),
        "zero_shot": None if tasks is None else tasks.model_dump(mode="json"),
    }


def _continued(params: Params) -> dict[str, Any] | None:
    found = params.evaluation.continuation
    return None if found is None else found.model_dump(mode="json")


def _written(params: Params) -> dict[str, Any] | None:
    """Return what decides the windows that the model writes itself; None where the calibration lists no such source."""
    found, calibration = own_source(params), params.calibration
    if found is None:
        return None
    source, count = found
    sampled = _json(source, "temperature", "top_p", "drop", "prompt")
    return {
        "windows": count,
        **sampled,
        **_json(calibration, "seqlen", "bos", "seed"),
        **_json(params.model, "trust_remote_code"),
    }


def own_source(params: Params) -> tuple[MixedSettings, int] | None:
    """Return the source of the calibration that the model writes itself, and its number of windows."""
    counted = zip(params.calibration.sources, window_counts(params.calibration), strict=True)
    return next((found for found in counted if found[0].source == SELF), None)


def sources_of(params: Params, what: str) -> tuple[str, ...]:
    """Return where `model`, or one of the texts, comes from: from several sources where the calibration lists them."""
    match what:
        case "model":
            return (params.model.source,)
        case "calibration":
            return tuple(source.source for source in params.calibration.sources)
        case "evaluation":
            return (params.evaluation.perplexity.source,)
    return (params.the_search().text.source,)


def _text(params: Params, what: str) -> TextSettings | CalibrationSettings:
    """Return the settings of the text `calibration`, `evaluation` or `search`."""
    match what:
        case "calibration":
            return params.calibration
        case "evaluation":
            return params.evaluation.perplexity
    return params.the_search().text


def _search_reads_gradients(params: Params) -> bool:
    """Return whether a formula of the search may mention G."""
    settings = params.the_search()
    given = (compose(MethodSettings(score="expression", settings={"formula": text})) for text in settings.initial)
    return "G" in settings.terminals or any(Stat.GRAD_SQ in found.needs for found in given)


def _json(settings: Any, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = settings.model_dump(mode="json", include=set(names))
    return found
