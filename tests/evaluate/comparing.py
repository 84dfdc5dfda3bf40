"""Two models in memory, compared on one batch of windows."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from zpruner.evaluate import Comparison, Predictor, compare_batches


def compare(model: PreTrainedModel, dense: PreTrainedModel, windows: Tensor, stride: int | None = None) -> Comparison:
    with Predictor(model) as ours, Predictor(dense) as reference:
        return next(compare_batches(ours, reference, [windows], stride))
