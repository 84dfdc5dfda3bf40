"""The text that settings describe."""

from __future__ import annotations

from pathlib import Path

from zpruner.settings.texts import SourceSettings
from zpruner.sources._text import Documents, TokenTable, read_text


def text_of(settings: SourceSettings, source: str, downloads: Path) -> Documents | TokenTable:
    """Return the documents, or the table of token ids, of a text that is read as its settings say.

    Args:
        settings: of the text.
        source: what their source stands for: see `resolve_source`.
        downloads: where downloaded files are kept.

    Raises:
        InvalidSettingError, SourceError, HashMismatchError, ShapeMismatchError: as `read_text`.
    """
    return read_text(
        source,
        settings.sha256,
        downloads,
        column=settings.column,
        config=settings.config,
        split=settings.split,
        documents=settings.documents,
    )
