"""Tokenizers by what they do: the ids of a text, and the special tokens that they put around one by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from zpruner.errors import InvalidSettingError, SourceError, did_you_mean
from zpruner.sources import Documents, TokenTable

Ids = NDArray[np.int64]

Bos = Literal["auto", "always", "never", "published"]
"""What windows begin with.

auto: the tokens that the tokenizer puts before a text by itself (a BOS, where it adds one); always: these, or its BOS
where it adds none; never: none. published: windows are cut out of the text as the tokenizer gives it whole, so that
what it adds stands before the first window and after the last alone.
"""

_PROBES = ("", "a", "The 7", "\n")


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    def __call__(self, text: str, *, verbose: bool) -> Mapping[str, Any]:
        """Return the token ids of `text` under "input_ids", special tokens included."""
        ...


@dataclass(frozen=True)
class Encoding:
    """How a text becomes the ids that windows are cut from.

    Args:
        tokenizer: the model's; None will do for a token table.
        before, after: special tokens that are taken away: those that the tokenizer adds by itself.
        begin: tokens that every window begins with.
    """

    tokenizer: Tokenizer | None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()

    def ids(self, text: str, source: str) -> Ids:
        """Return the ids of a text.

        Raises:
            SourceError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise SourceError(
                source,
                "text, and a model without a tokenizer",
                "a tokenizer, or a table with a column input_ids",
                "Give a model with its tokenizer files, or tokenise the text and give the table.",
            )
        ids = np.asarray(_encode(self.tokenizer, text), dtype=np.int64)
        if (end := len(self.after)) and tuple(ids[-end:]) == self.after:
            ids = ids[:-end]
        if (start := len(self.before)) and tuple(ids[:start]) == self.before:
            ids = ids[start:]
        while (start := len(self.begin)) and tuple(ids[:start]) == self.begin:  # the text has it already
            ids = ids[start:]
        return ids


def encoding_of(text: Documents | TokenTable, tokenizer: Tokenizer | None, bos: Bos) -> Encoding:
    """Return how a text is to be encoded. Rows of a token table are taken as they are.

    Raises:
        InvalidSettingError: no such rule; `always`, and a tokenizer that neither adds a BOS nor has one; `always` or
            `never`, and a token table.
    """
    if bos not in get_args(Bos):
        raise InvalidSettingError("bos", repr(bos), "auto, always or never", did_you_mean(str(bos), get_args(Bos)))
    if isinstance(text, TokenTable):
        if bos in ("always", "never"):
            raise InvalidSettingError(
                "bos", f"'{bos}' for a table of token ids", "auto: its rows are taken as they are", "Set it to auto."
            )
        return Encoding(tokenizer)
    if tokenizer is None:
        return Encoding(tokenizer)
    return document_encoding(tokenizer, bos)


def document_encoding(tokenizer: Tokenizer, bos: Bos) -> Encoding:
    """Return how documents are to be encoded.

    Raises:
        InvalidSettingError: as `encoding_of`.
    """
    if bos == "published":
        return Encoding(tokenizer)
    before, after = added_tokens(tokenizer)
    if bos == "never" or before or bos == "auto":
        return Encoding(tokenizer, before, after, () if bos == "never" else before)
    token = getattr(tokenizer, "bos_token_id", None)
    if token is None:
        raise InvalidSettingError(
            "bos", "'always', and a tokenizer without a BOS token", "auto or never", "Set it to auto."
        )
    return Encoding(tokenizer, before, after, (int(token),))


def added_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that a tokenizer puts before and after any text, the empty one included.

    Flags such as `add_bos_token` say less: a template, a wrapper or a class may add tokens without them.
    """
    encoded = [tuple(_encode(tokenizer, text)) for text in _PROBES]
    before = _common(encoded)
    after = _common([ids[len(before) :][::-1] for ids in encoded])
    return before, after[::-1]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    # verbose=False: that the whole text is longer than the model's context is no concern here.
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _common(sequences: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest beginning that all sequences share."""
    shortest = min(sequences, key=len)
    for index, value in enumerate(shortest):
        if any(other[index] != value for other in sequences):
            return shortest[:index]
    return shortest
