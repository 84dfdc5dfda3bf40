"""Perplexity of models without structures: our best, Wanda-sp, FLAP's score and magnitude, compensated and not.

    python benchmarks/structured.py TEXT --model data/models/dense --out benchmarks/results/structured.jsonl

TEXT is what perplexity is measured on, WikiText-2's test split in the published tables; nothing is chosen by it. A row
that the file has is not measured again, so that a run can be interrupted; `--table` prints what there is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import torch
import typer

import zpruner
from zpruner.pruning.presets import PRESETS
from zpruner.text import read_windows

BEST: dict[str, Any] = dict(PRESETS["best"])
UPDATE = {"update": BEST["update"]}
SOLVED = {**UPDATE, "correct": {}, "measure": "submodule"}
FLAP = {"score": "wanda", "structures": {"neurons": "flap", "groups": "flap"}}
METHODS: dict[str, dict[str, Any]] = {
    "best": BEST,
    "wanda_sp": {"score": "wanda"},
    "flap": FLAP,
    "magnitude": {"score": "magnitude"},
    "wanda_sp + least squares": {"score": "wanda", **SOLVED},
    "flap + least squares": {**FLAP, **SOLVED},
    "magnitude + least squares": {"score": "magnitude", **SOLVED},
}
POINTS = (
    "neurons:0.125",
    "neurons:0.25",
    "neurons:0.375",
    "groups:1/3",
    "blocks:0.1",
    "blocks:0.2",
    "neurons:0.125 groups:1/3 blocks:0.1",
)
ORDER = (
    ("dense", ("best", "wanda_sp", "flap", "magnitude")),
    ("pruned", ("best", "wanda_sp", "flap")),
    ("dense", ("wanda_sp + least squares", "flap + least squares", "magnitude + least squares")),
    ("pruned", ("wanda_sp + least squares", "flap + least squares", "magnitude", "magnitude + least squares")),
)
"""What is measured first: a run may be stopped anywhere."""


@dataclass(frozen=True)
class Row:
    """One measurement; `seconds` are processor time of pruning, calibration apart where it is shared."""

    pattern: str
    method: str
    propagation: str
    perplexity: float
    parameters: int
    seconds: float


def main(
    text: Path,
    model: Path = Path("data/models/dense"),
    calibration: Path = Path("data/calibration/tokens.arrow"),
    out: Path = Path("benchmarks/results/structured.jsonl"),
    windows: int = 24,
    seqlen: int = 512,
    propagations: str = "dense,pruned",
    methods: str = ",".join(METHODS),
    points: str = ",".join(POINTS),
    table: Annotated[bool, typer.Option(help="Print what the file has, and measure nothing.")] = False,
) -> None:
    """Measure every row that the file lacks."""
    if not table:
        wanted = [
            (point, method, propagation)
            for propagation, some in ORDER
            for point in points.split(",")
            for method in some
            if propagation in propagations.split(",") and method in methods.split(",") and _differs(point, method)
        ]
        _measure(text, model, calibration, out, windows, seqlen, wanted)
    for line in _table(out):
        print(line)


def _differs(point: str, method: str) -> bool:
    """Return whether a method ranks something at a point: FLAP no blocks, and of blocks alone nothing makes up."""
    alone = point.startswith("blocks")
    return not alone or not ("flap" in method or "least squares" in method)


def _measure(
    text: Path, model: Path, calibration: Path, out: Path, windows: int, seqlen: int, wanted: list[tuple[str, str, str]]
) -> None:
    network, tokenizer = zpruner.load(model)
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    evaluated = torch.tensor(ids[: windows * seqlen], dtype=torch.int32).view(windows, seqlen)
    tokens = read_windows(calibration)[0]
    known = {(row.pattern, row.method, row.propagation) for row in _rows(out)}
    if ("", "dense", "") not in known:
        _add(out, Row("", "dense", "", zpruner.perplexity(network, evaluated, 4), _parameters(network), 0.0))
    shared: zpruner.Calibration | None = None
    dense = [METHODS[method] for _, method, propagation in wanted if propagation == "dense"]
    for point, method, propagation in wanted:
        if (point, method, propagation) in known:
            continue
        if propagation == "dense" and shared is None:
            start = process_time()
            shared = zpruner.calibrate(network, tokens, for_methods=dense)
            print(f"calibration: {process_time() - start:.0f} s of processor time", flush=True)
        smaller = copy.deepcopy(network)
        start = process_time()
        if propagation == "dense":
            assert shared is not None
            zpruner.prune(smaller, replace(shared, replaced={}), method=METHODS[method], sparsity=point)
        else:
            zpruner.prune_sequentially(smaller, tokens, method=METHODS[method], sparsity=point)
        seconds = process_time() - start
        perplexity = zpruner.perplexity(smaller, evaluated, 4)
        row = Row(point, method, propagation, perplexity, _parameters(smaller), seconds)
        print(row, flush=True)
        _add(out, row)


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _add(out: Path, row: Row) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def _rows(out: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


def _table(out: Path) -> Iterator[str]:
    rows = _rows(out)
    points = [point for point in POINTS if any(row.pattern == point for row in rows)]
    columns = list(dict.fromkeys((row.method, row.propagation) for row in rows if row.pattern))
    dense = next((row for row in rows if not row.pattern), None)
    if dense is None:
        return
    yield f"dense: {dense.perplexity:.2f}, {dense.parameters / 1e6:.1f} M parameters\n"
    yield "| method | propagation | " + " | ".join(points) + " |"
    yield "|---|---|" + "--:|" * len(points)
    for method, propagation in columns:
        found = {row.pattern: row for row in rows if (row.method, row.propagation) == (method, propagation)}
        cells = [f"{found[point].perplexity:,.4g}" if point in found else "" for point in points]
        yield f"| {method} | {propagation} | " + " | ".join(cells) + " |"
    for propagation in dict.fromkeys(propagation for _, propagation in columns):
        cells = [_share(rows, point, propagation, dense.perplexity) for point in points]
        yield f"| best's increase, of the least without compensation | {propagation} | " + " | ".join(cells) + " |"


def _share(rows: list[Row], point: str, propagation: str, dense: float) -> str:
    """Return the increase of `best` over dense as a share of the least of those that compensate for nothing."""
    found = {
        row.method: row.perplexity - dense for row in rows if (row.pattern, row.propagation) == (point, propagation)
    }
    others = [found[method] for method in ("wanda_sp", "flap", "magnitude") if method in found]
    return f"{found['best'] / min(others):.0%}" if others and "best" in found else ""


if __name__ == "__main__":
    typer.run(main)
