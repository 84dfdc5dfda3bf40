"""Every variant as an offer: the smallest form in which it can be shipped."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from zpruner.advice import Decode, Offer
from zpruner.artifacts.results import Metrics
from zpruner.evaluate.intervals import perplexity_interval
from zpruner.report.data import Measured, ReportData, Variant


class _Form(NamedTuple):
    name: str
    disk: int
    computed: bool


def offers(data: ReportData) -> tuple[Offer, ...]:
    """Return the dense model and every variant of finite perplexity; nothing where that of the dense model is not.

    Variants that neither remove nor quantise anything are the dense model again, and left out.

    A variant is offered packed where that is smaller: with the bytes that were counted if the pipeline packed it, else
    with those that the format's arithmetic gives.
    """
    if not math.isfinite(data.dense.metrics.perplexity):
        return ()
    decoded = next((rounds for variant in data.variants if (rounds := _dense_decode(variant))), None)
    dense = None if decoded is None else Decode(statistics.median(decoded), 1.0)
    found = [_offer("dense", "dense", data.dense, _Form("plain", data.dense.metrics.bytes.stored, False), dense, 1.0)]
    found += [_variant_offer(data, variant) for variant in data.variants if not data.is_dense(variant.spec)]
    return tuple(offer for offer in found if math.isfinite(offer.perplexity))


def _variant_offer(data: ReportData, variant: Variant) -> Offer:
    spec = variant.spec
    pattern = spec.pattern_text if spec.removed else ""
    return _offer(
        f"{spec.method} {pattern}".rstrip(),
        spec.name,
        variant.evaluation,
        _form(variant),
        _decode(variant),
        _prefill(variant),
        spec.method,
        pattern,
        data.bits(spec.method),
    )


def _offer(
    label: str,
    variant: str,
    evaluation: Measured,
    form: _Form,
    decode: Decode | None,
    prefill: float | None,
    method: str = "",
    pattern: str = "",
    bits: int | None = None,
) -> Offer:
    metrics, losses = evaluation.metrics, evaluation.details.window_losses
    unread = None if metrics.bytes.read is None else metrics.bytes.stored - metrics.bytes.read
    return Offer(
        label=label,
        variant=variant,
        method=method,
        pattern=pattern,
        sparsity=metrics.sparsity,
        bits=bits,
        form=form.name,
        computed=form.computed,
        perplexity=metrics.perplexity,
        interval=perplexity_interval(losses),
        losses=losses,
        disk=form.disk,
        read=None if unread is None else form.disk - unread,
        decode=decode,
        prefill=prefill,
        predicts=metrics.verdict is None,
        tasks=_tasks(metrics),
    )


def _form(variant: Variant) -> _Form:
    stored, counted = variant.metrics.bytes.stored, variant.packed
    if counted is not None:
        return _Form("packed", counted.packed, False)
    computed = variant.metrics.bytes.bitmask
    if computed is not None and computed < stored:
        return _Form("packed", computed, True)
    return _Form("plain", stored, False)


def _dense_decode(variant: Variant) -> tuple[float, ...] | None:
    """Return the dense model's speed, measured in turns with a variant's; None where it was not."""
    if variant.beside_dense is not None:
        return variant.beside_dense.dense_decode
    speed = None if variant.packed is None else variant.packed.speed
    return None if speed is None else speed.torch_decode


def _decode(variant: Variant) -> Decode | None:
    packed, beside = None if variant.packed is None else variant.packed.speed, variant.beside_dense
    over_control = None if packed is None else packed.over_control
    if beside is not None:
        return Decode(statistics.median(beside.decode), beside.decode_over_dense, over_control)
    return None if packed is None else Decode(statistics.median(packed.decode), packed.over_torch, over_control)


def _prefill(variant: Variant) -> float | None:
    """Return the speed of forward passes in the form that is offered: that of zeros in place is not of a packed one."""
    if variant.beside_dense is not None:
        return variant.beside_dense.prefill_over_dense
    if variant.packed is not None:
        return None if variant.packed.speed is None else variant.packed.speed.prefill_over_torch
    if _form(variant).name == "packed" or variant.speed is None:
        return None
    return variant.speed.pruned / variant.speed.dense


def _tasks(metrics: Metrics) -> dict[str, tuple[float, float | None]]:
    if metrics.zero_shot is None:
        return {}
    return {
        f"{task} {metric}": score
        for task, found in metrics.zero_shot.tasks.items()
        for metric, score in found.scores.items()
    }
