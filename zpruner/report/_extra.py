"""Parts of evaluation files that not every evaluation has: read strictly where they are, None where they are not."""

from __future__ import annotations

from zpruner.evaluate.bootstrap import Interval
from zpruner.report._data import Divergence, Histogram, Score, Speed, Storage, ZeroShot
from zpruner.report._read import Record

_FACTS = ("version", "samples", "num_fewshot")


def storage(record: Record) -> Storage | None:
    """Read `bytes` of a metrics file."""
    if not record.has("bytes"):
        return None
    found = record.record("bytes")
    sizes = {key: found.count(key) if found.has(key) else None for key in ("bitmask", "packed")}
    return Storage(found.count("stored"), **sizes)


FEWEST_WINDOWS = 5
"""Fewer windows give intervals far narrower than what the next windows would show."""


def divergence(record: Record) -> Divergence | None:
    """Read `divergence` of a metrics file."""
    if not record.has("divergence"):
        return None
    found = record.record("divergence")
    windows = found.count("windows")
    intervals = [_interval(found, key) for key in ("kl_interval", "top1_agreement_interval")]
    if windows < FEWEST_WINDOWS:
        intervals = [None, None]
    return Divergence(found.number("kl"), found.share("top1_agreement"), windows, *intervals)


def _interval(record: Record, key: str) -> Interval | None:
    if not record.has(key):
        return None
    ends = record.record(key)
    return Interval(ends.number("low"), ends.number("high"))


def zero_shot(record: Record) -> ZeroShot | None:
    """Read `zero_shot` of a metrics file: task -> metric -> value, `METRIC_stderr` beside it."""
    if not record.has("zero_shot"):
        return None
    found = record.record("zero_shot")
    tasks = found.record("tasks")
    scores = [score for task in tasks.values for score in _scores(task, tasks.record(task))]
    return ZeroShot(found.share("sparsity"), tuple(scores))


def _scores(task: str, record: Record) -> list[Score]:
    version = str(record.values.get("version", ""))
    samples, shots = (record.count(key) if record.has(key) else None for key in ("samples", "num_fewshot"))
    names = [name for name in record.values if name not in _FACTS and "_stderr" not in name]
    return [
        Score(
            task,
            name,
            record.number(name),
            record.number(f"{name}_stderr") if record.has(f"{name}_stderr") else None,
            version,
            samples,
            shots,
        )
        for name in sorted(names)
    ]


def histograms(record: Record) -> tuple[Histogram, ...]:
    """Read `score_histograms` of a details file."""
    if not record.has("score_histograms"):
        return ()
    found = []
    for entry in record.records("score_histograms"):
        edges, kept, pruned = (entry.numbers(key) for key in ("edges", "kept", "pruned"))
        if not len(kept) == len(pruned) == len(edges) - 1:
            raise entry.wrong("edges", f"{len(kept) + 1} numbers, one more than counts")
        found.append(Histogram(entry.text("layer"), edges, kept, pruned))
    return tuple(found)


def speed(record: Record) -> Speed | None:
    """Read the speeds of a cost file."""
    if not record.has("tokens_per_second"):
        return None
    return Speed(
        record.number("tokens_per_second"),
        record.number("dense_tokens_per_second"),
        record.text("device"),
        record.count("threads"),
        record.count("speed_tokens"),
    )
