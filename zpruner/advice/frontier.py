"""The offers that no other one beats."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zpruner.advice.offer import Offer


def frontier(offers: Iterable[Offer], cost: Callable[[Offer], float | None]) -> tuple[Offer, ...]:
    """Return the Pareto-optimal offers, the cheapest first: no other has a lower perplexity at no higher a cost.

    Of offers equal in both, the first stays. One that no longer predicts is not among them.

    Args:
        offers: any number.
        cost: what is to be small, as bytes are; None leaves an offer out.
    """
    useful = [offer for offer in offers if offer.predicts]
    priced = [(price, offer.perplexity, offer) for offer in useful if (price := cost(offer)) is not None]
    found: list[Offer] = []
    for _, perplexity, offer in sorted(priced, key=lambda entry: entry[:2]):
        if not found or perplexity < found[-1].perplexity:
            found.append(offer)
    return tuple(found)


def dominates(one: Offer, other: Offer) -> bool:
    """Return whether an offer predicts no worse and takes no more bytes, one of them truly better."""
    no_worse = one.perplexity <= other.perplexity and one.disk <= other.disk
    return no_worse and (one.perplexity, one.disk) != (other.perplexity, other.disk)
