"""What the offers say, in sentences: three questions answered, and whether pruning is worth it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zpruner.advice import Answer, Offer, best, fastest, smallest
from zpruner.advice.frontier import dominates
from zpruner.errors import InvalidSettingError
from zpruner.evaluate.intervals import ratio_interval
from zpruner.report import format as fmt

INCREASE, SHARE = 0.1, 0.7
"""How much the perplexity may rise, and how much of the dense model's bytes may be taken, unless a reader says."""
_NAMED = 3


@dataclass(frozen=True)
class Limits:
    """What a reader accepts: a perplexity at most, and bytes on disk at most."""

    perplexity: float
    disk: int

    @classmethod
    def beside(cls, dense: Offer, perplexity: float | None, increase: float | None, megabytes: float | None) -> Limits:
        """Return the limits given, the others relative to the dense model.

        Raises:
            InvalidSettingError: a perplexity and an increase.
        """
        if perplexity is not None and increase is not None:
            raise InvalidSettingError("advise", "--perplexity and --increase", "one of them", "Leave one out.")
        ceiling = dense.perplexity * (1 + (INCREASE if increase is None else increase))
        return cls(
            ceiling if perplexity is None else perplexity,
            round(dense.disk * SHARE if megabytes is None else megabytes * 1e6),
        )


@dataclass(frozen=True)
class Advice:
    """Everything that follows from the offers.

    Attributes:
        offers: the dense model first.
        limits: what the answers keep to.
        answers: question -> answer.
        words: question -> answer, in words.
        verdict: whether pruning is worth it, in words.
    """

    offers: tuple[Offer, ...]
    limits: Limits
    answers: dict[str, Answer]
    words: dict[str, str]
    verdict: str


def advise(
    offers: Sequence[Offer],
    *,
    perplexity: float | None = None,
    increase: float | None = None,
    megabytes: float | None = None,
) -> Advice:
    """Answer the three questions from the dense model and the offers that still predict.

    Args:
        offers: the dense model first.
        perplexity: that must not be exceeded.
        increase: over dense that must not be exceeded, instead: 0.1 for 10 %.
        megabytes: on disk that must not be exceeded.

    Raises:
        InvalidSettingError: a perplexity and an increase.
    """
    dense, useful = offers[0], [offer for offer in offers if offer.predicts or offer.is_dense]
    limits = Limits.beside(dense, perplexity, increase, megabytes)
    answers = {
        "smallest": smallest(useful, limits.perplexity),
        "best": best(useful, limits.disk),
        "fastest": fastest(useful, limits.perplexity),
    }
    quality = f"no worse than {fmt.perplexity(limits.perplexity)} ({_change(limits.perplexity, dense)})"
    words = {
        f"Smallest at {quality}": _smallest(answers["smallest"], dense),
        f"Best at no more than {fmt.megabytes(limits.disk)} MB": _best(answers["best"], useful),
        f"Fastest at {quality}": _fastest(answers["fastest"], useful),
    }
    return Advice(tuple(offers), limits, answers, words, _verdict(useful))


def _smallest(answer: Answer, dense: Offer) -> str:
    winner = answer.winner
    if winner is None:
        return _nothing(answer, dense)
    if winner.is_dense:
        return f"only the dense model, {_mb(dense)}.{_nearest(answer, dense)}"
    return f"{_named(winner, dense)}.{_beyond(answer, winner, dense)}{_other_camp(answer, 'smallest', dense)}"


def _best(answer: Answer, offers: Sequence[Offer]) -> str:
    dense, winner = offers[0], answer.winner
    if winner is None:
        least = min(offers, key=lambda offer: offer.disk)
        return f"nothing; the smallest is {_named(least, dense)}."
    other = answer.unpruned if winner.pruned else answer.pruned
    return f"{_named(winner, dense)}.{_other_camp(answer, 'best', dense)}{_told_apart(winner, other)}"


def _fastest(answer: Answer, offers: Sequence[Offer]) -> str:
    dense, winner = offers[0], answer.winner
    if all(offer.decode is None for offer in offers):
        return "unknown: no decode speed was measured (packed.rounds in params.yaml)."
    if winner is None:
        return _nothing(answer, dense)
    if winner.is_dense:
        return f"only the dense model.{_nearest(answer, dense)}"
    assert winner.decode is not None
    words = f"{_named(winner, dense)}: {winner.decode.tokens_per_second:.1f} tokens/s, {winner.decode.over_dense:.2f} x"
    words += " dense by torch"
    if winner.decode.over_control is not None:
        words += f" and {winner.decode.over_control:.2f} x the same weights with their zeros by the same kernels"
    return f"{words}.{_beyond(answer, winner, dense)}{_other_camp(answer, 'fastest', dense)}"


