"""Offers with numbers that tell the answers apart."""

from __future__ import annotations

import math
from typing import Any

from zpruner.advice import Decode, Offer


def offer(
    label: str, perplexity: float, mb: float, *, pattern: str = "50 %", speed: float = 0.0, **facts: Any
) -> Offer:
    """A pruned variant, unless it says otherwise; `speed` is its decode speed, times dense."""
    loss = math.log(perplexity)
    given: dict[str, Any] = {
        "label": label,
        "variant": label,
        "method": label,
        "pattern": pattern,
        "sparsity": 0.5,
        "bits": None,
        "form": "packed" if pattern else "plain",
        "computed": False,
        "perplexity": perplexity,
        "interval": None,
        "losses": (loss - 0.5, loss, loss + 0.5),
        "disk": round(mb * 1e6),
        "decode": Decode(20.0 * speed, speed, speed / 1.25) if speed else None,
    }
    return Offer(**given | facts)


DENSE = offer("dense", 20.0, 200.0, pattern="", speed=1.0)
PRUNED = (offer("mild", 21.5, 150.0, speed=1.3), offer("half", 26.0, 110.0, speed=1.6), offer("hard", 80.0, 90.0))
PLAIN = (
    offer("dense_int8", 20.1, 105.0, pattern="", bits=8, speed=1.8),
    offer("dense_int4", 22.5, 60.0, pattern="", bits=4),
)
