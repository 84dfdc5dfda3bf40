"""A synthetic data folder as the stages leave it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zpruner.artifacts.costs import Cost
from zpruner.artifacts.files import digest_of
from zpruner.artifacts.results import Metrics
from zpruner.report import ReportData, load

METHODS: dict[str, dict[str, object]] = {
    "magnitude": {"score": "magnitude", "group": "layer"},
    "wanda": {"score": "wanda", "group": "row"},
    "ria": {"score": "ria", "group": "layer", "power": 0.5},
    "zpruner": {"score": "zpruner", "group": "layer", "a_power": 1.5},
}
SPARSITIES = {"s50": "0.5", "s60": "0.6", "s24": "2:4"}
KINDS = {
    "self_attn.q_proj": 331776,
    "self_attn.k_proj": 110592,
    "self_attn.v_proj": 110592,
    "self_attn.o_proj": 331776,
    "mlp.gate_proj": 884736,
    "mlp.up_proj": 884736,
    "mlp.down_proj": 884736,
}
_HARM = {"magnitude": 2.6, "wanda": 0.22, "ria": 0.19, "zpruner": 0.16}
_SHARE = {"s50": 1.0, "s60": 2.1, "s24": 1.7}


def put(path: Path, value: Mapping[str, Any]) -> None:
    """Write what a result writes, without waiting for the disk."""
    kind = Cost if "costs" in path.parts else Metrics
    content = {key: entry for key, entry in value.items() if key != "content_checksum"} | {"place": kind.place_of(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "content_checksum": digest_of(content)}, sort_keys=True))


def edit(path: Path, **changes: Any) -> None:
    put(path, json.loads(path.read_text()) | changes)


def make_tree(
    root: Path,
    methods: Mapping[str, Mapping[str, object]] = METHODS,
    sparsities: Mapping[str, str] = SPARSITIES,
    blocks: int = 4,
    windows: int = 16,
) -> Path:
    """Write `root`/data and return it."""
    data, rng = root / "data", np.random.default_rng(7)
    dense = 3.37 + 0.35 * rng.standard_normal(windows)
    _evaluation(data / "evaluation" / "dense", dense, 0.0, [])
    for method in methods:
        harm = _HARM.get(method, 0.3)
        cost(data, f"score/{method}", "score", 0.9 + harm)
        for label, pattern in sparsities.items():
            nominal = 0.5 if ":" in pattern else float(pattern)
            losses = dense + harm * _SHARE.get(label, 1.0) * (1 + 0.25 * rng.standard_normal(windows))
            layers = _layers(blocks, nominal, harm * _SHARE.get(label, 1.0), rng)
            _evaluation(data / "evaluation" / method / label, losses, nominal, layers, method)
            for stage, seconds in (("mask", 1.21), ("apply", 3.4), ("evaluate", 11.8)):
                cost(data, f"{stage}/{method}/{label}", stage, seconds)
    cost(data, "calibrate", "calibrate", 21.5)
    cost(data, "fetch/model", "fetch", 4.25)
    return data


def cost(data: Path, name: str, stage: str, seconds: float) -> None:
    put(
        data / "costs" / f"{name}.json",
        {"stage": stage, "seconds": seconds, "peak_memory_bytes": 1_300_000_000, "layers": 210},
    )


def read(
    data: Path,
    methods: Mapping[str, Mapping[str, object]] = METHODS,
    sparsities: Mapping[str, str] = SPARSITIES,
    **changes: Any,
) -> ReportData:
    arguments: dict[str, Any] = {
        "model": {"name": "SmolLM2-135M-Instruct", "dtype": "bfloat16", "hash": "8f3c2e91d0aa47b1"},
        "calibration": {"source": "news.txt", "nsamples": 32, "seqlen": 512, "seed": 0, "propagation": "dense"},
        "provenance": {"git commit": "1f4e9a7", "versions": {"zpruner": "0.1.0", "torch": "2.13.0"}},
    }
    return load(data, methods, sparsities, **(arguments | changes))


def _layers(blocks: int, nominal: float, harm: float, rng: np.random.Generator) -> list[dict[str, object]]:
    result = []
    for block in range(blocks):
        for i, (kind, weights) in enumerate(KINDS.items()):
            shape = 0.6 + 1.2 * math.exp(-block / 2) + 0.8 * (block / blocks) ** 3
            error = 0.16 * harm * shape * (1.6 if i == 3 else 0.5 + 0.15 * i) * math.exp(0.12 * rng.standard_normal())
            result.append(
                {"layer": f"model.layers.{block}.{kind}", "block": block, "kind": kind, "weights": weights}
                | {"sparsity": nominal, "layer_error": min(error, 0.95)}
            )
    return result


def _evaluation(path: Path, losses: Any, sparsity: float, layers: list[dict[str, object]], method: str = "") -> None:
    values = [float(loss) for loss in losses]
    mean = math.fsum(values) / len(values)
    errors = [float(str(layer["layer_error"])) for layer in layers]
    metrics = {
        "perplexity": math.exp(mean),
        "sparsity": sparsity,
        "layer_error": sum(errors) / len(errors) if errors else 0.0,
        "loss": mean,
        "windows": len(values),
        "tokens": len(values) * 512,
        "seqlen": 512,
        "bytes": {"stored": 269_000_000},
    }
    provenance = {"evaluation_hash": "c0ffee12", "method": method}
    put(path.with_name(path.name + ".json"), metrics)
    details = {"layers": layers, "window_losses": values, "layer_error_from": "gram", "provenance": provenance}
    put(path.with_name(path.name + ".layers.json"), details)
