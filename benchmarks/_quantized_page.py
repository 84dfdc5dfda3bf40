"""What benchmarks/quantized.py measured, as a table, a chart, and what follows in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from _quantized_rows import BF16, PER_32, key_of, name_of, offer, short_values, values

from zpruner.advice import frontier
from zpruner.evaluate.intervals import ratio_interval
from zpruner.report import format as fmt
from zpruner.report.axes import quantity
from zpruner.report.svg import CONFIG
from zpruner.report.theme import COLOURS, SHAPES
from zpruner.report.verdict import advise

Entry = Mapping[str, Any]
BEGIN, END = "<!-- measured: benchmarks/quantized.py --docs -->", "<!-- end of what was measured -->"
_FAMILIES = {"dense": "unpruned", "best": "best", "sparsegpt": "SparseGPT", "q4_0": "llama.cpp", "q8_0": "llama.cpp"}
_COLOURS = ("ink", "c0", "c1", "c2", "c3")
_INCREASES = (0.01, 0.15, 0.5, 1.0)
"""Over dense, that a reader may accept."""


def write_docs(path: Path, found: Mapping[str, Entry]) -> None:
    """Put table, chart and words between the marks of a page, and the chart beside it."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    picture = path.with_suffix(".svg")
    picture.write_text(chart(found), encoding="utf-8")
    image = f"![Perplexity against bytes a weight; the table has the numbers]({picture.name})"
    path.write_text(f"{before}{BEGIN}\n{image}\n\n{page(found)}\n{END}{after}", encoding="utf-8")


def page(found: Mapping[str, Entry]) -> str:
    """Return the table in the order of bytes a weight, and what follows from it."""
    rows, dense = _sorted(found), _dense(found)
    best = {each.variant for each in _frontier(rows)}
    lines = [
        "| variant | values | bytes a weight | MB | perplexity | over dense | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(line(entry, dense, entry["key"] in best) for entry in rows),
    ]
    said = "\n".join(f"- {sentence}" for sentence in sentences(found))
    return "\n".join(lines) + (f"\n\n{said}" if said else "")


def line(entry: Entry, dense: Entry | None = None, best: bool = False) -> str:
    """Return a row of the table; `*`: no row with as few bytes a weight predicts as well."""
    takes = f"{entry['bytes_per_weight']:.3f} | {entry['bytes'] / 1e6:.1f}"
    change = ""
    if dense is not None and entry is not dense:
        change = fmt.change(entry["perplexity"] / dense["perplexity"])
        noise = ratio_interval(entry["losses"], dense["losses"])
        change += f" ({fmt.interval(noise, fmt.change)})"
    told = fmt.perplexity(entry["perplexity"]) + ("\\*" if best else "")
    return f"| {name_of(entry)} | {values(entry)} | {takes} | {told} | {change} | {entry['cpu_seconds']:.0f} |"


def sentences(found: Mapping[str, Entry]) -> Iterator[str]:
    """Yield what follows from the rows that are there."""
    dense = _dense(found)
    if dense is None:
        return
    offers = [offer(dense), *(offer(entry) for entry in _sorted(found) if _ours(entry) and entry is not dense)]
    for increase in _INCREASES:
        question, answer = next(iter(advise(offers, increase=increase).words.items()))
        yield f"{question}: {answer}"
    yield advise(offers).verdict
    yield from _cost_of_bits(found, dense)
    yield from _at_equal_bytes(found, "0.5")


