"""Quoting what a user wrote in an error."""

from __future__ import annotations

from zpruner.errors import without_credentials

_SHOWN = 120


def quoted(text: str) -> str:
    """Return `text` in quotes: one printable line, at most 120 characters of it, without credentials."""
    shown = without_credentials(text)
    return repr(shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}...")
