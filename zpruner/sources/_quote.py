"""Quoting what a user wrote in an error."""

from __future__ import annotations

from zpruner.errors import without_credentials

_SHOWN = 120


def quoted(text: str) -> str:
    """Return `text` in quotes: one printable line, at most 120 characters of it, without credentials."""
    address = text.replace(" ", "%20") if "://" in text else text  # what follows a space belongs to it
    shown = without_credentials(address)
    return repr(shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}...")
