from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from zpruner.formula import parse_formula
from zpruner.methods import METHODS
from zpruner.search import (
    Evaluation,
    best_formulas,
    draw_svg,
    draw_text,
    fitness_curve,
    name_frequencies,
    score_correlations,
)
from zpruner.types import LayerStats


def evaluations() -> list[Evaluation]:
    rows = [("W", 0, 3.0), ("X", 0, 1.0), ("W", 1, 2.5), ("G", 0, 2.0), ("G", 1, None), ("neg(W)", 1, 2.7)]
    rows += [("abs(sub(W, G))", 1, 2.1)]
    return [
        Evaluation(i, 0, rung, 4, text, text, "random", (), fit, 0.1, {}) for i, (text, rung, fit) in enumerate(rows)
    ]


def test_curve_and_best_compare_the_highest_rung_only() -> None:
    assert fitness_curve(evaluations()) == [(3, 2.5), (7, 2.1)]
    assert fitness_curve(evaluations(), 0) == [(1, 3.0), (2, 1.0)]
    assert [e.formula for e in best_formulas(evaluations(), 2)] == ["abs(sub(W, G))", "W"]
    assert not fitness_curve([])
    assert not best_formulas([])


def test_frequencies_count_every_node() -> None:
    counts = name_frequencies([parse_formula("mul(W, sqrt(X))"), parse_formula("mul(W, W)")])
    assert {name: n for name, n in counts.items() if n} == {"W": 3, "X": 1, "sqrt": 1, "mul": 2}
    assert counts["mms"] == 0


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's, each rank counted anew: what is below, and half of what is equal."""
    ranks = [(x.ravel()[:, None] > x.ravel()).sum(1) + (x.ravel()[:, None] == x.ravel()).sum(1) / 2 for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def test_score_correlations_average_over_layers() -> None:
    g = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(2):
        stats = LayerStats("layer", 12, 3, sq_sum=torch.rand(6, generator=g).double() * 9)
        layers.append((torch.randn(5, 6, generator=g), stats))
    known: dict[str, Any] = {name: METHODS.find(name)() for name in ("magnitude", "wanda", "ria")}
    formulas = [parse_formula("mul(sqr(W), X)"), parse_formula("neg(W)")]
    first, second = score_correlations(formulas, known, layers)
    assert first["wanda"] == pytest.approx(1.0)
    assert second["magnitude"] == pytest.approx(-1.0)
    wanda = [weight.abs() * (stats.squared_norm()).sqrt() for weight, stats in layers]
    expected = sum(rank_correlation(s, weight.abs()) for s, (weight, _) in zip(wanda, layers, strict=True)) / 2
    assert first["magnitude"] == pytest.approx(expected)
    assert 0.1 < first["magnitude"] < 0.99
    ria = [known["ria"].score(weight, stats) for weight, stats in layers]
    expected = sum(rank_correlation(r, s) for r, s in zip(ria, wanda, strict=True)) / 2
    assert first["ria"] == pytest.approx(expected)


def test_drawn_as_text() -> None:
    assert draw_text(parse_formula("mul(abs(mul(W, X)), mms(G))")).splitlines() == [
        "mul",
        "├── abs",
        "│   └── mul",
        "│       ├── W",
        "│       └── X",
        "└── mms",
        "    └── G",
    ]


@pytest.mark.parametrize("text", ["W", "mul(abs(mul(W, X)), mms(G))", "neg(neg(neg(X)))"])
def test_drawn_as_svg(text: str) -> None:
    tree = parse_formula(text)
    svg = draw_svg(tree)
    assert svg == draw_svg(parse_formula(text))
    root = ElementTree.fromstring(svg)
    ns = "{http://www.w3.org/2000/svg}"
    assert [t.text for t in root.iter(f"{ns}text")] == [node.name for node in tree.walk()]
    assert len(list(root.iter(f"{ns}line"))) == tree.size - 1
    spots = {(c.get("cx"), c.get("cy")) for c in root.iter(f"{ns}circle")}
    assert len(spots) == tree.size
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    for x, y in spots:
        assert 20 <= float(x or 0) <= width - 20
        assert 20 <= float(y or 0) <= height - 20
