"""Tokens drawn from what a model predicts: in float64 on the processor, so that every device draws them alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zpruner.errors import NonFiniteError

Numbers = NDArray[np.float64]


def draw(logits: Tensor, at: Numbers, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Return a token for every row, int64 (rows,), and its loss, float64 (rows,): that of the model as it is.

    Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): of the probabilities at a temperature, the fewest that
    sum to `top_p` or more are kept, largest first, and one of them is taken where their running sum passes `at`.

    Args:
        logits: float (rows, vocabulary).
        at: where in [0, 1) each row's draw falls, float64 (rows,).
        temperature: above 0; the logits are divided by it.
        top_p: in (0, 1]; 1 keeps every token.

    Raises:
        NonFiniteError: a row that has NaN or infinity for its largest logit.
    """
    rows = logits.cpu().double()
    if not bool(torch.isfinite(rows.amax(dim=1)).all()):
        raise NonFiniteError("logits", "NaN or infinity", "finite numbers", "Load the model as float32 or bfloat16.")
    probabilities = torch.softmax(rows / temperature, dim=1).numpy()
    chosen = torch.tensor([_pick(row, share, top_p) for row, share in zip(probabilities, at, strict=True)])
    return chosen, -torch.log_softmax(rows, dim=1).gather(1, chosen[:, None])[:, 0]


def _pick(probabilities: Numbers, at: float, top_p: float) -> int:
    # What is below this sums to less than 1 - top_p, and needs no place in the order.
    found = np.flatnonzero(probabilities >= (1.0 - top_p) / len(probabilities))
    order = found[np.argsort(-probabilities[found], kind="stable")]
    sums = np.cumsum(probabilities[order])
    kept = min(int(np.searchsorted(sums, top_p)) + 1, len(order))
    return int(order[min(int(np.searchsorted(sums[:kept], at * sums[kept - 1], side="right")), kept - 1)])
