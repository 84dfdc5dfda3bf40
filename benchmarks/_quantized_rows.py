"""The rows of benchmarks/quantized.py: what is measured, and the file that holds what was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpruner.advice import Offer
from zpruner.evaluate.intervals import perplexity_interval
from zpruner.patterns import StructuredPattern, parse_pattern
from zpruner.pruning.presets import PRESETS
from zpruner.quantization import Grid

PER_32 = {"q8_0": 34, "q4_0": 18}
"""Formats of llama.cpp -> bytes of 32 weights."""
BF16 = "bf16"
_NEAREST, _GPTQ = {"rounding": "nearest"}, {"rounding": "gptq"}
_SEQUENTIAL = {"score": "magnitude", "correct": {}, "measure": "submodule"}
"""Plain quantisation with what `best` has besides its mask and update."""


@dataclass(frozen=True)
class Variant:
    """A row: how it is called, the sparsity, and what is done; `quantize` as in params.yaml."""

    name: str
    pattern: str
    method: Mapping[str, Any]
    quantize: Mapping[str, Any] | None = None
    sequential: bool = True

    @property
    def key(self) -> str:
        """What tells it from the others in the log."""
        return key_of(self.name, self.pattern, self.quantize, self.sequential)

    @property
    def grid(self) -> Grid | None:
        """The grid of its values."""
        return None if self.quantize is None else Grid(self.quantize["bits"], _group(self.quantize))

    @property
    def structured(self) -> bool:
        """Whether structures go, so that the model is a smaller one."""
        return isinstance(parse_pattern(self.pattern), StructuredPattern)


def variants() -> Iterator[Variant]:
    """Yield the rows, what is told from most first."""
    yield Variant("dense", "0", {})
    dense, best, sparsegpt = {"score": "magnitude"}, PRESETS["best"], PRESETS["sparsegpt"]
    for bits in (4, 3, 8):
        yield Variant("dense", "0", dense, {"bits": bits, **_NEAREST}, sequential=False)
    int8, int4, int3 = ({"bits": bits, **_GPTQ} for bits in (8, 4, 3))
    for grid in (int3, int4):
        yield Variant("dense", "0", dense, grid, sequential=False)
    yield from (Variant(name, "0", {}) for name in ("q4_0", "q8_0"))
    yield Variant("sparsegpt", "0.3", sparsegpt, int4, sequential=False)
    yield from (Variant("sparsegpt", "0.5", sparsegpt, each, sequential=False) for each in (None, int8, int4))
    values = (None, int8, int4)
    yield from (Variant("best", "0.5", best, each) for each in values)
    yield from (Variant("dense", "0", _SEQUENTIAL, grid) for grid in (int3, int4))
    yield from (Variant("best", "2:4", best, each) for each in values)
    yield Variant("dense", "0", dense, int8, sequential=False)
    yield from (Variant("best", "0.3", best, each) for each in reversed(values))
    for grid in ({**int3, "group": 128}, {**int4, "group": 128}):
        yield Variant("dense", "0", dense, grid, sequential=False)
    yield from (Variant("best", pattern, best, each) for pattern in ("0.6", "0.7") for each in values)
    yield from (Variant("best", "neurons:0.125", best, each) for each in reversed(values))


def key_of(name: str, pattern: str, quantize: Mapping[str, Any] | None, sequential: bool) -> str:
    """Return what tells a row from the others."""
    return json.dumps([name, pattern, quantize, sequential])


def read(log: Path) -> dict[str, dict[str, Any]]:
    """Return the measurements by the variant's key; the last of a key counts."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return {entry["key"]: entry | {"sequential": json.loads(entry["key"])[-1]} for entry in entries}


def short_values(entry: Mapping[str, Any]) -> str:
    """Return how a row's values are stored: `bf16`, `int4`, `q8_0`."""
    if entry["quantize"] is None:
        return entry["name"] if entry["name"] in PER_32 else BF16
    return f"int{entry['quantize']['bits']}"


def values(entry: Mapping[str, Any]) -> str:
    """Return how a row's values are stored and rounded."""
    if entry["quantize"] is None:
        return short_values(entry)
    return f"{short_values(entry)}, {_group(entry['quantize'])}, {entry['quantize']['rounding']}"


def name_of(entry: Mapping[str, Any]) -> str:
    """Return what a row is called besides its values."""
    if entry["pattern"] != "0":
        return f"{entry['name']} {entry['pattern']}"
    in_turn = entry["sequential"] and entry["quantize"] is not None
    return f"{entry['name']}, blocks in turn" if in_turn else entry["name"]


def offer(entry: Mapping[str, Any]) -> Offer:
    """Return a row as what can be shipped."""
    pruned, losses = entry["pattern"] != "0", tuple(entry["losses"])
    return Offer(
        label=name_of(entry) if short_values(entry) == BF16 else f"{name_of(entry)} {values(entry)}",
        variant=entry["key"],
        method=entry["name"],
        pattern=entry["pattern"] if pruned else "",
        sparsity=0.0,
        bits=None if entry["quantize"] is None else entry["quantize"]["bits"],
        form="plain",
        computed=False,
        perplexity=entry["perplexity"],
        interval=perplexity_interval(losses),
        losses=losses,
        disk=entry["bytes"],
    )


def _group(quantize: Mapping[str, Any]) -> Any:
    return quantize.get("group", "row" if quantize["bits"] == 8 else 32)
