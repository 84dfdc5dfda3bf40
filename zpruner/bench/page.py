"""A bench for people: a table, and the sentences that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from zpruner.artifacts.costs import median_ratio
from zpruner.bench.measure import CONTROL, PACKED, QUANTIZED, TORCH, Bench, Row
from zpruner.runtime.pages import huge_pages

_HEAD = (
    "| model | run as | MB on disk | MB a token | decode, tokens/s | prefill, tokens/s | memory, MB | of bandwidth |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|\n"
)


_NOTHING = 1.05
"""Times the control's speed up to which zeros are said to gain none."""


def markdown(bench: Bench) -> str:
    """Return the table and its sentences."""
    lines = [_line(row, bench.bandwidth) for row in bench.rows]
    plan = bench.plan
    how = (
        f"{bench.kernels}; {bench.threads} thread{'s' if bench.threads > 1 else ''}; memory read at "
        f"{bench.bandwidth / 1e9:.1f} GB/s. Decode: {plan.new_tokens} tokens after {plan.prompt}, batch 1, greedy; "
        f"prefill: {plan.prefill} tokens. Medians of {plan.rounds} rounds (least and most), all rows in turns in one "
        f"process{', all weights in pages of 2 MB' if huge_pages() else ''}.\n"
    )
    return _HEAD + "".join(lines) + "\n" + how + "".join(f"\n{sentence}\n" for sentence in sentences(bench))


def sentences(bench: Bench) -> list[str]:
    """Return what follows from the numbers, one sentence per model after the first, and what was not measured."""
    found = _beside_first(bench)
    plain = len(found)
    for row in bench.rows:
        beside = {other.how: other for other in bench.rows if other.model == row.model}
        if row.how != PACKED or CONTROL not in beside or TORCH not in beside:
            continue
        decode = [median_ratio(row.decode, beside[how].decode) for how in (CONTROL, TORCH)]
        prefill = median_ratio(row.prefill, beside[TORCH].prefill)
        gained = "the zeros gain speed" if decode[0] > _NOTHING else "the zeros gain no speed here"
        found.append(
            f"{row.model} decodes at {decode[0]:.2f} x the same weights with their zeros by the same code and at "
            f"{decode[1]:.2f} x torch: {gained}. Its prefill runs at {prefill:.2f} x torch's, and a token reads "
            f"{row.read / beside[TORCH].read:.2f} x the bytes."
        )
        found += [_against(row, other) for other in bench.rows if other.how in QUANTIZED]
    if len(found) == plain:
        return found
    if any(row.how in QUANTIZED for row in bench.rows):
        said = "Speed and bytes are half of the matter: `zpruner advise` sets what the models predict beside them."
    else:
        said = (
            "Not in this table: dense int8 and int4. At equal bytes 4-bit quantisation usually loses less quality than "
            "pruning: compare before you choose."
        )
    return [*found, said]


def _beside_first(bench: Bench) -> list[str]:
    """Return how ordinary models stand beside the first one, where that is one, too: both by torch."""
    plain = [row for row in bench.rows if row.how == TORCH and row.disk is not None]
    if not plain or plain[0].model != bench.rows[0].model:
        return []
    first = plain[0]
    assert first.disk is not None
    return [
        f"{row.model} decodes at {median_ratio(row.decode, first.decode):.2f} x {first.model}, its prefill runs at "
        f"{median_ratio(row.prefill, first.prefill):.2f} x, it takes {row.disk / first.disk:.2f} x the bytes on disk, "
        f"and a token reads {row.read / first.read:.2f} x: both are ordinary checkpoints run by torch."
        for row in plain[1:]
        if row.disk is not None
    ]


def _against(packed: Row, dense: Row) -> str:
    """Return how a packed model stands beside dense integers by the same code."""
    speed, bytes_read = median_ratio(packed.decode, dense.decode), packed.read / dense.read
    if speed > 1 and bytes_read < 1:
        said = "pruned is smaller and faster"
    elif speed < 1 and bytes_read > 1:
        said = "dense integers are smaller and faster: pruning would have to predict better"
    else:
        said = "neither is better in both"
    return (
        f"Beside {dense.how.split(',')[0]} by the same code {packed.model} decodes at {speed:.2f} x and reads "
        f"{bytes_read:.2f} x the bytes: {said}."
    )


def _line(row: Row, bandwidth: float) -> str:
    cells = (
        row.model,
        row.how,
        _mb(row.disk),
        _mb(row.read),
        _speed(row.decode),
        _speed(row.prefill),
        _mb(row.memory),
        f"{row.read * statistics.median(row.decode) / bandwidth:.0%}",
    )
    return "| " + " | ".join(cells) + " |\n"


def _mb(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def _speed(runs: Sequence[float]) -> str:
    return f"{statistics.median(runs):.1f} ({min(runs):.1f} to {max(runs):.1f})"
