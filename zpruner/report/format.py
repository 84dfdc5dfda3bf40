"""Numbers as text: ASCII, so that any terminal can print them; `typeset` makes them fit for a page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping

from zpruner.artifacts.result_file import Shown
from zpruner.artifacts.results import Interval


def _special(value: float) -> str | None:
    if math.isnan(value):
        return "NaN"
    return ("inf" if value > 0 else "-inf") if math.isinf(value) else None


def perplexity(value: float) -> str:
    """Four digits or more, with an exponent from a million on; `NaN` and `inf` as such."""
    if special := _special(value):
        return special
    if value < 100:
        return f"{value:.2f}"
    return f"{value:,.1f}" if value < 10_000 else f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


def percent(share: float) -> str:
    """A share in per cent, two decimals: 0.5 -> `50.00 %`."""
    return f"{share * 100:.2f} %"


def change(ratio: float | None) -> str:
    """A ratio of perplexities as a signed change: 1.134 -> `+13.4 %`; `-` where there is none."""
    if ratio is None:
        return "-"
    if special := _special(ratio):
        return special
    value = (ratio - 1) * 100
    if abs(value) >= 1e6:
        return f"{value:+.1e} %"
    return f"{value:+,.0f} %" if abs(value) >= 1000 else f"{value:+.1f} %"


def interval(found: Interval | None, show: Callable[[float], str]) -> str:
    """Both ends of an interval as `show` writes them: `0.149 to 0.172`, `+11.0 to +15.9 %`; `-` where there is none."""
    return "-" if found is None else f"{show(found.low).removesuffix(' %')} to {show(found.high)}"


def error(value: float) -> str:
    """Three significant digits."""
    return _special(value) or f"{value:#.3g}"


def metric(shown: Shown, value: float) -> str:
    """A metric as its form in the schema says; the unit of bytes stands in the title."""
    if shown.form == "perplexity":
        return perplexity(value)
    if shown.form == "share":
        return percent(value)
    return error(value) if shown.form == "error" else _special(value) or f"{shown.number(value):,.4g}"


def seconds(value: float) -> str:
    """Seconds, with one decimal below 100."""
    return _special(value) or (f"{value:.1f}" if value < 100 else f"{value:,.0f}")


def memory(size: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def megabytes(size: int) -> str:
    """Bytes in MB, the unit left out: one decimal below 1,000."""
    return f"{size / 1e6:,.1f}" if size < 1e9 else f"{size / 1e6:,.0f}"


def count(value: int) -> str:
    """A whole number with separators."""
    return f"{value:,}"


def typeset(text: str) -> str:
    """Real minus signs, infinity and unbreakable spaces, for numbers that this module formatted."""
    text = re.sub(r"(?<![\w.])-(?=\d|inf)", "\N{MINUS SIGN}", text).replace("inf", "∞")
    text = re.sub(r"e([+-])0?(\d+)", lambda m: f"e{'−' if m[1] == '-' else ''}{m[2]}", text)
    text = "–" if text == "-" else text
    return text.replace(" %", "\N{NARROW NO-BREAK SPACE}%")


def flat(values: Mapping[str, object]) -> dict[str, str]:
    """Nested settings as dotted keys and text, empty ones left out."""
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{key}.{inner}": text for inner, text in flat(value).items()}
        elif isinstance(value, str):
            result |= {key: value} if value else {}
        elif value is not None:
            result[key] = json.dumps(value, default=str)
    return result
