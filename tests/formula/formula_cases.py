"""Formulas and a layer to score."""

import torch
from hypothesis import strategies as st

from zpruner.formula import (
    BINARY,
    UNARY,
    Tree,
)
from zpruner.types import LayerStats

PUBLISHED = {
    "data": "mul",
    "left": {"data": "abs", "left": {"data": "mul", "left": {"data": "W"}, "right": {"data": "W"}}},
    "right": {"data": "mms", "left": {"data": "G"}},
}


TREES = st.recursive(
    st.sampled_from([Tree("W"), Tree("X"), Tree("G")]),
    lambda inner: (
        st.builds(lambda name, a: Tree(name, (a,)), st.sampled_from(UNARY), inner)
        | st.builds(lambda name, a, b: Tree(name, (a, b)), st.sampled_from(BINARY), inner, inner)
    ),
    max_leaves=6,
)


def layer(out: int = 5, width: int = 7, seed: int = 0) -> tuple[torch.Tensor, LayerStats]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=g)
    sq_sum = torch.rand(width, generator=g) * 6
    grad_sq = torch.rand(out, width, generator=g) * 1e-4
    return weight, LayerStats("blocks.0.up", tokens=30, windows=3, sq_sum=sq_sum, grad_sq=grad_sq)