def chart(found: Mapping[str, Entry]) -> str:
    """Return an SVG: perplexity against bytes a weight, both logarithmic; the line joins what nothing beats."""
    rows = _sorted(found)
    kinds = sorted({_kind(entry) for entry in rows})
    families = list(dict.fromkeys(_FAMILIES.values()))
    points = [
        {
            "x": entry["bytes_per_weight"],
            "y": entry["perplexity"],
            "family": _FAMILIES[entry["name"]],
            "kind": _kind(entry),
            "text": entry["pattern"] if entry["pattern"] != "0" else "",
        }
        for entry in rows
    ]
    best = [{"x": found[each.variant]["bytes_per_weight"], "y": each.perplexity} for each in _frontier(rows)]
    x = quantity("x", "bytes a weight", [point["x"] for point in points])
    y = quantity("y", "perplexity", [point["y"] for point in points], label=",~f")
    place = {"x": x, "y": y}
    colours = [COLOURS[name][0] for name in _COLOURS]
    colour = {"field": "family", "title": None, "scale": {"domain": families, "range": colours[: len(families)]}}
    shape = {"field": "kind", "title": None, "scale": {"domain": kinds, "range": list(SHAPES[: len(kinds)])}}
    series = {**place, "color": {**colour, "type": "nominal"}}
    spec = {
        "width": 560,
        "height": 380,
        "config": {**CONFIG, "background": COLOURS["paper"][0]},
        "data": {"values": points},
        "layer": [
            {
                "data": {"values": best},
                "mark": {"type": "line", "color": COLOURS["mute"][0], "strokeWidth": 1.2, "interpolate": "step-after"},
                "encoding": {**place, "order": {"field": "x"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {**series, "shape": {**shape, "type": "nominal"}},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 7, "dy": -5, "fontSize": 10},
                "encoding": {**series, "text": {"field": "text"}},
            },
        ],
    }
    drawn: str = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return drawn + "\n"


def _cost_of_bits(found: Mapping[str, Entry], dense: Entry) -> Iterator[str]:
    """Say what integers cost where weights were pruned, in shares of what pruning costs."""
    for bits in (8, 4):
        told = []
        for entry in _sorted(found):
            plain = found.get(key_of(entry["name"], entry["pattern"], None, entry["sequential"]))
            quantized = entry["quantize"] or {}
            if plain is None or plain is entry or plain is dense or quantized.get("bits") != bits:
                continue
            lost = plain["perplexity"] - dense["perplexity"]
            told.append(f"{(entry['perplexity'] - plain['perplexity']) / lost:+.1%} ({name_of(entry)})")
        if told:
            yield f"int{bits} values add to what pruning costs over dense: {', '.join(told)}."


def _at_equal_bytes(found: Mapping[str, Entry], pattern: str) -> Iterator[str]:
    """Set int4 at a sparsity against unpruned integers of no more bytes a weight, or of the fewest there are."""
    for entry in _sorted(found):
        if entry["pattern"] != pattern or short_values(entry) != "int4":
            continue
        plain = [other for other in _sorted(found) if other["pattern"] == "0" and short_values(other) == "int3"]
        if not plain:
            continue
        other = min(plain, key=lambda each: each["perplexity"])
        noise = ratio_interval(entry["losses"], other["losses"])
        ratio = entry["perplexity"] / other["perplexity"]
        beats = "beats" if ratio < 1 else "does not beat"
        yield (
            f"{name_of(entry)} with int4 ({entry['bytes_per_weight']:.3f} bytes a weight) {beats} unpruned int3 by "
            f"{other['quantize']['rounding']} ({other['bytes_per_weight']:.3f}): "
            f"{fmt.perplexity(entry['perplexity'])} beside {fmt.perplexity(other['perplexity'])}, "
            f"{fmt.change(ratio)} ({fmt.interval(noise, fmt.change)})."
        )


def _kind(entry: Entry) -> str:
    """Return how many bits values have, in words, llama.cpp's as ours."""
    return short_values(entry).replace("q", "int").removesuffix("_0")


def _ours(entry: Entry) -> bool:
    return entry["name"] not in PER_32


def _dense(found: Mapping[str, Entry]) -> Entry | None:
    return next((e for e in found.values() if e["name"] == "dense" and short_values(e) == BF16), None)


def _sorted(found: Mapping[str, Entry]) -> list[Entry]:
    return sorted(found.values(), key=lambda entry: (entry["bytes_per_weight"], entry["perplexity"]))


def _frontier(rows: Sequence[Entry]) -> list[Any]:
    taken = {entry["key"]: entry["bytes_per_weight"] for entry in rows}
    return list(frontier(map(offer, rows), lambda each: taken.get(each.variant, math.inf)))
