"""Published perplexity protocols by name, as the explicit settings that `evaluation.perplexity` in params.yaml holds.

All three tokenise the joined text at once, cut it into consecutive windows of 2048 tokens, drop the rest and report
exp(mean window loss) (SparseGPT, arXiv 2301.00774; Wanda, arXiv 2306.11695, which takes 4096 for Llama-2). GPTQ's
first scripts did otherwise (PTB's validation split joined by blank lines, 256 random windows of C4): numbers under
that protocol are not comparable.

A BOS that the tokenizer adds stands before the first window alone, as the papers' code has it, whatever the model
expects: of a model that expects one before every window (Gemma), such a perplexity says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpruner.errors import InvalidSettingError, UnknownNameError, did_you_mean
from zpruner.settings.texts import PerplexitySettings
from zpruner.sources import Documents, TokenTable

PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "wikitext2": {
        "source": "hf:Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
        "config": "wikitext-2-raw-v1",
        "split": "test",
        "column": "text",
        "joiner": "\n\n",
        "seqlen": 2048,
        "windows": None,
        "stride": None,
    },
    "ptb": {
        # The data set is a script on the hub, which `datasets` no longer runs: give its Parquet conversion, or a
        # copy of the test split, as `source`, and its sha256.
        "source": "hf:ptb-text-only/ptb_text_only@main",
        "config": "penn_treebank",
        "split": "test",
        "column": "sentence",
        "joiner": " ",
        "seqlen": 2048,
        "windows": None,
        "stride": None,
    },
    "c4": {
        "source": "hf:allenai/c4@607bd4c8450a42878aa9ddc051a65a055450ef87/en/c4-validation.00000-of-00008.json.gz",
        "config": None,
        "split": None,
        "column": "text",
        "joiner": " ",
        "max_documents": 1100,
        "seqlen": 2048,
        "windows": 256,
        "stride": None,
    },
}
_CHECKED = ("joiner", "max_documents", "windows", "stride", "documents", "part", "bos")
"""What a copy of the data elsewhere must have in common with the protocol; seqlen is stated with every result."""


def protocol(name: str, **changes: Any) -> PerplexitySettings:
    """Return a protocol as explicit settings.

    Args:
        name: `wikitext2`, `ptb` or `c4`.
        changes: settings that differ, such as another source of the same text, or seqlen.

    Raises:
        UnknownNameError: no such protocol.
        InvalidSettingError: a change of what makes the protocol.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", f"'{name}'", "a published protocol", did_you_mean(name, PROTOCOLS))
    settings = {**PROTOCOLS[name], **changes}
    if "source" in changes:  # a local copy has neither configuration nor split unless the caller names them
        settings |= {key: changes.get(key) for key in ("config", "split")}
    found = PerplexitySettings(protocol=name, **settings)
    check_protocol(found)
    return found


def check_protocol(settings: PerplexitySettings) -> None:
    """Raise InvalidSettingError where settings claim a protocol and are not it; the claim lets reports compare.

    The source may be a copy elsewhere, which cannot be checked, and seqlen another (it is stated with the result).
    """
    name = settings.protocol
    if name is None:
        return
    if name not in PROTOCOLS:
        raise UnknownNameError(
            "evaluation.perplexity.protocol", f"'{name}'", "a published protocol", did_you_mean(name, PROTOCOLS)
        )
    expected = PerplexitySettings(protocol=name, **PROTOCOLS[name])
    for key in _CHECKED:
        got, wanted = getattr(settings, key), getattr(expected, key)
        if got != wanted:
            raise InvalidSettingError(
                f"evaluation.perplexity.{key}",
                repr(got),
                f"{wanted!r}, as the protocol '{name}' is published",
                f"Set {key} to {wanted!r}, or protocol to null: the numbers are then not compared with published ones.",
            )


def evaluation_text(text: Documents | TokenTable, settings: PerplexitySettings) -> Documents | TokenTable:
    """Return the text as the settings want it joined: the first `max_documents`, with `joiner` between them.

    Documents that are joined by two newlines, as `evaluation_windows` does itself, stay apart, so that `part` counts
    documents; otherwise the result is one document. Token tables have nothing to join.

    Raises:
        InvalidSettingError: `part` of a text joined otherwise, whose documents are no longer apart.
    """
    if isinstance(text, TokenTable):
        return text
    texts = text.texts[: settings.max_documents]
    if settings.joiner == "\n\n":
        return Documents(text.source, texts)
    if settings.part != (0.0, 1.0) and len(texts) > 1:
        raise InvalidSettingError(
            "evaluation.perplexity.part",
            f"{settings.part} with joiner {settings.joiner!r}",
            "the whole text",
            "Set part to [0.0, 1.0], or joiner to two newlines.",
        )
    return Documents(text.source, (settings.joiner.join(texts),))
