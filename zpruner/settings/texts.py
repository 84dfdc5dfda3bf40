"""The settings of texts: which one, which part of it, and what is done with its windows."""

from __future__ import annotations

from os.path import normpath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from zpruner.settings.base import Settings, canonical_json


def _as_part(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("two numbers, 0 <= start < stop <= 1")
    return value


def _check_part(part: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= part[0] < part[1] <= 1.0:
        raise ValueError("0 <= start < stop <= 1")
    return part


_WITH_WINDOWS = {"batch_size", "gram", "min_expert_tokens", "propagation", "protocol", "divergence"}
"""Settings beside a text's that say what is done with its windows."""


class TextSettings(Settings):
    """Where a text comes from, which part of it is used, and what its windows of `seqlen` tokens begin with.

    `bos: auto` is what the tokenizer puts before a text by itself (see zpruner.text.Bos).
    """

    source: str
    sha256: str | None = None
    column: str = "text"
    config: str | None = None
    split: str | None = None
    documents: Literal["file", "lines"] = "file"
    part: Annotated[tuple[float, float], BeforeValidator(_as_part), AfterValidator(_check_part)] = (0.0, 1.0)
    seqlen: int = Field(gt=1)
    bos: Literal["auto", "always", "never"] = "auto"
    batch_size: int = Field(default=8, gt=0)

    @property
    def begin(self) -> Literal["auto", "always", "never", "published"]:
        """What windows begin with."""
        return self.bos

    def overlaps(self, other: TextSettings) -> bool:
        """Return whether text is read here that `other` reads, too, as far as their settings tell."""
        mine, theirs = ((normpath(text.source), text.config, text.split) for text in (self, other))
        same = mine == theirs or (self.sha256 is not None and self.sha256 == other.sha256)
        return same and self.part[0] < other.part[1] and other.part[0] < self.part[1]

    def windows_settings(self) -> str:
        """Return what decides the windows, as canonical JSON: not what is done with them."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True, exclude=_WITH_WINDOWS))


class CalibrationSettings(TextSettings):
    """The calibration windows and the statistics taken over them."""

    nsamples: int = Field(gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    sampling: Literal["stream", "documents"] = "stream"
    gram: bool | Literal["auto"] = "auto"
    min_expert_tokens: int = Field(default=128, ge=0)
    propagation: Literal["dense", "pruned"] = "dense"


class PerplexitySettings(TextSettings):
    """The text that perplexity is measured on; `windows: null` takes all of it.

    Windows start `stride` tokens apart (null: `seqlen`, so that none overlap), and each counts its last `stride`
    tokens. `protocol` names the published protocol that the other settings spell out (see
    zpruner.evaluate.protocols), which is checked; it has its own rule for what windows begin with. `divergence`
    is the number of windows also compared token by token with the dense model.
    """

    protocol: str | None = None
    joiner: str = "\n\n"
    max_documents: int | None = Field(default=None, gt=0)
    windows: int | None = Field(default=None, gt=0)
    stride: int | None = Field(default=None, gt=0)
    divergence: int = Field(default=0, ge=0)

    @property
    def begin(self) -> Literal["auto", "always", "never", "published"]:
        """What windows begin with: `bos`, or what the protocol was published with."""
        return self.bos if self.protocol is None else "published"

    @field_validator("stride")
    @classmethod
    def _check_stride(cls, stride: int | None, known: ValidationInfo) -> int | None:
        if stride is not None and stride > known.data.get("seqlen", stride):
            raise ValueError(f"at most seqlen, {known.data['seqlen']}")
        return stride
