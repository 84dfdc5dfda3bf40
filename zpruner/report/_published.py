"""Published perplexities, for comparison where model, pattern and protocol are the same.

WikiText-2 test split, whole, 50 % unstructured. Sources: Wanda (arXiv 2306.11695), SparseGPT (arXiv 2301.00774), RIA
(ICLR 2024) and Z-Pruner (arXiv 2508.15828), as tabulated in the last of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from zpruner.report import _format as fmt
from zpruner.report.data import ReportData

_MODELS = ("opt-1.3b", "opt-2.7b", "opt-6.7b", "llama-2-7b", "llama-2-13b", "llama-3.1-8b")
_PERPLEXITY = {
    "wanda": (18.41, 14.22, 15.21, 7.76, 6.29, 11.53),
    "sparsegpt": (17.55, 13.46, 11.62, 7.01, 6.03, 9.86),
    "ria": (18.08, 14.20, 11.83, 6.81, 5.83, 9.44),
    "zpruner": (17.74, 13.92, 11.60, 6.74, 5.82, 9.37),
}

_GROUP = {"wanda": "row", "ria": "layer", "zpruner": "layer"}
"""Comparison group of each published method; SparseGPT has blocks of its own."""


@dataclass(frozen=True)
class PublishedRow:
    """Our perplexity beside the published one, and our deviation from it."""

    method: str
    ours: str
    published: str
    change: str


@dataclass(frozen=True)
class Published:
    """Rows, and in words what is compared; or, without rows, why nothing is."""

    rows: tuple[PublishedRow, ...]
    note: str


def published(data: ReportData) -> Published:
    """Return the comparison for the model of the report."""
    protocol = data.dense.details.provenance.get("evaluation_protocol")
    if protocol != "wikitext2":
        return Published(
            (), "Published tables are on WikiText-2's whole test split: set protocol: wikitext2 to compare."
        )
    source = str(data.model.get("source") or "").lower().split("@")[0]
    name = re.sub(r"-hf$|^meta-", "", source.rstrip("/").rsplit("/", 1)[-1])
    column = next((i for i, known in enumerate(_MODELS) if name == known), None)
    if column is None:
        return Published((), "No published perplexity of this model is known to this report.")
    rows = []
    for variant in data.variants:
        score = _as_published(data.methods.get(variant.spec.method, {}))
        if score in _PERPLEXITY and variant.spec.pattern == "0.5":
            reference, ours = _PERPLEXITY[score][column], variant.evaluation.metrics.perplexity
            rows.append(
                PublishedRow(
                    variant.spec.method, fmt.perplexity(ours), fmt.perplexity(reference), fmt.change(ours / reference)
                )
            )
    seqlen = fmt.count(data.dense.metrics.seqlen)
    note = (
        f"WikiText-2 test split, 50 % unstructured, windows of {seqlen} tokens here (published: 2,048; 4,096 for "
        "Llama-2 in Wanda's paper). The papers calibrate on 128 windows of C4 with earlier blocks already pruned."
    )
    return Published(tuple(rows), note) if rows else Published((), "No variant at 50 % unstructured to compare.")


def _as_published(settings: Mapping[str, object]) -> str:
    """Return the score of a composition that is the paper's own, empty for any other."""
    score = str(settings.get("score", ""))
    update = settings.get("update")
    name = update.get("name") if isinstance(update, Mapping) else update
    changed = any(settings.get(key) for key in ("settings", "refine", "allocate"))
    group = settings.get("group") or _GROUP.get(score)
    expected = "obs" if score == "sparsegpt" else None
    return "" if changed or name != expected or group != _GROUP.get(score) else score
