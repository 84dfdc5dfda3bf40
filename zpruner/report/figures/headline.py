"""The best variant of every sparsity, how sure that is, and where all others stand."""

from __future__ import annotations

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.known import flagship
from zpruner.report.marks import swatch_of
from zpruner.report.page import Figure
from zpruner.report.ranking import Leaderboard, Report
from zpruner.report.table import escape

_NAMED = 8
"""More methods than this are not listed in order: the table holds them."""


def figure(report: Report) -> Figure:
    """Return one entry per sparsity, or what can be said without any."""
    dense = fmt.perplexity(report.data.dense.metrics.perplexity)
    if not report.rankings:
        text = (
            f"No pruned variant has a finite perplexity; dense stands at {dense}."
            if report.data.variants
            else f"Only the dense model has been evaluated so far: perplexity {dense}."
        )
        return Figure(Markup('<p class="lead">{}</p>').format(fmt.typeset(text)), markdown=text)
    items = Markup("\n").join(_item(report, ranking, dense) for ranking in report.rankings)
    lines = "".join(f"- {_line(ranking)}\n" for ranking in report.rankings)
    return Figure(Markup('<ol class="heads">{}</ol>').format(items), markdown=lines)


def _item(report: Report, ranking: Leaderboard, dense: str) -> Markup:
    best, spec = ranking.standings[0], ranking.standings[0].variant.spec
    noise = f" (95 % interval {fmt.interval(best.ratio_interval, fmt.change)})" if best.ratio_interval else ""
    order = Markup()
    if 2 < len(ranking.standings) <= _NAMED:
        order = Markup('<span class="order">{}</span>').format(
            Markup().join(
                Markup("<span>{}{} {}</span> ").format(
                    swatch_of(report, s.variant.spec), s.variant.spec.method, fmt.typeset(fmt.perplexity(s.perplexity))
                )
                for s in ranking.standings
            )
        )
    words = _verdict(ranking)
    verdict = Markup('<span class="verdict">{}</span>').format(fmt.typeset(words)) if words else ""
    return Markup(
        '<li><p class="big">{}<small>{}</small></p>\n<p><b class="method">{}</b>{} perplexity <b>{}</b> against {} '
        "dense, <b>{}</b>{}.{}{}</p></li>"
    ).format(
        fmt.typeset(spec.pattern_text),
        spec.sparsity,
        spec.method,
        " loses least:" if len(ranking.standings) > 1 else ":",
        fmt.typeset(fmt.perplexity(best.perplexity)),
        fmt.typeset(dense),
        fmt.typeset(fmt.change(best.ratio)),
        fmt.typeset(noise),
        verdict,
        order,
    )


def _verdict(ranking: Leaderboard) -> str:
    """Return how sure the first place is, and where a flagship stands that is neither first nor second."""
    words, found = ranking.verdict, flagship(ranking)
    if found is None or found[0] < 2:
        return words
    place, standing = found
    behind = fmt.change(standing.perplexity / ranking.standings[0].perplexity)
    named = f"{standing.variant.spec.method} is number {place + 1} of {len(ranking.standings)}"
    return f"{words} {named} at {fmt.perplexity(standing.perplexity)}, {behind} from the first."


def _line(ranking: Leaderboard) -> str:
    best, spec = ranking.standings[0], ranking.standings[0].variant.spec
    verdict = escape(_verdict(ranking))
    words = (
        f"**{escape(spec.pattern_text)}** ({escape(spec.sparsity)}): {escape(spec.method)} loses least, perplexity "
        f"{fmt.perplexity(best.perplexity)} ({fmt.change(best.ratio)} against dense). {verdict}"
    )
    others = ", ".join(f"{escape(s.variant.spec.method)} {fmt.perplexity(s.perplexity)}" for s in ranking.standings)
    return f"{words.rstrip()} In order: {others}." if 2 < len(ranking.standings) <= _NAMED else words.rstrip()
