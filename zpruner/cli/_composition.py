"""Options that describe a composition and a pattern, as params.yaml writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zpruner.errors import InvalidPatternError, InvalidSettingError, one_line, shown
from zpruner.patterns import Pattern, StructuredPattern, StructureKind, parse_pattern
from zpruner.pruning.presets import PRESETS

if TYPE_CHECKING:
    from zpruner.settings.params import MethodSettings


def pattern_of(ratio: float | str | None, kind: str, sparsity: str | None = None, quantizes: bool = False) -> str:
    """Return the pattern that --sparsity, or --sparsity-ratio and --sparsity-type, describe, as params.yaml writes it.

    Nothing need be removed where `quantizes`.

    Raises:
        InvalidPatternError: neither a ratio in (0, 1) nor N:M.
        InvalidSettingError: a ratio that N:M does not have; --sparsity beside the others.
    """
    if sparsity is not None:
        if ratio is not None or kind != "unstructured":
            raise InvalidSettingError(
                "--sparsity", "--sparsity-ratio or --sparsity-type beside it", "one way to say it", "Leave one out."
            )
        expected = "a ratio in [0, 1) such as 0.5, N:M with 0 < N < M such as 2:4, or structures such as neurons:0.25"
        return str(_parsed("--sparsity", sparsity, expected, zero=quantizes))
    if kind == "unstructured":
        ratio = 0.5 if ratio is None else ratio
        return str(_parsed("--sparsity-ratio", ratio, "a ratio in [0, 1) such as 0.5", False, zero=quantizes))
    if kind in list(StructureKind):
        share = f"{kind}:{0.25 if ratio is None else ratio}"
        return str(_parsed("--sparsity-ratio", share, "a share between 0 and 1 such as 0.25"))
    expected = (
        "unstructured, N:M with 0 < N < M such as 2:4 (N of every M are kept), or structures such as neurons:0.25"
    )
    pattern = _parsed("--sparsity-type", kind, expected)
    if isinstance(pattern, StructuredPattern):
        if ratio is not None:
            raise InvalidSettingError("--sparsity-ratio", f"{ratio}", f"none beside {kind}", "Leave one out.")
        return str(pattern)
    if not pattern.is_nm:
        raise InvalidSettingError("--sparsity-type", f"'{kind}'", expected, "Give a ratio with --sparsity-ratio.")
    other = pattern if ratio is None else _parsed("--sparsity-ratio", ratio, "a ratio")
    if isinstance(other, StructuredPattern) or abs(other.sparsity - pattern.sparsity) > 1e-9:
        raise InvalidSettingError(
            "--sparsity-ratio", f"{ratio}", f"{pattern.sparsity:g}, which {kind} removes", "Leave it out with N:M."
        )
    return str(pattern)


def _parsed(option: str, value: float | str, expected: str, may_be_nm: bool = True, zero: bool = False) -> Pattern:
    try:
        pattern = parse_pattern(value)
    except InvalidPatternError as error:
        structures = ":" in str(value) and not str(value)[0].isdigit()
        raise InvalidPatternError(
            option, _quoted(value), expected, error.action if structures else "Write 0.5 or 2:4, say."
        ) from None
    if isinstance(pattern, StructuredPattern):
        return pattern
    if not pattern.sparsity and not zero:
        action = "Raise it, or quantise with --quantize."
        raise InvalidPatternError(option, _quoted(value), "more than 0: nothing would be removed", action)
    if pattern.is_nm and not may_be_nm:
        raise InvalidPatternError(option, _quoted(value), expected, f"Write --sparsity {value}.")
    return pattern


def _quoted(value: float | str) -> str:
    """Return a value as a message shows it: numbers as they are, text in quotes."""
    try:
        float(value)
    except ValueError:
        return shown(value)
    return one_line(str(value))


def composition_settings(
    method: str,
    group: str | None,
    settings: list[str],
    refine: str | None,
    update: str | None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """Return a method or preset, with the parts that the options change, as params.yaml would write it.

    Raises:
        InvalidSettingError: a setting that is not NAME=VALUE.
    """
    from zpruner.settings.setting_files import read_files

    chosen = read_files(named("--set", settings, "--set power=2.0"), Path(), "--set")
    base = dict(PRESETS.get(method, {"score": method}))
    parts = {"settings": {**base.pop("settings", {}), **chosen}, "group": group, "refine": refine, "update": update}
    if quantize is not None:
        whole = f"bits={quantize}" if quantize.isdecimal() else quantize
        parts["quantize"] = named("--quantize", whole.split(","), "--quantize 4, or --quantize bits=4,group=128")
    return {**base, **{key: value for key, value in parts.items() if value}}


def named(option: str, texts: list[str], example: str) -> dict[str, Any]:
    """Return the values of an option's NAME=VALUE, each read as YAML."""
    from zpruner.settings.plain_yaml import parse_yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidSettingError(option, shown(text), "NAME=VALUE", f"Write e.g. {example}.")
        found[name] = parse_yaml(value, f"{option} {name}")
    return found


def checked(settings: dict[str, Any]) -> MethodSettings:
    from pydantic import ValidationError

    from zpruner.settings.explain import explain
    from zpruner.settings.params import MethodSettings

    try:
        return MethodSettings(**settings)
    except ValidationError as error:
        raise explain(error, "the options", MethodSettings) from None
