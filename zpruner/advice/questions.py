"""Three questions of those who ship a model, answered by the offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zpruner.advice.offer import Offer

Order = Callable[[Offer], tuple[float, float]]


@dataclass(frozen=True)
class Answer:
    """What an answer rests on.

    Attributes:
        limit: the perplexity, or the bytes, that must not be exceeded.
        winner: None where nothing keeps within the limit.
        pruned: the best offer that was pruned.
        unpruned: the best one that was compressed without pruning.
        nearest: where nothing but the dense model keeps within the limit, what exceeds it least.
    """

    limit: float
    winner: Offer | None
    pruned: Offer | None
    unpruned: Offer | None
    nearest: Offer | None


def smallest(offers: Iterable[Offer], perplexity: float) -> Answer:
    """Answer which offer takes fewest bytes at a perplexity no higher than the given one."""
    return _answer(list(offers), perplexity, lambda o: o.perplexity, lambda o: (o.disk, o.perplexity))


def best(offers: Iterable[Offer], disk: int) -> Answer:
    """Answer which offer predicts best at no more bytes on disk than given."""
    return _answer(list(offers), disk, lambda o: o.disk, lambda o: (o.perplexity, o.disk))


def fastest(offers: Iterable[Offer], perplexity: float) -> Answer:
    """Answer which offer decodes fastest at a perplexity no higher than the given one, of those measured."""
    measured = [offer for offer in offers if offer.decode is not None]
    return _answer(measured, perplexity, lambda o: o.perplexity, lambda o: (-_speed(o), o.perplexity))


def _speed(offer: Offer) -> float:
    return 0.0 if offer.decode is None else offer.decode.over_dense


def _answer(offers: list[Offer], limit: float, held: Callable[[Offer], float], order: Order) -> Answer:
    within = sorted((offer for offer in offers if held(offer) <= limit), key=order)
    compressed = [offer for offer in offers if not offer.is_dense]
    exceeding = [offer for offer in compressed if held(offer) > limit]
    return Answer(
        limit,
        next(iter(within), None),
        next((offer for offer in within if offer.pruned), None),
        next((offer for offer in within if not offer.pruned and not offer.is_dense), None),
        min(exceeding, key=held, default=None),
    )
