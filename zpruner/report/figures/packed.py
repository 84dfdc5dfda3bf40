"""What packed variants save, and how fast they are beside the same weights with their zeros."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from zpruner.artifacts.results import PackedSpeed
from zpruner.report.page import Figure, note
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table


def figure(report: Report) -> Figure | None:
    """Return bytes and speeds of the variants that were packed; None where there are none."""
    rows, hows = [], set()
    for variant in report.data.variants:
        found = variant.packed
        if found is None:
            continue
        size = f"{found.packed / 1e6:,.1f} MB ({found.packed / found.dense:.0%})"
        if found.speed is None:
            rows.append(Row((Cell(variant.spec.name), size, "", "", "", "")))
            continue
        speed = found.speed
        hows.add(f"{speed.kernels.split(',')[0]}, {speed.threads} threads")
        prefill = _ratio(speed.prefill, speed.torch_prefill)
        decode = f"{statistics.median(speed.decode):.1f}"
        rows.append(Row((Cell(variant.spec.name), size, decode, *_over(speed), f"{prefill:.2f}")))
    if not rows:
        return None
    titles = ("on disk, of pruned", "decode, tokens/s", "over the control", "over torch", "prefill, over torch")
    columns = (Column("packed"), *(Column(title, numeric=True) for title in titles))
    text = (
        "Packed: zeros left out, as bitmask and kept values. The control multiplies the same weights with their zeros "
        "by the same code, so that a ratio of 1 means that the zeros gain nothing; medians of pairs measured in turns "
        "in one process. At equal bytes 4-bit quantisation usually loses less quality: compare before you choose."
    )
    if hows:
        text += f" Run by {'; '.join(sorted(hows))}."
    return Figure(Table("Packed variants", columns, tuple(rows)).html() + note(text))


def _over(speed: PackedSpeed) -> tuple[str, str]:
    return f"{_ratio(speed.decode, speed.control_decode):.2f}", f"{_ratio(speed.decode, speed.torch_decode):.2f}"


def _ratio(first: Sequence[float], second: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(first, second, strict=True))
