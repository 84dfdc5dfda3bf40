"""Whether a pruned model still predicts, in one sentence where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence

_FAR = math.log(10.0)
"""Nats per token: a model ten times as perplexed, which no method that is worth a comparison leaves."""


def verdict(losses: Sequence[float], kl: Sequence[float], vocab_size: int) -> str | None:
    """Return what is out of all range in the losses of a pruned model; None: nothing.

    Args:
        losses: mean negative log-likelihood of every window, in nats.
        kl: mean KL divergence per token from the dense model, in nats, of the windows that were compared.
        vocab_size: number of tokens that the model chooses among.
    """
    broken = sum(not math.isfinite(loss) for loss in losses)
    if broken:
        return f"collapsed: the loss is NaN or infinite in {broken} of {len(losses)} windows"
    chance, loss = math.log(vocab_size), sum(losses) / len(losses)
    if loss >= chance:
        return f"collapsed: {loss:.2f} nats per token, where drawing any of {vocab_size:,} tokens costs {chance:.2f}"
    broken = sum(not math.isfinite(value) for value in kl)
    if broken:
        return f"collapsed: the divergence from the dense model is NaN or infinite in {broken} of {len(kl)} windows"
    if kl and (far := sum(kl) / len(kl)) > _FAR:
        return (
            f"out of range: {far:.2f} nats per token from the dense model, more than {_FAR:.2f} (ten times its "
            "perplexity): less sparsity, more calibration tokens or another method"
        )
    return None
