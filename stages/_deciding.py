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
from zpruner.settings.params import MethodSettings, Params
from zpruner.settings.texts import TextSettings
from zpruner.types import CHANNEL_SUMS, SQUARES, Stat

_READ_LATER = {"batch_size", "gram", "min_expert_tokens", "propagation", "divergence"}
"""Settings beside a text that say what is done with its windows, not which ones they are."""

Instance = tuple[str, ...]
"""A stage and its labels, e.g. ("mask", "wanda", "s24")."""


def instances(params: Params) -> Iterator[Instance]:
    """Yield every stage instance of the pipeline but the plan's own."""
    yield from (("fetch", what) for what in ("model", "calibration", "evaluation"))
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
            text = text_of(params, what)
            rungs = {"windows": params.the_search().rungs[-1]} if what == "search" else {}
            return {**text.model_dump(mode="json", exclude=_READ_LATER), **_json(model, "trust_remote_code"), **rungs}
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


def source_of(params: Params, what: str) -> str:
    """Return where `model`, or one of the texts, comes from."""
    return params.model.source if what == "model" else text_of(params, what).source


def text_of(params: Params, what: str) -> TextSettings:
    """Return the settings of the text `calibration`, `evaluation` or `search`."""
    texts: Mapping[str, TextSettings] = {
        "calibration": params.calibration,
        "evaluation": params.evaluation.perplexity,
        **({} if params.search is None else {"search": params.search.text}),
    }
    return texts[what]


def _search_reads_gradients(params: Params) -> bool:
    """Return whether a formula of the search may mention G."""
    settings = params.the_search()
    given = (compose(MethodSettings(score="expression", settings={"formula": text})) for text in settings.initial)
    return "G" in settings.terminals or any(Stat.GRAD_SQ in found.needs for found in given)


def _json(settings: Any, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = settings.model_dump(mode="json", include=set(names))
    return found
