"""Calibration on several sources: how many windows each gives, and which mixtures are refused."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from zpruner.errors import InvalidSettingError
from zpruner.settings.explain import explain
from zpruner.settings.texts import SELF, CalibrationSettings, MixedSettings

_OF_TEXTS = ("sha256", "column", "config", "split", "documents", "part", "sampling")
_OF_SELF = ("temperature", "top_p", "drop", "prompt")
_LEAST = Fraction(1, 10**6)
"""By how much shares may miss 1: less is how decimals are written."""


def window_counts(calibration: CalibrationSettings) -> tuple[int, ...]:
    """Return how many of the `nsamples` windows each source gives, exactly as many in all.

    Each gets its share rounded down; those whose share lost most by that, earlier ones first, get one more.
    """
    sources = calibration.sources
    given = [Fraction(1) if one.share is None else Fraction(str(one.share)) for one in sources]
    exact = [calibration.nsamples * share / sum(given) for share in given]
    counts = [int(number) for number in exact]
    by_rest = sorted(range(len(sources)), key=lambda index: counts[index] - exact[index])
    for index in by_rest[: calibration.nsamples - sum(counts)]:
        counts[index] += 1
    return tuple(counts)


def described(calibration: CalibrationSettings) -> dict[str, Any]:
    """Return the section as JSON values to be shown: each of several sources under its number, with its windows."""
    if not calibration.mixed:
        return calibration.model_dump(mode="json")
    counted = zip(calibration.sources, window_counts(calibration), strict=True)
    sources = {
        str(number): {**source.model_dump(mode="json", exclude_defaults=True), "windows": count}
        for number, (source, count) in enumerate(counted, start=1)
    }
    return {"source": sources, **calibration.model_dump(mode="json", exclude={"source", *_OF_TEXTS, *_OF_SELF})}


def mixture_of(values: Mapping[str, Any], where: str, source: str) -> CalibrationSettings:
    """Return the section that `values` make up, as params.yaml would.

    Args:
        values: key -> value.
        where: what to call it in an error.
        source: what to call its source there.

    Raises:
        InvalidSettingError: what params.yaml may not say; as `check_mixture`.
    """
    try:
        found = CalibrationSettings.model_validate(dict(values))
    except ValidationError as error:
        raise explain(error, where, CalibrationSettings) from None
    check_mixture(found, "", source)
    return found


def check_mixture(calibration: CalibrationSettings, section: str, where: str) -> None:
    """Raise InvalidSettingError for sources whose settings do not belong together.

    Args:
        calibration: the section.
        section: what stands before its keys in an error.
        where: what its source is called there.
    """
    if calibration.mixed and (beside := _set(calibration, (*_OF_TEXTS, *_OF_SELF))):
        raise InvalidSettingError(
            f"{section}{beside}", "it beside a list of sources", "it in the entry that it is of", "Move it there."
        )
    for index, source in enumerate(calibration.sources):
        before = f"{where}.{index}." if calibration.mixed else section
        own = source.source == SELF
        if wrong := _set(source, _OF_TEXTS if own else _OF_SELF):
            got = f"{wrong} for {'text that the model writes' if own else 'a text that is read'}"
            action = "Remove it; a file of that name is ./self." if own else "Remove it."
            raise InvalidSettingError(
                f"{before}{wrong}", got, f"it for {'texts' if own else 'source: self'} only", action
            )
    if calibration.mixed:
        _check_shares(calibration, where)
        _check_apart(calibration.sources, where)


def _set(settings: CalibrationSettings | MixedSettings, names: tuple[str, ...]) -> str | None:
    """Return the first of the keys that has another value than its default."""
    fields = type(settings).model_fields
    return next((name for name in names if getattr(settings, name) != fields[name].default), None)


def _check_shares(calibration: CalibrationSettings, where: str) -> None:
    shares = [source.share for source in calibration.sources]
    without = shares.count(None)
    if 0 < without < len(shares):
        index, expected = shares.index(None), "a share for every source, or for none: then all are equal"
        raise InvalidSettingError(f"{where}.{index}", "no share beside shares of others", expected, "Add it.")
    total = sum((Fraction(str(share)) for share in shares if share is not None), Fraction(without, len(shares)))
    if abs(total - 1) > _LEAST:
        raise InvalidSettingError(
            where, f"shares that sum to {float(total):.10g}", "1", "Correct them, or leave all out for equal ones."
        )
    for index, count in enumerate(window_counts(calibration)):
        if not count:
            got = f"no window of {calibration.nsamples}" + ("" if without else f" for a share of {shares[index]:g}")
            action = "Raise calibration.nsamples, or leave the source out."
            raise InvalidSettingError(f"{where}.{index}", got, "at least one", action)


def _check_apart(sources: tuple[MixedSettings, ...], where: str) -> None:
    """Raise where two sources would give the same text."""
    for (first, one), (second, other) in combinations(enumerate(sources), 2):
        if one.overlaps(other):
            own = one.source == SELF
            got = f"'{other.source}'" if own else f"part {list(other.part)} of '{other.source}'"
            before = "" if own else f" with part {list(one.part)}"
            raise InvalidSettingError(
                f"{where}.{second}",
                f"{got}, which source.{first} reads{before}, too",
                "another text" if own else "parts that do not overlap, or another text",
                "Give the text to one entry, with the share of both." if own else "Part them.",
            )
