"""What evaluations have besides perplexity, added to a synthetic data folder."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from report_tree import METHODS, SPARSITIES, cost, edit, make_tree

STORED, TABLES = 269_000_000, 57_000_000
TASKS = {"hellaswag_local": ("acc", "acc_norm"), "boolq": ("acc",)}


def make_full_tree(root: Path) -> Path:
    """Write `root`/data with sizes, speeds, divergences, zero-shot scores, mask samples and histograms."""
    data, rng = make_tree(root), np.random.default_rng(11)
    edit(
        data / "evaluation/dense.json", bytes={"stored": STORED, "read": STORED - TABLES}, zero_shot=zero_shot(0.0, 0.0)
    )
    edit(data / "evaluation/dense.layers.json", sample={"text": ["the", " <b>"], "choices": ["the", " dog"]})
    ranks = {method: rng.random(4096) for method in METHODS}
    shared = rng.random(4096)
    for i, method in enumerate(METHODS):
        for label, pattern in SPARSITIES.items():
            path = data / "evaluation" / method / f"{label}.json"
            sparsity = json.loads(path.read_text())["sparsity"]
            sizes = {"stored": STORED, "read": STORED - TABLES, "bitmask": round(STORED * (1.0625 - sparsity))}
            sizes |= {"packed": round(STORED * 0.5625)} if ":" in pattern else {}
            harm = 0.02 * (4 - i)
            edit(
                path,
                bytes=sizes,
                divergence={
                    "kl": 0.1 + harm,
                    "kl_interval": {"low": 0.09 + harm, "high": 0.12 + harm},
                    "top1_agreement": 0.8 - harm,
                    "top1_agreement_interval": {"low": 0.77 - harm, "high": 0.83 - harm},
                    "windows": 8,
                },
                zero_shot=zero_shot(sparsity, harm),
            )
            keep = 0.3 * ranks[method] + 0.7 * shared
            edit(
                path.with_name(f"{label}.layers.json"),
                sample={"text": ["the", " <b>"], "choices": ["a" if harm > 0.03 else "the", "\n"]},
                mask_sample=base64.b64encode(np.packbits(keep > np.quantile(keep, sparsity)).tobytes()).decode(),
                score_histograms=[
                    histogram(f"model.layers.2.{kind}") for kind in ("self_attn.q_proj", "mlp.down_proj")
                ],
            )
            edit(
                data / "costs/evaluate" / method / f"{label}.json",
                tokens_per_second=1650.0 + 10 * i,
                dense_tokens_per_second=1648.0,
                device="cpu",
                threads=2,
                speed_tokens=4096,
            )
    put_packed(data, "zpruner/s50", 150_000_000, 1.4)
    put_packed(data, "zpruner/s60", 130_000_000, 1.75)
    return data


def put_packed(data: Path, variant: str, size: int, gain: float) -> None:
    """What packing and its bench leave: `gain` times torch, in every round."""
    torch_decode, torch_prefill = [20.0, 22.0, 30.0], [900.0, 1000.0, 950.0]
    speed = {
        "kernels": "avx512, two instructions per word",
        "threads": 2,
        "decode": [gain * value for value in torch_decode],
        "control_decode": [1.25 * value for value in torch_decode],
        "torch_decode": torch_decode,
        "prefill": [0.9 * value for value in torch_prefill],
        "control_prefill": torch_prefill,
        "torch_prefill": torch_prefill,
    }
    cost(data, f"pack/{variant}", "pack", 5.0)
    edit(data / f"costs/pack/{variant}.json", packed={"dense": STORED, "packed": size, "speed": speed})


def zero_shot(sparsity: float, harm: float) -> dict[str, Any]:
    scores = {
        task: {
            **dict.fromkeys(metrics, 0.42 - harm),
            **{f"{metric}_stderr": 0.0156 for metric in metrics},
            "version": 1.0,
            "samples": 1000,
            "num_fewshot": 0,
        }
        for task, metrics in TASKS.items()
    }
    return {"sparsity": sparsity, "tasks": scores}


def histogram(layer: str) -> dict[str, Any]:
    edges = np.linspace(-4.3, 1.2, 49)
    counts = [round(9000 * math.exp(-((x + 1.2) ** 2))) for x in edges[:-1]]
    kept = [count if edge > -1.2 else 0 for edge, count in zip(edges[:-1], counts, strict=True)]
    pruned = [count - k for count, k in zip(counts, kept, strict=True)]
    return {"layer": layer, "edges": edges.tolist(), "kept": kept, "pruned": pruned}