def _verdict(offers: Sequence[Offer]) -> str:
    dense = offers[0]
    pruned = [offer for offer in offers if offer.pruned and offer.disk < dense.disk]
    plain = [offer for offer in offers if not offer.pruned and not offer.is_dense]
    if not pruned:
        return "No pruned variant that still predicts takes fewer bytes than the dense model."
    if not plain:
        least = min(pruned, key=lambda offer: offer.perplexity)
        return (
            f"Of the pruned variants {least.label} loses least: {_change(least.perplexity, dense)} at "
            f"{least.disk / dense.disk:.2f} x the bytes. Whether plain quantisation is better here is unknown: no "
            "quantised dense model was evaluated. At equal bytes 4-bit values usually lose less."
        )
    unbeaten = [offer for offer in pruned if not any(dominates(other, offer) for other in plain)]
    if not unbeaten:
        lead = min(pruned, key=lambda offer: offer.perplexity)
        winner = min((o for o in plain if dominates(o, lead)), key=lambda o: o.disk)
        return (
            f"Plain {winner.kind} is better here than pruning: {winner.label} takes {_mb(winner)} at "
            f"{fmt.perplexity(winner.perplexity)}, where {lead.label} takes {_mb(lead)} at "
            f"{fmt.perplexity(lead.perplexity)}, and an unpruned model beats every pruned one in bytes and perplexity."
        )
    names = ", ".join(f"{o.label} ({_mb(o)}, {fmt.perplexity(o.perplexity)})" for o in unbeaten[:_NAMED])
    names += f" and {len(unbeaten) - _NAMED} more" if len(unbeaten) > _NAMED else ""
    beaten = len(pruned) - len(unbeaten)
    words = (
        f"No plain quantised model is as small and as good as {names}: there pruning gives what quantising does not."
    )
    return words + (f" The other {beaten} pruned are beaten by plain quantisation." if beaten else "")


def _named(offer: Offer, dense: Offer) -> str:
    form = f" {offer.form}" if offer.form != "plain" else ""
    computed = ", computed" if offer.computed else ""
    at = f"perplexity {fmt.perplexity(offer.perplexity)}, {_change(offer.perplexity, dense)}"
    return f"{offer.label}{form} ({_mb(offer)}{computed}, {offer.disk / dense.disk:.2f} x dense; {at})"


def _mb(offer: Offer) -> str:
    return f"{fmt.megabytes(offer.disk)} MB"


def _change(perplexity: float, dense: Offer) -> str:
    return fmt.change(perplexity / dense.perplexity)


def _nothing(answer: Answer, dense: Offer) -> str:
    return f"nothing, not even the dense model ({fmt.perplexity(dense.perplexity)}).{_nearest(answer, dense)}"


def _nearest(answer: Answer, dense: Offer) -> str:
    return f" Nearest is {_named(answer.nearest, dense)}." if answer.nearest is not None else ""


def _beyond(answer: Answer, winner: Offer, dense: Offer) -> str:
    """Say where the noise reaches beyond the limit."""
    noise = ratio_interval(winner.losses, dense.losses)
    if noise is None or noise.high * dense.perplexity <= answer.limit:
        return ""
    return f" On {len(winner.losses)} windows its perplexity is known to {fmt.interval(noise, fmt.change)} only."


def _other_camp(answer: Answer, order: str, dense: Offer) -> str:
    """Set pruning against plain quantisation."""
    winner = answer.winner
    if winner is None or winner.is_dense:
        return ""
    if winner.pruned:
        other = answer.unpruned
        return "" if other is None else f" The {order} unpruned one is {_named(other, dense)}."
    words = f" Plain {winner.kind} is better here than pruning:"
    if answer.pruned is None:
        return f"{words} no pruned variant keeps within the limit."
    return f"{words} the {order} pruned one is {_named(answer.pruned, dense)}."


def _told_apart(winner: Offer, other: Offer | None) -> str:
    if other is None:
        return ""
    noise = ratio_interval(other.losses, winner.losses)
    if noise is None or noise.low > 1:
        return ""
    return f" {len(winner.losses)} windows are too few to tell the two apart."
