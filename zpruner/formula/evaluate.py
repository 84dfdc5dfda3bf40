"""The value of a formula on tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from zpruner.errors import ShapeMismatchError
from zpruner.formula.tree import Tree
from zpruner.types import LayerStats, Stat

GRADIENT_SCALE = 100.0
"""The paper multiplies the loss by this, against underflow in float16; log, exp and tanh depend on it."""
LOG_OFFSET = 0.001
EXP_LIMIT = 100.0

STATISTIC: dict[str, Stat] = {"X": Stat.SQ_SUM, "G": Stat.GRAD_SQ}
"""Which calibration statistic a terminal needs; W needs none."""


def formula_operands(tree: Tree, weight: Tensor, stats: LayerStats) -> dict[str, Tensor]:
    """Return what the terminals of `tree` stand for.

    Args:
        tree: the formula.
        weight: float32 (out, in).
        stats: calibration statistics of the layer.

    Returns:
        Of W, X and G those that the formula mentions: W = abs(weight), float32 (out, in); X = a_j, the squared
        input norm per window (not its root), float32 (in,); G = 100 * sqrt(grad_sq), float32 (out, in).

    Raises:
        MissingStatisticError: X without sq_sum, G without grad_sq.
        ShapeMismatchError: statistics that do not fit the weight.
    """
    values: dict[str, Tensor] = {}
    mentioned = tree.terminals()
    if "W" in mentioned:
        values["W"] = weight.detach().float().abs()
    if "X" in mentioned:
        values["X"] = _fitting(stats, Stat.SQ_SUM, statistic("X", stats), weight.shape[1:])
    if "G" in mentioned:
        values["G"] = _fitting(stats, Stat.GRAD_SQ, statistic("G", stats), weight.shape)
    return values


def statistic(terminal: str, stats: LayerStats) -> Tensor:
    """Return what X or G stands for, see `formula_operands`.

    Raises:
        MissingStatisticError: its statistic was not collected.
    """
    if terminal == "X":
        return stats.squared_norm()
    return stats.require(STATISTIC[terminal]).float().sqrt().mul_(GRADIENT_SCALE)


def formula_score(tree: Tree, weight: Tensor, stats: LayerStats) -> Tensor:
    """Return the importance of every weight: float32 (out, in), larger = keep; NaN or infinity is not refused.

    Raises:
        MissingStatisticError: as `formula_operands`.
        ShapeMismatchError: as `formula_operands`.
    """
    values = evaluate_formula(tree, formula_operands(tree, weight, stats))
    return values.expand(weight.shape).contiguous()


def evaluate_formula(tree: Tree, operands: Mapping[str, Tensor]) -> Tensor:
    """Return the value of `tree`; each distinct subexpression is computed once, and temporaries are reused.

    Operators as published: `log` = log(abs(x) + 0.001), `sqrt` = sqrt(abs(x)), `exp` = exp(min(x, 100)), which is
    infinite in float32 above 88.7; `sqr` and `pow` = x^2; `skp` = x. `mms` (scaled to [0, 1]) and `zsn` (mean 0,
    unbiased std 1) work on the whole of their operand: the row vector for one that depends on X alone. Unlike the
    published code they give 0, not NaN, for a constant operand. `div(x, y)` broadcasts both, then divides x by the
    Frobenius norm of y; a norm that is 0 or not finite gives NaN.

    Args:
        tree: the formula.
        operands: the terminals' float32 values, W and G (out, in), X (in,); never written to.

    Returns:
        float32 (out, in), or (in,) for a formula of X alone; may be NaN or infinite. A bare terminal gives the
        operand itself.
    """
    tree = _without_skp(tree)
    uses = Counter(child for node in set(tree.walk()) for child in node.children)
    values: dict[Tree, Tensor] = {}

    def value(node: Tree) -> Tensor:
        if not node.children:
            return operands[node.name]
        if node not in values:
            # Arguments first: computing one may not overwrite another, so nothing is freed until all are there.
            arguments = [value(child) for child in node.children]
            uses.subtract(node.children)
            spent = [c for c in dict.fromkeys(node.children) if c.children and not uses[c]]
            shape = torch.broadcast_shapes(*(a.shape for a in arguments))
            out = next((values[c] for c in spent if values[c].shape == shape), None)
            values[node] = _OPERATORS[node.name](arguments, out)
            for child in spent:
                del values[child]
        return values[node]

    with torch.no_grad():
        return value(tree)


def _without_skp(tree: Tree) -> Tree:
    if tree.name == "skp":
        return _without_skp(tree.children[0])
    return Tree(tree.name, tuple(map(_without_skp, tree.children))) if tree.children else tree


def _fitting(stats: LayerStats, stat: Stat, value: Tensor, shape: torch.Size) -> Tensor:
    if value.shape != shape:
        raise ShapeMismatchError(
            f"layer {stats.layer}",
            f"{stat.value} of shape {tuple(value.shape)}",
            f"{tuple(shape)}, as the weight's",
            "Collect the statistics from this model.",
        )
    return value


def _square(args: list[Tensor], out: Tensor | None) -> Tensor:
    return torch.mul(args[0], args[0], out=out)


def _log(args: list[Tensor], out: Tensor | None) -> Tensor:
    return torch.abs(args[0], out=out).add_(LOG_OFFSET).log_()


def _exp(args: list[Tensor], out: Tensor | None) -> Tensor:
    return torch.clamp(args[0], max=EXP_LIMIT, out=out).exp_()


def _sqrt(args: list[Tensor], out: Tensor | None) -> Tensor:
    return torch.abs(args[0], out=out).sqrt_()


def _min_max(args: list[Tensor], out: Tensor | None) -> Tensor:
    low, high = torch.aminmax(args[0])
    span = torch.where(high == low, 1.0, high - low)
    return torch.sub(args[0], low, out=out).div_(span)


def _z_score(args: list[Tensor], out: Tensor | None) -> Tensor:
    low, high = torch.aminmax(args[0])
    constant = high == low
    # The rounded mean of equal values need not be that value: subtract the value itself.
    centred = torch.sub(args[0], torch.where(constant, low, args[0].mean()), out=out)
    # Twenty times faster than torch.std, and a second pass over the deviations is as accurate.
    std = torch.linalg.vector_norm(centred) / max(args[0].numel() - 1, 1) ** 0.5
    return centred.div_(torch.where(constant, 1.0, std))


def _divide(args: list[Tensor], out: Tensor | None) -> Tensor:
    x, y = torch.broadcast_tensors(*args)
    norm = torch.linalg.vector_norm(args[1]) * (y.numel() / args[1].numel()) ** 0.5
    norm = torch.where((norm > 0) & norm.isfinite(), norm, torch.nan)
    return torch.div(x, norm, out=out)


_OPERATORS: dict[str, Callable[[list[Tensor], Tensor | None], Tensor]] = {
    "sqr": _square,
    "pow": _square,
    "neg": lambda args, out: torch.neg(args[0], out=out),
    "abs": lambda args, out: torch.abs(args[0], out=out),
    "log": _log,
    "exp": _exp,
    "sqrt": _sqrt,
    "tanh": lambda args, out: torch.tanh(args[0], out=out),
    "mms": _min_max,
    "zsn": _z_score,
    "add": lambda args, out: torch.add(args[0], args[1], out=out),
    "sub": lambda args, out: torch.sub(args[0], args[1], out=out),
    "mul": lambda args, out: torch.mul(args[0], args[1], out=out),
    "div": _divide,
}
