"""How far a pruned model's predictions are from the dense model's, token by token, and how fast both are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from zpruner.errors import ShapeMismatchError
from zpruner.evaluate.perplexity import POSITIONS, counted_positions, first_choices, token_losses
from zpruner.evaluate.predict import Logits, Predictor


@dataclass(frozen=True)
class Comparison:
    """A pruned model against the dense one on a few windows; each list has one number per window.

    Attributes:
        losses: the pruned model's mean negative log-likelihood, as `window_losses` gives it.
        kl: KL(dense || pruned) in nats, the mean over the predicted tokens that count.
        agreement: share of these tokens for which both models rank the same token first.
        seconds: of the pruned model's forward passes.
        dense_seconds: of the dense model's.
        choices: the pruned model's `first_choices`.
    """

    losses: list[float]
    kl: list[float]
    agreement: list[float]
    seconds: float
    dense_seconds: float
    choices: list[int]


def compare_batches(
    model: Predictor, dense: Predictor, batches: Sequence[Tensor], stride: int | None = None
) -> Iterator[Comparison]:
    """Yield the comparison of every batch. Models in memory are run in turns, batch by batch.

    Where weights are read block by block, the seconds include that.

    Args:
        model: the pruned model.
        dense: the unpruned one, on the same device.
        batches: token ids, int (windows, seqlen) each: one pass of each model's decoder.
        stride: as in `window_losses`.

    Raises:
        ShapeMismatchError: the models have different vocabularies.
    """
    references = dense.run(batches, lambda _, logits: logits)
    if dense.runner.streamed:
        references = iter(list(references))

    def compared(index: int, logits: Logits) -> Comparison:
        reference = next(references)
        losses, kl, agreement = [], [], []
        counted = counted_positions(batches[index].shape[1], stride)
        for window, targets in enumerate(batches[index][:, 1:]):
            loss, divergence, same = 0.0, 0.0, 0
            for at in logits.spans(counted):
                rows, others = logits.rows(window, at), reference.rows(window, at)
                loss += token_losses(rows, targets[at])
                divergence += _divergence(rows, others)
                same += int((rows.argmax(dim=-1) == others.argmax(dim=-1)).sum())
            tokens = counted.stop - counted.start
            losses.append(loss / tokens)
            kl.append(divergence / tokens)
            agreement.append(same / tokens)
        choices = first_choices(logits, batches[index])
        return Comparison(losses, kl, agreement, logits.seconds, reference.seconds, choices)

    yield from model.run(batches, compared)


def _divergence(logits: Tensor, reference: Tensor) -> float:
    """Return the sum of KL(reference || logits) over positions, float (positions, vocabulary)."""
    if logits.shape != reference.shape:
        raise ShapeMismatchError(
            "divergence",
            f"logits of shape {tuple(logits.shape)} and {tuple(reference.shape)}",
            "one vocabulary",
            "Compare a pruned model with the dense model that it was made from.",
        )
    total = 0.0
    for row, other in zip(logits.split(POSITIONS), reference.split(POSITIONS), strict=True):
        log_q, log_p = log_softmax(row.float(), dim=-1), log_softmax(other.float(), dim=-1)
        total += float(kl_div(log_q, log_p, reduction="sum", log_target=True))
    return total
