"""The formula found, what it is worth, and how to use it."""

from __future__ import annotations

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.page import Figure, note
from zpruner.report.search_data import SearchData, name_of, perplexity_of
from zpruner.report.table import code, escape


def figure(data: SearchData) -> Figure:
    """Return one paragraph and the lines for params.yaml."""
    formula, value = data.result.formula, perplexity_of(data.result.fitness)
    worth = (
        f"on the {data.log.settings['rungs'][-1]} windows of the search's text, averaged in log space over the "
        f"sparsities pruned at. {_verdict(data)}"
    )
    flatters = "This text chose the formula, so its perplexity flatters it: compare methods on another text."
    use = f'found: {{score: expression, settings: {{formula: "{formula}"}}}}'
    body = Markup('<p class="formula">{}</p>\n<p>Perplexity <b>{}</b> {}</p>\n{}<code class="use">{}</code>').format(
        formula, fmt.typeset(value), fmt.typeset(worth), note(f"{flatters} As a method in params.yaml:"), use
    )
    text = f"{code(formula)}\n\nPerplexity **{value}** {escape(worth)} {flatters}\n\nAs a method in params.yaml:\n\n"
    return Figure(body, markdown=f"{text}```yaml\n{use}\n```\n")


def _verdict(data: SearchData) -> str:
    """Return one sentence on what was found, on the text of the search."""
    if not data.known:
        return "No known method was measured."
    better = [name_of(name) for name, value in data.known.items() if data.result.fitness < value]
    name, value = next(iter(data.known.items()))
    against = f"{name_of(name)}, the best known method, stands at {perplexity_of(value)}"
    if len(better) == len(data.known):
        return f"Better than every known method on the search's text: {against}."
    if better:
        return f"Better than {', '.join(better)} on the search's text, but not than all: {against}."
    return f"No better than any known method on the search's text: {against}."
