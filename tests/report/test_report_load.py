"""The files are read strictly, and only those of the variants listed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from report_tree import METHODS, SPARSITIES, edit, make_tree, read

from zpruner.errors import ArtifactError
from zpruner.report import render_table, write

ONE = {"wanda": METHODS["wanda"]}
HALF = {"s50": "0.5"}
METRICS = "evaluation/wanda/s50.json"
LAYERS = "evaluation/wanda/s50.layers.json"


def test_every_listed_variant_in_grid_order(tmp_path: Path) -> None:
    data = read(make_tree(tmp_path))
    assert [v.spec.name for v in data.variants] == [f"{m}-{s}" for m in METHODS for s in SPARSITIES]
    assert data.variants[0].details.layers[0].kind == "self_attn.q_proj"
    assert data.folder == "data"


def test_seconds_count_score_mask_and_apply_but_not_evaluate(tmp_path: Path) -> None:
    variant = read(make_tree(tmp_path, ONE, HALF), ONE, HALF).variants[0]
    assert variant.seconds == pytest.approx(0.9 + 0.22 + 1.21 + 3.4)
    assert [cost.stage for cost in variant.costs] == ["score", "mask", "apply", "evaluate"]


def test_removed_variant_is_not_looked_at(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tree / "evaluation/ria/s60.json").write_text("{broken")
    kept = {name: settings for name, settings in METHODS.items() if name != "ria"}
    data = read(tree, kept)
    write(data, tmp_path / "out")
    assert not re.search(r"\bria\b", render_table(data, width=80, color=False))
    for name in ("report.html", "report.md", "plots/perplexity.json", "plots/layers.json"):
        assert not re.search(r"\bria\b", (tmp_path / "out" / name).read_text())


@pytest.mark.parametrize(
    "name",
    [
        METRICS,
        LAYERS,
        "evaluation/dense.json",
        "evaluation/dense.layers.json",
        "costs/mask/wanda/s50.json",
        "costs/score/wanda.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "list", "binary"])
def test_unreadable_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    tree = make_tree(tmp_path, ONE, HALF)
    path = tree / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.write_bytes(b"[1, 2]" if damage == "list" else b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="`dvc repro evaluate") as caught:
        read(tree, ONE, HALF)
    expected = str(path) if name != "costs/score/wanda.json" or damage != "missing" else "costs/score/wanda"
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (METRICS, {"sparsity": 1.5}, "got 1.5 under 'sparsity', expected less than or equal to 1"),
        (LAYERS, {"window_losses": [3.0]}, "got 1 window losses, expected 16"),
        (LAYERS, {"layer_error_from": "guess"}, "'gram' or 'diagonal'"),
        (LAYERS, {"provenance": {"a": [1]}}, r"got \[1\] under 'provenance.a'"),
        (LAYERS, {"layers": [{"layer": "x", "block": 0, "kind": "y", "weights": 4}]}, r"layers\[0\]\.sparsity"),
        ("costs/mask/wanda/s50.json", {"tokens_per_second": "fast"}, "got 'fast' under 'tokens_per_second'"),
    ],
)
def test_wrong_value_is_named(tmp_path: Path, file: str, change: dict[str, object], message: str) -> None:
    tree = make_tree(tmp_path, ONE, HALF)
    edit(tree / file, **change)
    with pytest.raises(ArtifactError, match=message):
        read(tree, ONE, HALF)


@pytest.mark.parametrize(("key", "value"), [("tokens", 99), ("seqlen", 128)])
def test_variant_evaluated_on_other_text_cannot_be_compared(tmp_path: Path, key: str, value: int) -> None:
    tree = make_tree(tmp_path, ONE, HALF)
    edit(tree / METRICS, **{key: value})
    with pytest.raises(ArtifactError, match="other text cannot be compared"):
        read(tree, ONE, HALF)


def test_a_variant_measured_on_other_tokens_of_the_same_number_cannot_be_compared(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, ONE, HALF)
    edit(tree / LAYERS, provenance={"evaluation_hash": "badcafe0"})
    with pytest.raises(
        ArtifactError, match=r"s50\.layers\.json: got evaluation_hash badcafe0, expected c0ffee12"
    ) as error:
        read(tree, ONE, HALF)
    assert "other text cannot be compared" in str(error.value)


def test_nan_and_infinity_are_read(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, ONE, {"s50": "0.5", "s60": "0.6"})
    edit(tree / METRICS, perplexity=math.inf, loss=math.inf)
    edit(tree / "evaluation/wanda/s60.json", perplexity=math.nan, loss=math.nan)
    first, second = read(tree, ONE, {"s50": "0.5", "s60": "0.6"}).variants
    assert math.isinf(first.evaluation.metrics.perplexity)
    assert math.isnan(second.evaluation.metrics.perplexity)
