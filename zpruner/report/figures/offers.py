"""What every model takes to ship: bytes, speed and quality side by side, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

from zpruner.advice import Offer, frontier
from zpruner.report import format as fmt
from zpruner.report.data import ReportData
from zpruner.report.marks import DENSE_SWATCH, swatch_of
from zpruner.report.offers import offers
from zpruner.report.page import Figure, note
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table, escape
from zpruner.report.verdict import advise

PARETO = "Pareto"
"""The mark of a cost at which no other model predicts as well."""
PARETO_WORDS = "no other model has a lower perplexity at that cost or less"
COMPUTED = "~"
COMPUTED_WORDS = "computed by the format's arithmetic from the zeros that were counted; the others were packed"


@dataclass(frozen=True)
class Price:
    """A price of an offer.

    Attributes:
        title: of its column.
        axis: what a chart says below its axis.
        of: the price, small is good; None where it is unknown.
        text: how the price is written below the title.
        counts_bytes: whether it is computed where an offer's bytes are.
    """

    title: str
    axis: str
    of: Callable[[Offer], float | None]
    text: Callable[[float], str]
    counts_bytes: bool = True


def _slowness(offer: Offer) -> float | None:
    return None if offer.decode is None else 1 / offer.decode.over_dense


def _mb(size: float) -> str:
    return fmt.megabytes(round(size * 1e6))


PRICES = (
    Price("MB on disk", "MB on disk", lambda offer: offer.disk / 1e6, _mb),
    Price("MB a token", "MB read per token", lambda offer: None if offer.read is None else offer.read / 1e6, _mb),
    Price("decode, x dense", "decode time, times dense", _slowness, lambda slowness: f"{1 / slowness:.2f}", False),
)


def answers(report: Report) -> Figure | None:
    """Return whether pruning is worth it, and the answers to three questions; None as `figure`."""
    every = offers(report.data)
    if not every:
        return None
    found = advise(every)
    items = Markup().join(
        Markup("<dt>{}</dt><dd>{}</dd>\n").format(fmt.typeset(question), fmt.typeset(answer))
        for question, answer in found.words.items()
    )
    body = Markup('<p class="lead">{}</p>\n<dl class="answers">{}</dl>\n').format(fmt.typeset(found.verdict), items)
    lines = "".join(f"- **{escape(question)}**: {escape(answer)}\n" for question, answer in found.words.items())
    return Figure(body, markdown=f"{escape(found.verdict)}\n\n{lines}")


def figure(report: Report) -> Figure | None:
    """Return the table that the answers rest on; None where the dense model predicts nothing."""
    found = offers(report.data)
    if not found:
        return None
    table = table_of(report, found)
    return Figure(table.html() + note(_note(found, report.data)), markdown=table.markdown())


def table_of(report: Report, found: tuple[Offer, ...]) -> Table:
    """Return one row per offer; where a cost is the least at which so low a perplexity is had, it is marked."""
    specs = {variant.spec.name: variant.spec for variant in report.data.variants}
    costs = [cost for cost in PRICES if any(cost.of(offer) is not None for offer in found)]
    optimal = {cost.title: frontier(found, cost.of) for cost in costs}
    speeds = [offer for offer in found if offer.decode is not None and offer.decode.over_control is not None]
    prefill = any(offer.prefill is not None and not offer.is_dense for offer in found)
    tasks = list(dict.fromkeys(name for offer in found for name in offer.tasks))
    columns = (
        Column("model"),
        Column("as"),
        Column("perplexity", numeric=True),
        Column("change", numeric=True, wide_only=True),
        *(Column(cost.title, numeric=True) for cost in costs),
        *([Column("x its control", numeric=True, wide_only=True)] if speeds else []),
        *([Column("prefill, x dense", numeric=True, wide_only=True)] if prefill else []),
        *(Column(name, numeric=True, wide_only=True) for name in tasks),
    )
    rows = []
    for offer in sorted(found, key=lambda offer: (-offer.disk, offer.perplexity)):
        before = swatch_of(report, specs[offer.variant]) if offer.variant in specs else DENSE_SWATCH
        cells = [
            Cell(offer.label, before=before),
            Cell(offer.form),
            Cell(fmt.perplexity(offer.perplexity), offer.perplexity),
        ]
        change = offer.perplexity / found[0].perplexity
        cells.append(Cell() if offer.is_dense else Cell(fmt.change(change), change))
        cells += [_priced(cost, offer, offer in optimal[cost.title]) for cost in costs]
        cells += [_ratio(None if offer.decode is None else offer.decode.over_control)] if speeds else []
        cells += [_ratio(offer.prefill)] if prefill else []
        cells += [_task(offer, name) for name in tasks]
        rows.append(Row(tuple(cells)))
    return Table("Bytes, speed and perplexity of every model", columns, tuple(rows), "sorted")


def broken_words(found: Iterable[Offer]) -> str:
    """Return which models no longer predict; empty where all do."""
    names = ", ".join(offer.label for offer in found if not offer.predicts)
    return f"No longer predicting, and so no answer: {names}." if names else ""


def _priced(cost: Price, offer: Offer, optimal: bool) -> Cell:
    price = cost.of(offer)
    if price is None:
        return Cell()
    about = COMPUTED if offer.computed and cost.counts_bytes else ""
    return Cell(f"{about}{cost.text(price)}", price, mark=PARETO if optimal else "")


def _ratio(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{value:.2f}", value)


def _task(offer: Offer, name: str) -> Cell:
    if name not in offer.tasks:
        return Cell()
    value, error = offer.tasks[name]
    return Cell(f"{value:.4g}" + (f" ± {error:.2g}" if error else ""), value)


def _note(found: tuple[Offer, ...], data: ReportData) -> str:
    words = (
        f"{PARETO}: {PARETO_WORDS}. Packed: without zeros, as bitmask and kept values, and integers as integers; a "
        "masked checkpoint with its zeros in place takes the bytes and the time of the dense model. "
    )
    if broken := broken_words(found):
        words += f"{broken} "
    if any(offer.computed for offer in found):
        words += f"{COMPUTED}: {COMPUTED_WORDS}. "
    words += "MB a token: the weights that computing one token reads: all but embeddings of which it takes a row."
    speeds = [v.packed.speed for v in data.variants if v.packed is not None and v.packed.speed is not None]
    if any(variant.beside_dense is not None for variant in data.variants):
        words += " Structured variants are ordinary checkpoints, timed beside the dense model, both by torch."
    if speeds:
        how = "; ".join(sorted({f"{speed.kernels.split(',')[0]}, {speed.threads} threads" for speed in speeds}))
        words += (
            " Decode: one token after another, beside dense weights by torch, and beside the control, the same weights "
            "with their zeros by the packed kernels, where 1 means that leaving zeros out gains nothing; medians of "
            f"pairs measured in turns in one process. Run by {how}."
        )
    return words
